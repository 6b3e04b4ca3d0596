"""Cutting a shard into tiles, the unit of memory, and finding the byte ranges of the inputs that a tile needs.

A tile is a span of output bytes. Small tensors share one, big ones are cut into many. No buffer of a tile, in or out,
is larger than the tile size, whatever the dtypes.

A tensor whose method looks at all of it first (a reduction) is in one tile if it fits; then its bytes are read once. If it does
not fit it is streamed: read as tiles of its own once for each reduction, and then once more to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from paramdelta_dist.kernels.encodings import Encoding
from paramdelta_dist.methods import Scope
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.sources import Read, Source, Stack
from paramdelta_dist.planning.spans import CUT, Span, find_spans

MAX_GAP = 64 << 10
"""Unneeded bytes between two ranges that may be read along with them."""
WASTE = 8
"""A gap is read only when it is at most one part in this many of the range behind it: a bound on what is read in vain."""
REQUEST = 16 << 20
"""Bytes of the largest request that is made for a part of one tensor."""
LARGEST_REQUEST = REQUEST + REQUEST // WASTE
"""Neighbours are joined up to this."""
SLACK = 256 << 10
"""Room in a buffer for aligning pieces; a tile of more pieces than that takes fresh memory for the rest."""

MOST_SEGMENTS = 512
"""Segments of a tile: rows of a vocabulary in another order are a segment each, and a request for each model."""


class Segment(NamedTuple):
    """Elements [first, last) of one span."""

    span: Span
    first: int
    last: int

    def blocks(self) -> Iterator[Segment]:
        """It, which starts where a block starts, as the blocks of its span."""
        for first in range(self.first, self.last, self.span.block):
            yield Segment(self.span, first, min(first + self.span.block, self.last))


class Tile(NamedTuple):
    """Output bytes [start, stop) of a shard's file, made of whole segments in order."""

    start: int
    stop: int
    segments: tuple[Segment, ...]


class Step(NamedTuple):
    """A tile to be fetched: either to be made, or to be looked at first."""

    tile: Tile
    reduction: int | None = None
    """Which reduction over its one tensor it is a part of; None for a tile of the output."""
    last: bool = False
    """Whether that reduction ends with it."""


def cut_tiles(shard: Shard, *, tile_size: int) -> Iterator[Tile]:
    """Every data byte of the shard exactly once and in order; `tile_size` bytes bound each buffer of a tile.

    Raises ValueError when the tile size cannot hold CUT elements.
    """
    for stretch in _stretches(shard, tile_size):
        yield stretch.tile
        (segment, *_), size = stretch.tile.segments, stretch.tile.stop - stretch.tile.start
        for number in range(1, stretch.tiles):
            start, step = stretch.tile.start + number * size, number * (segment.last - segment.first)
            yield Tile(start, start + size, (Segment(segment.span, segment.first + step, segment.last + step),))


def steps_of(tiles: Iterable[Tile], *, tile_size: int) -> Iterator[Step]:
    """The tiles, in order, and before the first one with a part of a tensor that is streamed, the reductions over that tensor."""
    streamed: Span | None = None
    for tile in tiles:
        for segment in tile.segments:
            if is_streamed(segment.span, tile_size) and (streamed is None or streamed.start != segment.span.start):
                streamed = segment.span
                for reduction in range(streamed.reductions):
                    for part in reduction_tiles(streamed, tile_size=tile_size):
                        yield Step(part, reduction, part.segments[0].last == streamed.elements)
        yield Step(tile)


def reduction_tiles(span: Span, *, tile_size: int) -> Iterator[Tile]:
    """The whole of a span as tiles of its own."""
    room = _room(span, tile_size)
    for first in range(0, span.elements, room):
        last = min(first + room, span.elements)
        start, stop = span.start + span.output_bytes(first), span.start + span.output_bytes(last)
        yield Tile(start, stop, (Segment(span, first, last),))


def is_streamed(span: Span, tile_size: int) -> bool:
    """Whether a span has to be reduced and is too large for a tile."""
    return span.reductions > 0 and max(needs_of(span, span.elements)) > tile_size


def _room(span: Span, tile_size: int) -> int:
    """Elements of a span in a tile of its own. Raises ValueError when not even one cut fits."""
    room = most_elements(span, span.elements, [tile_size] * (1 + len(span.sources)))
    if not room:
        raise ValueError(f"a tile of {tile_size} bytes cannot hold {span.cut} elements of {span.parts[0].tensor.name}")
    return room


def bytes_to_reduce(shard: Shard, *, tile_size: int) -> int:
    """Bytes that reductions over streamed tensors and over the whole model read, besides what making the tensors reads."""
    over_model, _ = reductions_of(shard)
    return _bytes_to_stream(shard, tile_size) + (over_model * bytes_of_reduction(shard) if over_model else 0)


def bytes_to_make(shard: Shard, *, tile_size: int) -> int:
    """Bytes that are moved to make a shard: its inputs, those of streamed tensors once more for each reduction, and its file."""
    return shard.bytes_to_read + _bytes_to_stream(shard, tile_size) + shard.size


def bytes_of_reduction(shard: Shard) -> int:
    """Bytes that one reduction over the model reads of a shard: all that is merged."""
    return sum(_input_bytes(span) for span in find_spans(shard) if span.merged)


def _bytes_to_stream(shard: Shard, tile_size: int) -> int:
    """Bytes that reductions over streamed tensors read."""
    _, over_tensors = reductions_of(shard)
    spans = find_spans(shard) if over_tensors else ()
    return sum(span.reductions * _input_bytes(span) for span in spans if is_streamed(span, tile_size))


def _input_bytes(span: Span) -> int:
    return sum([source.nbytes(span.elements) for source in span.sources if source is not None])


def reductions_of(shard: Shard) -> tuple[int, int]:
    """The most reductions that any of its tensors needs over the model, the same for all, and over itself."""
    scopes = [[reduction.scope for reduction in call.reductions] for call in shard.calls] or [[]]
    scale = any(tensor.encoded is not None and not tensor.encoded.encoding.rows for tensor in shard.tensors)
    return max(each.count(Scope.MODEL) for each in scopes), max(each.count(Scope.TENSOR) for each in scopes) + scale


class Stretch(NamedTuple):
    """`tiles` tiles in a row that are alike; the first of them. More than one hold a single segment each."""

    tile: Tile
    tiles: int


def _stretches(shard: Shard, tile_size: int) -> Iterator[Stretch]:
    cutter = Cutter(tile_size, len(shard.header))
    for span in find_spans(shard):
        yield from cutter.add(span)
    yield from cutter.rest()


class Cutter:
    """The tile that is being filled, from one span to the next."""

    def __init__(self, tile_size: int, position: int) -> None:
        """`position` is the first byte of the first tile. Raises ValueError when the tile size cannot hold CUT elements."""
        if tile_size < CUT * 8:
            raise ValueError(f"a tile of {tile_size} bytes cannot hold {CUT} elements")
        self._tile_size = tile_size
        self._start = self._position = position
        self._segments: list[Segment] = []
        self._filled: list[int] = []
        """Bytes so far in the output and of each model."""

    def copy(self) -> Cutter:
        """The same state, to go on from in another way."""
        other = Cutter(self._tile_size, self._start)
        other._position, other._segments, other._filled = self._position, [*self._segments], self._filled
        return other

    def takes(self, span: Span) -> bool:
        """Whether a span that stands apart goes into the tile that is being filled, and does not begin one."""
        return 0 < len(self._segments) < MOST_SEGMENTS and self._last(span, 0) == span.elements

    def add(self, span: Span) -> Iterator[Stretch]:
        """The tiles that are full with the next span."""
        first = 0
        apart = span.reductions or span.encoded is not None  # so that all codes that are alike are cut alike
        while first < span.elements:
            last, segments = self._last(span, first), self._segments
            full = last == first or len(segments) == MOST_SEGMENTS
            if segments and (full or (apart and first == 0 and last < span.elements)):
                yield from self.rest()
                continue
            if last == first:
                _room(span, self._tile_size)  # raises
            self._position += span.output_bytes(last) - span.output_bytes(first)
            segments.append(Segment(span, first, last))
            if len(segments) == 1 and last < span.elements:
                alike, size = (span.elements - first - 1) // (last - first), self._position - self._start
                yield Stretch(Tile(self._start, self._position, tuple(segments)), alike)
                first += alike * (last - first)
                self._close(self._start + alike * size)
                continue
            needs = needs_of(span, last - first)
            self._filled = [used + need for used, need in zip(self._filled, needs, strict=True)] if self._filled else needs
            first = last

    def rest(self) -> Iterator[Stretch]:
        """The tile that is being filled, as it is; the next one is empty."""
        if self._segments:
            yield Stretch(Tile(self._start, self._position, tuple(self._segments)), 1)
            self._close(self._position)

    def _last(self, span: Span, first: int) -> int:
        """The element up to which a span fits from `first` on."""
        filled = self._filled or [0] * (1 + len(span.sources))
        return first + most_elements(span, span.elements - first, [self._tile_size - used for used in filled])

    def _close(self, position: int) -> None:
        self._start = self._position = position
        self._segments, self._filled = [], []


def needs_of(span: Span, elements: int) -> list[int]:
    """The most bytes that so many of its elements, following one another, take in the output and in each model."""
    return [span.output_bytes(elements), *[source.room(elements) if source else 0 for source in span.sources]]


def most_elements(span: Span, left: int, free: list[int]) -> int:
    """The most of the `left` elements of a span that take no more than is `free` of each buffer, in the order of `needs_of`: all
    of them, or a multiple of its cut."""
    if span.is_plain:  # then bytes are elements times a width, and there is nothing to search for
        room = min(room // need for need, room in zip(needs_of(span, 1), free, strict=True) if need)
        return left if left <= room else room // span.cut * span.cut
    most = min(_most(source, left, span.cut, room) for source, room in zip(span.sources, free[1:], strict=True) if source is not None)
    while most and span.output_bytes(most) > free[0]:
        most = free[0] * most // span.output_bytes(most) // span.cut * span.cut
    return most


def _most(source: Source | Stack, left: int, cut: int, room: int) -> int:
    """The most elements of one source, all that are `left` or a multiple of `cut`, that take no more than `room` bytes."""
    if isinstance(source, Stack):
        return _bisected(source.room, left, cut, room)
    if source.encoded is None:
        most = room // source.room(1)
        return left if left <= most else most // cut * cut
    return _most_encoded(source.encoded.encoding, source.encoded.shape, left, cut, room)


@lru_cache(1 << 12)
def _most_encoded(encoding: Encoding, shape: tuple[int, ...], left: int, cut: int, room: int) -> int:
    return _bisected(lambda elements: encoding.room(shape, elements), left, cut, room)


def _bisected(takes: Callable[[int], int], left: int, cut: int, room: int) -> int:
    if takes(left) <= room:
        return left
    low, high = 0, -(-left // cut)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle * cut) <= room else (low, middle)
    return low * cut


def source_ranges(segment: Segment, model: int) -> tuple[Read, ...]:
    """The bytes of each array of a segment in one model; none when the model is not read for it."""
    source = segment.span.sources[model]
    return () if source is None else source.ranges(segment.first, segment.last)


def tile_reads(tile: Tile, model: int) -> list[Read]:
    """The requests that fetch what a tile needs of one model, neighbours joined; sorted by file and place. Every block of a
    segment, counted from the segment's start, lies in one of them."""
    reads = [read for segment in tile.segments for read in _segment_reads(segment, model)]
    return coalesce(reads) if len(reads) > 1 else reads


def _segment_reads(segment: Segment, model: int) -> list[Read]:
    """The bytes of a segment in one model, as requests that are not too large."""
    whole = source_ranges(segment, model)
    if all(read.stop - read.start <= REQUEST for read in whole) and segment.span.is_plain:
        return list(whole)
    step = segment.span.block  # each block has to lie in one request, and so have the scales of its codes
    largest = max([read.stop - read.start for block in (segment._replace(last=min(segment.first + step, segment.last)),)
                   for read in source_ranges(block, model)] or [1])  # fmt: skip
    step *= max(1, REQUEST // max(1, largest))
    found: list[Read] = []
    for first in range(segment.first, segment.last, step):
        found += source_ranges(Segment(segment.span, first, min(first + step, segment.last)), model)
    return found


def coalesce(reads: Sequence[Read]) -> list[Read]:
    """Join ranges of one file that touch, overlap, or have a gap that is cheaper to read than to ask again for, as long as
    what comes of it is no larger than LARGEST_REQUEST."""
    joined: list[Read] = []
    for read in sorted(reads):
        if joined and joined[-1].file == read.file:
            last = joined[-1]
            gap, stop = read.start - last.stop, max(last.stop, read.stop)
            if gap < 0 or (gap <= min(MAX_GAP, (read.stop - read.start) // WASTE) and stop - last.start <= LARGEST_REQUEST):
                joined[-1] = Read(last.file, last.start, stop)
                continue
        joined.append(read)
    return joined
