"""Fetching what tiles need, ahead of the arithmetic: many requests under way, a bounded number of bytes."""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.tiles import SLACK, WASTE, Read, Segment, Tile, source_range, tile_reads
from paramdelta_dist.storage import Store

ALIGNMENT = 64
"""Where a piece starts in a buffer: on a cache line, and so aligned for every dtype."""


@dataclass
class FetchedTile:
    """A tile and the bytes of every model it needs. The bytes are valid until the next tile is asked for."""

    tile: Tile
    parts: list[tuple[list[Read], list[memoryview]]]
    """For each model, what was read of it, sorted by file and place, and the bytes of each read."""

    def source(self, segment: Segment, model: int) -> memoryview | None:
        """Bytes of a segment in one model; None when the model is not read for it."""
        wanted = source_range(segment, model)
        if wanted is None:
            return None
        reads, data = self.parts[model]
        place = bisect_right(reads, (wanted.file, wanted.start, sys.maxsize)) - 1
        start = wanted.start - reads[place].start
        return data[place][start : start + wanted.stop - wanted.start]


@dataclass
class _Pending:
    tile: Tile
    futures: list[list[tuple[Read, Future[memoryview]]]]
    buffers: list[mmap.mmap]


@dataclass
class TileReader:
    """Reads the tiles of one shard in order, keeping up to `in_flight` of them fetched or under way.

    Buffers are made once and reused; stores that bring their own memory leave them untouched (and unbacked).
    """

    shard: Shard
    stores: Sequence[Store]
    """One for each model."""
    tile_size: int
    in_flight: int
    pool: ThreadPoolExecutor
    bytes_read: int = 0
    requests: int = 0
    _free: list[mmap.mmap] = field(default_factory=list)

    def fetch(self, tiles: Iterable[Tile]) -> Iterator[FetchedTile]:
        """The tiles with their bytes, in order. Exceptions of a read come out at its tile."""
        waiting: deque[_Pending] = deque()
        upcoming = iter(tiles)
        try:
            while True:
                while len(waiting) < self.in_flight and (tile := next(upcoming, None)) is not None:
                    waiting.append(self._start(tile))
                if not waiting:
                    return
                parts = [([read for read, _ in model], [future.result() for _, future in model]) for model in waiting[0].futures]
                yield FetchedTile(waiting[0].tile, parts)
                parts.clear()  # the consumer may still hold the tile; its memory must not outlive its turn
                self._free += waiting.popleft().buffers
        finally:
            for pending in waiting:
                for model in pending.futures:
                    for _, future in model:
                        future.cancel()

    def _start(self, tile: Tile) -> _Pending:
        pending = _Pending(tile, [], [])
        for model in range(len(self.stores)):
            reads = tile_reads(tile, model)
            room = None
            if not self.stores[model].remote:
                pending.buffers.append(self._buffer())
                room = memoryview(pending.buffers[-1])
            futures = []
            for read in reads:
                size = read.stop - read.start
                into = None
                if room is not None and size <= len(room):
                    into, room = room[:size], room[-(-size // ALIGNMENT) * ALIGNMENT :]
                futures.append((read, self.pool.submit(self._read, model, read, into)))
                self.bytes_read += size
                self.requests += 1
            pending.futures.append(futures)
        return pending

    def _buffer(self) -> mmap.mmap:
        """Memory for what a tile needs of one model: its bytes, the gaps between them, and the alignment of each piece."""
        return self._free.pop() if self._free else mmap.mmap(-1, self.tile_size + self.tile_size // WASTE + SLACK)

    def _read(self, model: int, read: Read, into: memoryview | None) -> memoryview:
        file = self.shard.inputs[read.file].file
        return self.stores[model].read_range(file.name, read.start, read.stop, identity=file.identity, into=into)
