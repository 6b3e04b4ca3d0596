"""A block: elements of one tensor with all that a method may know of them. Methods that are no plain sum of deltas see nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

METHOD_BLOCK = 1 << 18
"""Elements of a block on a CPU: large enough to hide the interpreter, small enough to stay near the core. Statistics are
gathered block by block, so it is part of what decides their last bits."""


def block_elements(shape: tuple[int, ...], *, rows: bool) -> int:
    """Elements of each block of a tensor but its last; with `rows` whole rows, as many as METHOD_BLOCK holds, at least one."""
    columns = max(1, shape[-1]) if rows and shape else 1
    return max(1, METHOD_BLOCK // columns) * columns


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor besides its elements."""

    name: str
    """Of the tensor in the output; one of several where a method's blocks are ANY."""
    shape: tuple[int, ...]
    parameters: Mapping[str, Any]
    """Each parameter of the card, by name, as it applies to this tensor."""
    terms: tuple[Mapping[str, Any], ...]
    """For each delta or model that takes part, in recipe order, its own parameters (`weight` among them)."""
    positions: tuple[int, ...]
    """Position of each of them in the recipe: what to key random numbers with, because it stays when others are left out."""
    statistics: tuple[Any, ...] = ()
    """What the reductions that are finished found, in the order of the card."""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements of a row: of the last dimension; a scalar is one row of one."""
        return self.shape[-1] if self.shape else 1


class Operand(NamedTuple):
    """A delta or a model of a block: its elements in the dtypes they are stored in."""

    post: torch.Tensor
    """[n]: of the post-trained model, or of the model itself where there are no deltas."""
    base: torch.Tensor | None
    """[n]: what `post` grew from; None where models are merged as they are."""
    values: Mapping[str, Any]
    """Its parameters, such as `weight` and `density`."""
    position: int
    """Its position in the recipe."""


@dataclass(slots=True)
class Block:
    """Elements [first, first + n) of a tensor. Nothing of it may be kept when the function that was given it returns."""

    tensor: TensorInfo
    first: int
    """Place of the first element in the tensor, in row-major order: what to index random numbers with."""
    base: torch.Tensor | None
    """[n], as stored: what receives the deltas; None where models are merged as they are."""
    terms: tuple[Operand, ...]
    acc: torch.Tensor
    """[n] in the compute dtype. For `apply`: holds the base, where there is one, and takes the result. For `collect`: one more scratch."""
    scratch: Sequence[torch.Tensor]
    """As many blocks [n] in the compute dtype as the card asks for, with anything in them."""

    @property
    def subject(self) -> TensorInfo:
        """`tensor`, as it was called up to version 0.1."""
        return self.tensor

    @property
    def n(self) -> int:
        return self.acc.numel()

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.tensor.parameters

    @property
    def statistics(self) -> tuple[Any, ...]:
        return self.tensor.statistics

    def delta(self, term: Operand, out: torch.Tensor) -> torch.Tensor:
        """post − base of a term, in the compute dtype and rounded once, written to `out`[n]; the model itself where it has no base."""
        out.copy_(term.post)
        if term.base is None:
            return out
        if term.base.dtype == out.dtype:
            return out.sub_(term.base)
        return out.sub_(term.base.to(out.dtype))

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """`values`[n] as [rows, columns], for methods whose blocks are ROWS."""
        return values.view(-1, self.tensor.columns)
