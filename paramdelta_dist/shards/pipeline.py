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
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

from paramdelta_dist.engine.metrics import METER, STAGE_SECONDS
from paramdelta_dist.methods import Reduction
from paramdelta_dist.planning.memory import OUTPUTS
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.tiles import Step, Tile
from paramdelta_dist.shards.buffers import BufferPool
from paramdelta_dist.shards.compute import MergeContext, Scales, TileComputer
from paramdelta_dist.shards.inputs import info_of
from paramdelta_dist.shards.probe import ShardProbe
from paramdelta_dist.shards.reader import Fetching, Reader, TileReader, open_reader
from paramdelta_dist.shards.whole_scale import WHOLE_SCALE


class MadeTile(NamedTuple):
    """A tile and its bytes in the output."""

    tile: Tile
    data: memoryview
    """Valid until the next tile is asked for, and longer as long as a buffer of it is held."""


class _Making(NamedTuple):
    """A step whose bytes are there, in the hands of a maker."""

    step: Step
    output: mmap.mmap | None
    """Memory in which the tile is made; None where it is only reduced."""
    result: Future[Any]


class TilePipeline:
    """Makes tiles of one shard, in threads of its own."""

    def __init__(
        self, job: MergeContext, shard: Shard, reader: Reader, outputs: BufferPool, makers: ThreadPoolExecutor, probe: ShardProbe | None
    ) -> None:
        self.reader = reader
        self.nonfinite = 0
        """Elements let through that are NaN or infinite."""
        self._job, self._shard, self._threads = job, shard, makers
        self._makers: SimpleQueue[TileComputer] = SimpleQueue()
        for _ in range(job.threads):
            self._makers.put(TileComputer(job, shard))
        self._outputs, self._probe = outputs, probe
        self._reducing: list[Any] = []
        """The total so far of the reduction that goes on, once there is one."""
        self._statistics: tuple[Any, ...] = job.statistics
        """Of the tensor that is streamed."""
        self._scales: dict[int, bytearray] = {}
        """Of tensors, by their first byte in the file, whose codes are being made: the scales decided so far."""

    def make(self, steps: Iterable[Step]) -> Iterator[MadeTile]:
        """The tiles of steps with their bytes, in order. What a read or the arithmetic raises comes out at its tile.

        Reductions over a streamed tensor come before the first of its tiles; each ends before what follows it is begun.
        """
        upcoming = iter(steps)
        fetching: deque[tuple[Step, Fetching]] = deque()
        making: deque[_Making] = deque()
        try:
            while True:
                while len(fetching) + len(making) < self._job.tiles_in_flight and (step := next(upcoming, None)) is not None:
                    fetching.append((step, self.reader.start(step.tile)))
                while fetching and len(making) < OUTPUTS * self._job.threads and self._may_begin(fetching[0][0], making):
                    making.append(self._begin(*fetching.popleft()))
                if not making:
                    return
                step, output, made = making.popleft()
                if output is None:
                    self._add_up(step, made.result())
                    continue
                outcome, seen = made.result()
                self.nonfinite += outcome.nonfinite
                if self._probe is not None:
                    self._probe.add(seen, step.tile.stop - step.tile.start)
                finished = MadeTile(step.tile, memoryview(output)[: step.tile.stop - step.tile.start])
                self._collect(outcome.scales)
                self._put_scales(finished)
                yield finished
                self._outputs.give_back_when_released(output, finished.data)
        finally:
            for _, unwanted in fetching:
                unwanted.cancel()

    def total(self, steps: Iterable[Step]) -> Any:
        """The total of the next reduction over the model for these steps; None where there are none."""
        for _ in self.make(steps):
            raise AssertionError("a reduction makes no tile")
        return self._reducing[0] if self._reducing else None

    def _collect(self, scales: Iterable[Scales]) -> None:
        """Keep scales, which come in the order of their codes, until these are all there. Of a tensor whose first codes are not
        made, because only some tiles are wanted, none are kept."""
        for tensor, first, data in scales:
            if first == 0:
                self._scales[tensor] = bytearray()
            if tensor in self._scales:
                self._scales[tensor] += data

    def _put_scales(self, made: MadeTile) -> None:
        """Fill the places for scales in a tile, all codes before which have been made."""
        for segment in made.tile.segments:
            span = segment.span
            if span.trails:
                tensor, at = span.parts[0].tensor, span.start + segment.first - made.tile.start
                held = self._scales[tensor.start]
                assert len(held) == span.elements, f"{tensor.name}: {len(held)} bytes of scales were made, {span.elements} are planned"
                made.data[at : at + segment.last - segment.first] = held[segment.first : segment.last]
                if segment.last == span.elements:
                    del self._scales[tensor.start]

    def _may_begin(self, step: Step, making: deque[_Making]) -> bool:
        """Whether all that `step` needs to know is known: no other reduction is going on, and none of a tensor that is still made."""
        return not making or making[-1].step.reduction == step.reduction or (making[-1].step.reduction is None and step.reduction is None)

    def _begin(self, step: Step, fetching: Fetching) -> _Making:
        output = self._outputs.take() if step.reduction is None else None
        if step.reduction == 0 and step.tile.segments[0].first == 0:
            self._statistics = self._job.statistics
        return _Making(step, output, self._threads.submit(self._work, step, fetching, output, self._statistics))

    def _work(self, step: Step, fetching: Fetching, output: mmap.mmap | None, statistics: tuple[Any, ...]) -> Any:
        """The outcome, and the probe's measurement; of a tile that is reduced its partials."""
        began = time.perf_counter()
        fetched, maker = fetching.result(), self._makers.get()
        there = time.perf_counter()
        METER.add(STAGE_SECONDS, there - began, "read")
        try:
            if output is not None:
                made = memoryview(output)[: step.tile.stop - step.tile.start]
                outcome = maker.make(fetched, made, statistics)
                return outcome, None if self._probe is None else self._probe.measure(fetched, made)
            reduction = self._reduction(step, statistics)
            return [partial for segment in step.tile.segments for partial in maker.reduce(fetched, segment, reduction, statistics)]
        finally:
            METER.add(STAGE_SECONDS, time.perf_counter() - there, "compute")
            self._makers.put(maker)
            fetched.parts.clear()
            self.reader.release(fetching)

    def _add_up(self, step: Step, partials: list[Any]) -> None:
        reduction = self._reduction(step, self._statistics)
        for partial in partials:
            self._reducing = [reduction.combine(self._reducing[0], partial) if self._reducing else partial]
        if step.last:
            span = step.tile.segments[0].span
            info = info_of(span, self._shard.calls[span.call], self._statistics)
            self._statistics += (reduction.finalize(self._reducing[0], info),)
            self._reducing = []

    def _reduction(self, step: Step, statistics: tuple[Any, ...]) -> Reduction:
        """The one that a step is a part of, which comes after those that found `statistics`."""
        of_method = self._shard.calls[step.tile.segments[0].span.call].reductions
        return of_method[len(statistics)] if len(statistics) < len(of_method) else WHOLE_SCALE


def tile_reader(context: MergeContext, shard: Shard) -> AbstractContextManager[TileReader]:
    """The reader of a shard's inputs, as `open_reader` opens it."""
    return open_reader(shard, context.models, context.storage, tile_size=context.tile_size, pinned=context.device == "cuda")


@contextmanager
def tile_pipeline(job: MergeContext, shard: Shard, reader: Reader, probe: ShardProbe | None = None) -> Iterator[TilePipeline]:
    """A pipeline for the tiles of a shard, at which `probe` looks. Its threads are gone when it is left."""
    outputs = BufferPool(job.tile_size, pinned=job.device == "cuda")
    makers = ThreadPoolExecutor(job.threads, thread_name_prefix="make")
    try:
        yield TilePipeline(job, shard, reader, outputs, makers, probe)
    finally:
        reader.stop()  # first: makers may wait for reads
        makers.shutdown(cancel_futures=True)
        outputs.close()
