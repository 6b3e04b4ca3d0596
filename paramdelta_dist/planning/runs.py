"""Runs: tensors that lie one behind the other everywhere and are treated alike, and so are one tensor to all that moves bytes.

Models have many small tensors, and what a request, a call of the arithmetic or a step of the planner costs is paid once a
run. Which tensors share one decides nothing about the bytes: it is how they are grouped, not what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from paramdelta_dist.checkpoint.dtypes import ITEMSIZES
from paramdelta_dist.planning.plan import Shard, Source, TensorPlan, parts_of


class Run(NamedTuple):
    """Tensors, or parts of them, whose bytes follow one another in the output and in each model, none of them empty."""

    tensors: tuple[TensorPlan, ...]
    merged: bool
    dtype: str
    """Of the output."""
    elements: int
    start: int
    """First byte in the output file."""
    sources: tuple[Source | None, ...]
    """Where the first tensor lies in each model; None for a model that is not read."""

    def tensor_at(self, element: int) -> tuple[TensorPlan, int]:
        """The tensor that holds an element of the run, and the element's position in the whole of it."""
        for tensor in self.tensors:
            if element < tensor.elements:
                return tensor, tensor.first + element
            element -= tensor.elements
        raise IndexError(f"element {element} is beyond the run")


def find_runs(shard: Shard) -> Iterator[Run]:
    """The runs of a shard in the order of their bytes; every tensor that has elements, or every part of it, is in exactly one."""
    tensors: list[TensorPlan] = []
    for tensor in parts_of(shard.tensors):
        if not tensor.elements:
            continue
        if tensors and not _follows(tensors[-1], tensor):
            yield _run(tensors)
            tensors = []
        tensors.append(tensor)
    if tensors:
        yield _run(tensors)


def _follows(last: TensorPlan, tensor: TensorPlan) -> bool:
    """Whether a tensor, which comes next in the output, comes next in every model too and is treated as `last` is."""
    if last.dtype != tensor.dtype or last.merged != tensor.merged:
        return False
    for one, other in zip(last.sources, tensor.sources, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        elif one.file != other.file or one.dtype != other.dtype or other.start - one.start != last.elements * ITEMSIZES[one.dtype]:
            return False
    return True


def _run(tensors: list[TensorPlan]) -> Run:
    first = tensors[0]
    return Run(tuple(tensors), first.merged, first.dtype, sum(t.elements for t in tensors), first.start, first.sources)
