"""Tiles that never cut a chunk, for sums whose order must not depend on the tiles.

A chunk is MEASURE_CHUNK elements of one tensor, counted from its first; the last one is what is left.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from paramdelta_dist.planning.plan import Part, Shard, TensorPlan
from paramdelta_dist.planning.spans import find_spans
from paramdelta_dist.planning.tiles import Segment, Tile, most_elements, needs_of

MEASURE_CHUNK = 1 << 15
"""Elements that are summed at a time: few enough that a chunk of every vector stays in a core's own cache."""


class ChunkRange(NamedTuple):
    """Whole chunks of one tensor: elements [first, last) of it, which begin at element `at` of their segment."""

    tensor: TensorPlan
    first: int
    last: int
    at: int


class ChunkedTile(NamedTuple):
    """A tile that is read but has no place in an output (start and stop are 0), and the pieces of each of its segments."""

    tile: Tile
    pieces: tuple[tuple[ChunkRange, ...], ...]


def cut_chunks(shard: Shard, *, tile_size: int) -> Iterator[ChunkedTile]:
    """Every merged element of the shard exactly once and in order, in tiles that are cut between chunks.

    `tile_size` bytes bound what a tile needs of each model. Raises ValueError when that cannot hold a chunk.
    """
    if tile_size < MEASURE_CHUNK * 8:
        raise ValueError(f"a tile of {tile_size} bytes cannot hold a chunk of {MEASURE_CHUNK} elements")
    segments: list[Segment] = []
    pieces: list[tuple[ChunkRange, ...]] = []
    filled: list[int] = []  # bytes so far of each model
    for span in find_spans(shard):
        if not span.merged:
            continue
        ends = list(accumulate(part.elements for part in span.parts))
        first = 0
        while first < span.elements:
            filled = filled or [0] * (1 + len(span.sources))
            room = most_elements(span, span.elements - first, [sys.maxsize, *[tile_size - used for used in filled[1:]]])
            last = _cut(ends, first, first + room)
            if last == first:
                if not segments:
                    raise ValueError(f"a tile of {tile_size} bytes cannot hold a chunk of {span.parts[0].tensor.name}")
                yield ChunkedTile(Tile(0, 0, tuple(segments)), tuple(pieces))
                segments, pieces, filled = [], [], []
                continue
            segments.append(Segment(span, first, last))
            pieces.append(tuple(_pieces(span.parts, ends, first, last)))
            filled = [used + need for used, need in zip(filled, needs_of(span, last - first), strict=True)]
            first = last
    if segments:
        yield ChunkedTile(Tile(0, 0, tuple(segments)), tuple(pieces))


def _cut(ends: list[int], first: int, last: int) -> int:
    """The last place in [first, last] that is the end of a tensor or of a whole chunk in one; `ends` of the span's tensors."""
    if last == ends[-1]:
        return last
    start = ends[place - 1] if (place := bisect_right(ends, last)) else 0
    return max(first, start + (last - start) // MEASURE_CHUNK * MEASURE_CHUNK)


def _pieces(parts: tuple[Part, ...], ends: list[int], first: int, last: int) -> Iterator[ChunkRange]:
    place, at = bisect_right(ends, first), first
    while at < last:
        start, stop = ends[place] - parts[place].elements, min(ends[place], last)
        yield ChunkRange(parts[place].tensor, at - start, stop - start, at - first)
        place, at = place + 1, stop
