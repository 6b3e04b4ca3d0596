"""A span: consecutive tensors, contiguous in the output and in every input and merged by the same call; read and computed as one.

Models have many small tensors, and what a request, a call of the arithmetic or a step of the planner costs is paid once a
span. Which tensors share one decides nothing about the bytes: it is how they are grouped, not what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from itertools import repeat
from typing import NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES, ITEMSIZES
from paramdelta_dist.kernels.blocks import METHOD_BLOCK, block_elements
from paramdelta_dist.methods import BlockShape, Scope, find_method
from paramdelta_dist.planning.plan import EncodedOutput, Part, Shard, TensorPlan, output_bytes, parts_of
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.sources import Source, Stack, sources_of

CUT = 64
"""Spans that may be cut anywhere are cut at multiples of this many elements, so that pieces stay aligned."""


class Span(NamedTuple):
    """Parts of tensors whose bytes follow one another in the output and in each model, none of them empty; a single one where
    the method that computes it looks at more than elements, or numbers are encoded."""

    parts: tuple[Part, ...]
    merged: bool
    dtype: str
    """Of the output; of numbers that are encoded there, that which they have before."""
    elements: int
    start: int
    """First byte in the output file."""
    sources: tuple[Source | Stack | None, ...]
    """Place of the first part in each model; None for a model that is not read."""
    call: int
    """Position in `Shard.calls`."""
    cut: int
    """It may be cut at multiples of this many elements."""
    block: int
    """Elements that are computed at a time, where each block counts; a multiple of `cut`."""
    reductions: int
    """Times all of it has to be looked at before the first element is made. 0 for one that is copied."""
    encoded: EncodedOutput | None = None
    """The arrays that it is written as, where it is not written as plain numbers."""
    trails: bool = False
    """It is not made but collected: the scales that were decided when the tensor before it was encoded; an element is a byte of them."""

    @property
    def is_plain(self) -> bool:
        """Whether all numbers are stored as they are, in the inputs and in the output."""
        return self.encoded is None and not any(source is not None and not source.is_plain for source in self.sources)

    def output_bytes(self, elements: int) -> int:
        """Bytes of so many of its elements in the output."""
        bits = DTYPES[self.dtype].bits if self.encoded is None else self.encoded.encoding.bits
        return elements * bits // 8

    def part_at(self, element: int) -> tuple[Part, int]:
        """The part that holds an element of the span, and the element's position in the whole of the part's tensor."""
        for part in self.parts:
            if element < part.elements:
                return part, part.first + element
            element -= part.elements
        raise IndexError(f"element {element} is beyond the span")


class Whole(NamedTuple):
    """A tensor that is written encoded, all of it from one place in every model."""

    part: Part
    kinds: list[_SpanKind]
    form: Hashable
    """All of it but its name and its places, told by the addresses of what it shares with others: true as long as the plan is there."""

    @property
    def spans(self) -> tuple[Span, Span]:
        """Codes, and the scales behind them."""
        return _span([self.part], self.kinds), _trail(self.part)


def find_spans(shard: Shard) -> Iterator[Span]:
    """The spans of a shard in the order of their bytes; every tensor that has elements, or every part of it, is in exactly one.
    Behind the last part of a tensor that is encoded comes the span of its scales."""
    for each in spans_or_wholes(shard):
        if isinstance(each, Span):
            yield each
        else:
            yield from each.spans


def find_kinds(shards: Iterable[Shard]) -> Iterator[Span]:
    """The spans of the shards of a plan; of those that differ in names and places alone, the first."""
    known: set[Hashable] = set()
    for shard in shards:
        for each in spans_or_wholes(shard):
            if isinstance(each, Span):
                yield each
            elif each.form not in known:
                known.add(each.form)
                yield from each.spans


def spans_or_wholes(shard: Shard) -> Iterator[Span | Whole]:
    """The spans of a shard in the order of their bytes, those of tensors that can be told to be alike not yet made."""
    kinds = [_kind(call) for call in shard.calls]
    parts: list[Part] = []
    for part in _parts(shard, kinds):
        if not part.elements:
            continue
        if parts and not ((not part.merged or kinds[part.tensor.call].spans_tensors) and _follows(parts[-1], part)):
            yield _span(parts, kinds)
            parts = []
        if part.tensor.encoded is None:
            parts.append(part)
        elif part.sources is part.tensor.sources and (form := _form(part.tensor)) is not None:
            yield Whole(part, kinds, form)
        else:
            yield _span([part], kinds)
            if part.is_last:
                yield _trail(part)
    if parts:
        yield _span(parts, kinds)


def _parts(shard: Shard, kinds: list[_SpanKind]) -> Iterator[Part]:
    """The parts of a shard's tensors; a tensor in pieces is one where its method looks at more than elements."""
    for tensor in shard.tensors:
        if tensor.rows is None and tensor.merged and not kinds[tensor.call].spans_tensors:
            yield Part(tensor, 0, tensor.elements, True, tensor.sources)
        else:
            yield from parts_of((tensor,))


def _form(tensor: TensorPlan) -> Hashable:
    """`Whole.form`; None where a model keeps the tensor in pieces."""
    alike: list[Hashable] = []
    for source in tensor.sources:
        if isinstance(source, Stack):
            return None
        alike.append(source and (source.dtype if source.encoded is None else id(source.encoded)))
    return tensor.merged, tensor.dtype, tensor.shape, tensor.nbytes, tensor.call, id(tensor.encoded), *alike


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


def _follows(last: Part, part: Part) -> bool:
    """Whether a part, which comes next in the output, comes next in every model too and is treated as `last` is."""
    one, other = last.tensor, part.tensor
    if one.twin or other.twin or one.dtype != other.dtype or last.merged != part.merged or one.call != other.call:
        return False
    return all(map(_goes_on, last.sources, part.sources, repeat(last.elements)))


def _goes_on(here: Source | Stack | None, there: Source | Stack | None, elements: int) -> bool:
    """Whether a model has the second right behind the `elements` of the first, or neither."""
    if here is None or there is None:
        return here is there
    if isinstance(here, Stack) or isinstance(there, Stack) or here.encoded is not None or there.encoded is not None:
        return False
    return here.file == there.file and here.dtype == there.dtype and there.start - here.start == elements * ITEMSIZES[here.dtype]


def _span(parts: list[Part], kinds: list[_SpanKind]) -> Span:
    first = parts[0]
    tensor = first.tensor
    grain = _grain(first)
    cut, block, reductions = CUT, METHOD_BLOCK, 0
    if first.merged and not (kind := kinds[tensor.call]).spans_tensors:
        cut = block = block_elements(tensor.shape, rows=kind.rows)
        reductions = kind.reductions
        if grain > 1:
            unit = math.lcm(grain, max(1, tensor.shape[-1]) if kind.rows and tensor.shape else 1)
            cut = block = max(1, METHOD_BLOCK // unit) * unit
    elif grain > 1:
        cut = math.lcm(grain, CUT) if tensor.encoded is None else grain
        block = max(1, METHOD_BLOCK // cut) * cut
    if tensor.encoded is not None and first.merged and not tensor.encoded.encoding.rows:
        reductions += 1  # over the results, for the one scale that they have
    elements = sum([part.elements for part in parts])
    return Span(
        tuple(parts), first.merged, tensor.dtype, elements, first.start, first.sources, tensor.call, cut, block, reductions, tensor.encoded
    )


def _grain(part: Part) -> int:
    """Elements that must stay together: of the encodings that are written and read; 1 where all is plain."""
    grain = 1 if part.tensor.encoded is None else part.tensor.encoded.encoding.grain(part.tensor.shape)
    for source in sources_of(part.sources):
        if source.encoded is not None:
            grain = math.lcm(grain, source.encoded.encoding.together(source.encoded.shape))
    return grain


def _trail(part: Part) -> Span:
    """The scales of a tensor whose last part this is."""
    tensor = part.tensor
    codes = output_bytes(tensor, tensor.elements)
    whole = part._replace(first=0, elements=tensor.elements)
    nothing = (None,) * len(part.sources)
    return Span((whole,), False, "U8", tensor.nbytes - codes, tensor.start + codes, nothing, 0, CUT, METHOD_BLOCK, 0, trails=True)
