"""A span: consecutive tensors, contiguous in the output and in every input and merged by the same call; read and computed as one.

Models have many small tensors, and what a request, a call of the arithmetic or a step of the planner costs is paid once a
span. Which tensors share one decides nothing about the bytes: it is how they are grouped, not what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from paramdelta_dist.checkpoint.dtypes import ITEMSIZES
from paramdelta_dist.kernels.blocks import METHOD_BLOCK, block_elements
from paramdelta_dist.methods import BlockShape, Scope, find_method
from paramdelta_dist.planning.plan import Shard, Source, TensorPlan, parts_of
from paramdelta_dist.planning.resolve import MethodCall

CUT = 64
"""Spans that may be cut anywhere are cut at multiples of this many elements, so that pieces stay aligned."""


class Span(NamedTuple):
    """Tensors, or parts of them, whose bytes follow one another in the output and in each model, none of them empty; a single
    one where the method that computes it looks at more than elements."""

    tensors: tuple[TensorPlan, ...]
    merged: bool
    dtype: str
    """Of the output."""
    elements: int
    start: int
    """First byte in the output file."""
    sources: tuple[Source | None, ...]
    """Place of the first tensor in each model; None for a model that is not read."""
    call: int
    """Position in `Shard.calls`."""
    cut: int
    """It may be cut at multiples of this many elements."""
    block: int
    """Elements that are computed at a time, where each block counts; a multiple of `cut`."""
    reductions: int
    """Times all of it has to be looked at before the first element is made. 0 for one that is copied."""

    def tensor_at(self, element: int) -> tuple[TensorPlan, int]:
        """The tensor that holds an element of the span, and the element's position in the whole of it."""
        for tensor in self.tensors:
            if element < tensor.elements:
                return tensor, tensor.first + element
            element -= tensor.elements
        raise IndexError(f"element {element} is beyond the span")


def find_spans(shard: Shard) -> Iterator[Span]:
    """The spans of a shard in the order of their bytes; every tensor that has elements, or every part of it, is in exactly one."""
    kinds = [_kind(call) for call in shard.calls]
    tensors: list[TensorPlan] = []
    for tensor in parts_of(shard.tensors):
        if not tensor.elements:
            continue
        if tensors and not ((not tensor.merged or kinds[tensor.call].spans_tensors) and _follows(tensors[-1], tensor)):
            yield _span(tensors, kinds)
            tensors = []
        tensors.append(tensor)
    if tensors:
        yield _span(tensors, kinds)


class _SpanKind(NamedTuple):
    """The meaning of a method call for spans."""

    spans_tensors: bool
    rows: bool
    reductions: int


def _kind(call: MethodCall) -> _SpanKind:
    method = find_method(call.method)
    return _SpanKind(
        method.spans_tensors, method.blocks is BlockShape.ROWS, sum(reduction.scope is Scope.TENSOR for reduction in call.reductions)
    )


def _follows(last: TensorPlan, tensor: TensorPlan) -> bool:
    """Whether a tensor, which comes next in the output, comes next in every model too and is treated as `last` is."""
    if last.twin or tensor.twin or last.dtype != tensor.dtype or last.merged != tensor.merged or last.call != tensor.call:
        return False
    for one, other in zip(last.sources, tensor.sources, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        elif one.file != other.file or one.dtype != other.dtype or other.start - one.start != last.elements * ITEMSIZES[one.dtype]:
            return False
    return True


def _span(tensors: list[TensorPlan], kinds: list[_SpanKind]) -> Span:
    first, cut, block, reductions = tensors[0], CUT, METHOD_BLOCK, 0
    if first.merged and not (kind := kinds[first.call]).spans_tensors:
        cut = block = block_elements(first.shape, rows=kind.rows)
        reductions = kind.reductions
    elements = sum(tensor.elements for tensor in tensors)
    return Span(tuple(tensors), first.merged, first.dtype, elements, first.start, first.sources, first.call, cut, block, reductions)
