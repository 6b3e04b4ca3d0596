"""Cutting a shard into tiles, the unit of memory, and finding the byte ranges of the inputs that a tile needs.

A tile is a run of output bytes. Small tensors share one, big ones are cut into many. No buffer of a tile, in or out,
is larger than the tile size, whatever the dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.runs import Run, find_runs

CUT = 64
"""Runs are cut at multiples of this many elements, so that pieces stay aligned."""
MAX_GAP = 64 << 10
"""Unneeded bytes between two ranges that may be read along with them."""
WASTE = 8
"""A gap is read only when it is at most one part in this many of the range behind it: a bound on what is read in vain."""
SLACK = 256 << 10
"""Room in a buffer for aligning pieces; a tile of more pieces than that takes fresh memory for the rest."""

MOST_SEGMENTS = 512
"""Segments of a tile: rows of a vocabulary in another order are a segment each, and a request for each model."""


class Segment(NamedTuple):
    """Elements [first, last) of one run."""

    run: Run
    first: int
    last: int


class Tile(NamedTuple):
    """Output bytes [start, stop) of a shard's file, made of whole segments in order."""

    start: int
    stop: int
    segments: tuple[Segment, ...]


class Read(NamedTuple):
    """One request: bytes [start, stop) of an input file, by its position in `Shard.inputs`."""

    file: int
    start: int
    stop: int


def cut_tiles(shard: Shard, *, tile_size: int) -> Iterator[Tile]:
    """Every data byte of the shard exactly once and in order; `tile_size` bytes bound each buffer of a tile.

    Raises ValueError when the tile size cannot hold CUT elements.
    """
    for stretch in _stretches(shard, tile_size):
        yield stretch.tile
        (segment, *_), size = stretch.tile.segments, stretch.tile.stop - stretch.tile.start
        for number in range(1, stretch.tiles):
            start, step = stretch.tile.start + number * size, number * (segment.last - segment.first)
            yield Tile(start, start + size, (Segment(segment.run, segment.first + step, segment.last + step),))


def count_requests(shard: Shard, *, tile_size: int) -> int:
    """How many reads the tiles of a shard take, without making all of them."""
    return sum(
        stretch.tiles * sum(len(tile_reads(stretch.tile, model)) for model in range(len(stretch.tile.segments[0].run.sources)))
        for stretch in _stretches(shard, tile_size)
    )


class _Stretch(NamedTuple):
    """`tiles` tiles in a row that are alike; the first of them. More than one hold a single segment each."""

    tile: Tile
    tiles: int


def _stretches(shard: Shard, tile_size: int) -> Iterator[_Stretch]:
    if tile_size < CUT * 8:
        raise ValueError(f"a tile of {tile_size} bytes cannot hold {CUT} elements")
    segments: list[Segment] = []
    filled: list[int] = []  # bytes so far in the output and of each model
    start = position = len(shard.header)
    for run in find_runs(shard):
        widths = _widths(run)
        first = 0
        while first < run.elements:
            filled = filled or [0] * len(widths)
            room = min((tile_size - used) // width for used, width in zip(filled, widths, strict=True) if width)
            last = run.elements if run.elements - first <= room else first + room // CUT * CUT
            if last == first or len(segments) == MOST_SEGMENTS:
                yield _Stretch(Tile(start, position, tuple(segments)), 1)
                start, segments, filled = position, [], []
                continue
            position += (last - first) * widths[0]
            segments.append(Segment(run, first, last))
            if len(segments) == 1 and last < run.elements:
                alike = (run.elements - first - 1) // (last - first)
                yield _Stretch(Tile(start, position, tuple(segments)), alike)
                first += alike * (last - first)
                start = position = start + alike * (position - start)
                segments, filled = [], []
                continue
            filled = [used + (last - first) * width for used, width in zip(filled, widths, strict=True)]
            first = last
    if segments:
        yield _Stretch(Tile(start, position, tuple(segments)), 1)


def _widths(run: Run) -> list[int]:
    """Bytes of an element in the output and in each model; 0 for a model that is not read."""
    return [DTYPES[run.dtype].itemsize, *(DTYPES[source.dtype].itemsize if source else 0 for source in run.sources)]


def source_range(segment: Segment, model: int) -> Read | None:
    """The bytes of a segment in one model; None when the model is not read for it."""
    source = segment.run.sources[model]
    if source is None:
        return None
    width = DTYPES[source.dtype].itemsize
    return Read(source.file, source.start + segment.first * width, source.start + segment.last * width)


def tile_reads(tile: Tile, model: int) -> list[Read]:
    """The requests that fetch what a tile needs of one model, neighbours joined; sorted by file and place."""
    needed = (source_range(segment, model) for segment in tile.segments)
    return coalesce([read for read in needed if read is not None])


def coalesce(reads: Sequence[Read]) -> list[Read]:
    """Join ranges of one file that touch, overlap, or have a gap that is cheaper to read than to ask again for."""
    joined: list[Read] = []
    for read in sorted(reads):
        if joined and joined[-1].file == read.file:
            last = joined[-1]
            gap = read.start - last.stop
            if gap <= min(MAX_GAP, (read.stop - read.start) // WASTE):
                joined[-1] = Read(last.file, last.start, max(last.stop, read.stop))
                continue
        joined.append(read)
    return joined
