"""What a method says about itself, so that planner and workers can serve it without knowing what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Scope(Enum):
    """How much of a tensor a method must see at once."""

    ELEMENT = "element"
    """Each output element depends on its own element of every input: a tensor may be cut anywhere."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method: one function and what must be known to run it."""

    name: str
    title: str
    formula: str
    paper: str
    scope: Scope
    scratch: int
    """Buffers of one block in the compute dtype that the function needs besides the accumulator."""
    function: Callable[..., None]
    """`function(acc, deltas, *, weights, scratch, shortcuts)`: change `acc` (a block of the base in the compute dtype) in
    place, given a (post, base) pair of blocks in their stored dtypes for each delta. Must not keep any of them. With
    `shortcuts` it may go ways that are right only for a block whose results are all finite, as long as what is not
    finite without them is not with them either: the block is then computed again without."""

    fused: bool = False
    """Whether kernels/fused.py, which adds weighted deltas, computes this function to the same bytes on a GPU."""

    def __reduce__(self) -> tuple[Any, ...]:
        from paramdelta_dist.methods import find_method

        return find_method, (self.name,)
