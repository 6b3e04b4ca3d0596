"""From tiles to their bytes: reads under way ahead, arithmetic on several threads, results in order.

What is fetched and what is made is bounded: `tiles_in_flight` tiles of input, and `OUTPUTS` buffers of output for each
thread, the one the consumer looks at included. All memory is made once.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

from paramdelta_dist.execution.buffers import BufferPool
from paramdelta_dist.execution.making import Job, TileMaker
from paramdelta_dist.execution.metering import METER, STAGE_SECONDS
from paramdelta_dist.execution.reader import Fetching, TileReader, buffer_size
from paramdelta_dist.kernels.merging import one_thread
from paramdelta_dist.planning.memory import LOCAL_READERS, OUTPUTS, REQUESTS_IN_FLIGHT
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.tiles import Tile
from paramdelta_dist.storage import open_store


class MadeTile(NamedTuple):
    """A tile and its bytes in the output."""

    tile: Tile
    data: memoryview
    """Valid until the next tile is asked for, and longer as long as a buffer of it is held."""


class TilePipeline:
    """Makes tiles of one shard, in threads of its own."""

    def __init__(self, job: Job, reader: TileReader, outputs: BufferPool, makers: ThreadPoolExecutor) -> None:
        self.reader = reader
        self.nonfinite = 0
        """Elements let through that are NaN or infinite."""
        self._job, self._threads = job, makers
        self._makers: SimpleQueue[TileMaker] = SimpleQueue()
        for _ in range(job.threads):
            self._makers.put(TileMaker(job))
        self._outputs = outputs

    def make(self, tiles: Iterable[Tile]) -> Iterator[MadeTile]:
        """The tiles with their bytes, in order. What a read or the arithmetic raises comes out at its tile."""
        upcoming = iter(tiles)
        fetching: deque[Fetching] = deque()
        making: deque[tuple[Tile, mmap.mmap, Future[int]]] = deque()
        try:
            while True:
                while len(fetching) + len(making) < self._job.tiles_in_flight and (tile := next(upcoming, None)) is not None:
                    fetching.append(self.reader.start(tile))
                while fetching and len(making) < OUTPUTS * self._job.threads:
                    output = self._outputs.take()
                    making.append((fetching[0].tile, output, self._threads.submit(self._make, fetching.popleft(), output)))
                if not making:
                    return
                tile, output, made = making.popleft()
                self.nonfinite += made.result()
                finished = MadeTile(tile, memoryview(output)[: tile.stop - tile.start])
                yield finished
                self._outputs.give_back_when_released(output, finished.data)
        finally:
            for unwanted in fetching:
                unwanted.cancel()

    def _make(self, fetching: Fetching, output: mmap.mmap) -> int:
        """Returns how many elements of the tile are not finite."""
        began = time.perf_counter()
        fetched, maker = fetching.result(), self._makers.get()
        there = time.perf_counter()
        METER.add(STAGE_SECONDS, there - began, "read")
        try:
            return maker.make(fetched, memoryview(output)[: fetched.tile.stop - fetched.tile.start])
        finally:
            METER.add(STAGE_SECONDS, time.perf_counter() - there, "compute")
            self._makers.put(maker)
            fetched.parts.clear()
            self.reader.release(fetching)


@contextmanager
def tile_pipeline(job: Job, shard: Shard) -> Iterator[TilePipeline]:
    """A pipeline for the tiles of a shard. Its threads are gone when it is left."""
    stores = [open_store(url, job.storage) for url in job.models]
    requests = REQUESTS_IN_FLIGHT if any(store.remote for store in stores) else LOCAL_READERS
    pinned = job.device == "cuda"
    inputs, outputs = BufferPool(buffer_size(job.tile_size), pinned=pinned), BufferPool(job.tile_size, pinned=pinned)
    makers = ThreadPoolExecutor(job.threads, thread_name_prefix="make", initializer=one_thread)
    readers = ThreadPoolExecutor(requests, thread_name_prefix="read")
    try:
        yield TilePipeline(job, TileReader(shard, stores, inputs, readers), outputs, makers)
    finally:
        readers.shutdown(wait=False, cancel_futures=True)  # first: makers may wait for reads
        makers.shutdown(cancel_futures=True)
        readers.shutdown()
        inputs.close()
        outputs.close()
