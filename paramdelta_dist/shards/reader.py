"""Fetching what tiles need, ahead of the arithmetic: many requests under way, a bounded number of bytes."""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from paramdelta_dist.engine.metrics import METER, READ_BYTES
from paramdelta_dist.planning.memory import LOCAL_READERS, REQUESTS_IN_FLIGHT
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.sources import Read
from paramdelta_dist.planning.tiles import SLACK, WASTE, Segment, Tile, source_ranges, tile_reads
from paramdelta_dist.shards.buffers import BufferPool
from paramdelta_dist.storage import StorageConfig, Store, open_store

ALIGNMENT = 64
"""Pieces start in a buffer at multiples of this many bytes: on a cache line, and so aligned for every dtype."""


def buffer_size(tile_size: int) -> int:
    """Bytes of what a tile needs of one model: its own, the gaps between them, and the alignment of each piece."""
    return tile_size + tile_size // WASTE + SLACK


@dataclass
class FetchedTile:
    """A tile and the bytes of every model it needs, which are valid until it is released."""

    tile: Tile
    parts: list[tuple[list[Read], list[memoryview]]]
    """For each model, what was read of it, sorted by file and place, and the bytes of each read."""

    def arrays(self, segment: Segment, model: int) -> tuple[memoryview, ...]:
        """Bytes of each array of a segment in one model: of plain numbers one; none when the model is not read for it."""
        return tuple([self._bytes(wanted, model) for wanted in source_ranges(segment, model)])

    def _bytes(self, wanted: Read, model: int) -> memoryview:
        reads, data = self.parts[model]
        place = bisect_right(reads, (wanted.file, wanted.start, sys.maxsize)) - 1
        start = wanted.start - reads[place].start
        if wanted.stop <= reads[place].stop:
            return data[place][start : start + wanted.stop - wanted.start]
        joined = bytearray(data[place][start:])  # a part of a tile that lies across requests
        while len(joined) < wanted.stop - wanted.start:
            place += 1
            joined += data[place][: wanted.stop - wanted.start - len(joined)]
        return memoryview(joined)


@dataclass
class Fetching:
    """A tile whose bytes are on their way."""

    tile: Tile
    reads: list[list[Read]]
    """Of each model."""
    futures: list[list[Future[memoryview]]]
    buffers: list[mmap.mmap]

    def result(self) -> FetchedTile:
        """The tile once all of it is there. Raises what a read raised."""
        data = [[future.result() for future in of_model] for of_model in self.futures]
        return FetchedTile(self.tile, list(zip(self.reads, data, strict=True)))

    def cancel(self) -> None:
        """Begin no read that has not begun."""
        for of_model in self.futures:
            for future in of_model:
                future.cancel()


class Reader(Protocol):
    """Fetches tiles for a pipeline."""

    pool: ThreadPoolExecutor
    bytes_read: int
    requests: int

    def start(self, tile: Tile) -> Fetching:
        """Ask for what a tile needs. It is to be released."""
        ...

    def release(self, fetching: Fetching) -> None:
        """Take back a tile that was started. No view of its bytes may be used from here on."""
        ...

    def stop(self) -> None:
        """Begin no read that has not begun, so that nobody waits for it longer than for those under way."""
        ...


@dataclass
class TileReader:
    """Reads tiles of one shard, into reused buffers where a store reads into its callers' memory."""

    shard: Shard
    stores: Sequence[Store]
    """One for each model."""
    buffers: BufferPool
    """Of `buffer_size` bytes each."""
    pool: ThreadPoolExecutor
    """Its threads are the requests under way."""
    bytes_read: int = 0
    requests: int = 0

    def start(self, tile: Tile) -> Fetching:
        """Ask for what a tile needs. It owns its buffers until it is released."""
        fetching, before = Fetching(tile, [], [], []), self.bytes_read
        for model in range(len(self.stores)):
            reads = tile_reads(tile, model)
            room = None
            if not self.stores[model].remote:
                fetching.buffers.append(self.buffers.take())
                room = memoryview(fetching.buffers[-1])
            futures = []
            for read in reads:
                size = read.stop - read.start
                into = None
                if room is not None and size <= len(room):
                    into, room = room[:size], room[-(-size // ALIGNMENT) * ALIGNMENT :]
                futures.append(self.pool.submit(self._read, read, into))
                self.bytes_read += size
                self.requests += 1
            fetching.reads.append(reads)
            fetching.futures.append(futures)
        METER.add(READ_BYTES, self.bytes_read - before)
        return fetching

    def release(self, fetching: Fetching) -> None:
        """Take back the memory of a tile, all of whose reads have ended. No view of it may be used from here on."""
        for of_model in fetching.futures:
            of_model.clear()  # a store's own memory goes with the last view of it
        for buffer in fetching.buffers:
            self.buffers.give_back(buffer)

    def stop(self) -> None:
        """Begin no read that has not begun."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, read: Read, into: memoryview | None) -> memoryview:
        source = self.shard.inputs[read.file]  # of another model where that one's rows stand in for this one's
        file = source.file
        return self.stores[source.model].read_range(file.name, read.start, read.stop, identity=file.identity, into=into)


@contextmanager
def open_reader(
    shard: Shard, models: Sequence[str], storage: StorageConfig, *, tile_size: int, pinned: bool = False
) -> Iterator[TileReader]:
    """A reader of a shard's inputs, with buffers for tiles of `tile_size` bytes, locked for a GPU where they are `pinned`. Its
    threads and buffers are gone when it is left."""
    stores = [open_store(url, storage) for url in models]
    requests = REQUESTS_IN_FLIGHT if any(store.remote for store in stores) else LOCAL_READERS
    buffers = BufferPool(buffer_size(tile_size), pinned=pinned)
    pool = ThreadPoolExecutor(requests, thread_name_prefix="read")
    try:
        yield TileReader(shard, stores, buffers, pool)
    finally:
        pool.shutdown(cancel_futures=True)
        buffers.close()
