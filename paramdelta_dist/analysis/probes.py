"""The report of a merge: deltas measured as they pass by, on a sample, and who made which shard when.

Of every 64 chunks of a tensor one is measured, always the same: so the merge is hardly slower, and the figures are those of
`analyze` up to the sample. What a shard showed lies beside its receipt until all are done, so that an interrupted merge
has the whole report too. In a sweep it is what each point writes that is measured, against the inputs; points are compared
afterwards, by what each has left beside its own receipts, whenever it was made.
"""

from __future__ import annotations

import io
import json
import math
import os
import socket
import time
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, NamedTuple

import numpy as np

from paramdelta_dist.analysis.survey import TileMeasurer
from paramdelta_dist.errors import NotFound
from paramdelta_dist.kernels.measure import Floats, Measured, Vectors
from paramdelta_dist.kernels.sketch import LENGTH, add_to_sketch
from paramdelta_dist.output.names import COMPARED, WATCHED
from paramdelta_dist.planning.chunks import MEASURE_CHUNK, ChunkRange
from paramdelta_dist.planning.plan import Shard, TensorPlan
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.reader import FetchedTile
from paramdelta_dist.storage import Store
from paramdelta_dist.threads import Threads

EVERY = 64
"""One chunk in so many is measured."""
MAX_NOTE = 256 << 20
TICK = 0.2
"""Seconds between two points of a shard's progress, at least."""


@dataclass(frozen=True)
class DeltaProbe:
    """Measures deltas in every shard."""

    vectors: Vectors
    about: Mapping[str, Any]
    """What the figures belong to, as plain values: those of anything else are not taken for them."""
    folder: ClassVar[str] = WATCHED
    """Where notes lie in the output."""

    def begin(self, shard: Shard) -> ShardWatch:
        return ShardWatch(shard, self)


@dataclass(frozen=True)
class OutputProbe:
    """Measures, in every shard, how far what is written is from the models it is made of."""

    vectors: Vectors
    """Their last model is the output, the minuend of all."""
    about: Mapping[str, Any]
    folder: ClassVar[str] = COMPARED

    def begin(self, shard: Shard) -> OutputWatch:
        return OutputWatch(shard, self)


@dataclass(frozen=True)
class Lane:
    """When a shard was made, and by whom."""

    file: str
    worker: str
    began: float
    """Seconds since the epoch, by the worker's clock, as all times."""
    progress: list[tuple[float, int]]
    """Bytes of the file that were made by then, rising."""


class ShardWatch:
    """Measures the deltas of one shard on a sample."""

    def __init__(self, shard: Shard, probe: DeltaProbe | OutputProbe) -> None:
        self._shard, self._watcher, self._vectors = shard, probe, probe.vectors
        self._place = {tensor.name: place for place, tensor in enumerate(watched(shard, probe.vectors))}
        self._measured = Measured.nothing(probe.vectors, (len(self._place),))
        self._idle: SimpleQueue[TileMeasurer] = SimpleQueue()
        self._ends: dict[int, list[int]] = {}
        self._lane = Lane(shard.file, f"{socket.gethostname()}:{os.getpid()}", time.time(), [])
        self._bytes = 0

    def measure(self, fetched: FetchedTile, made: memoryview) -> Any:
        pieces = tuple(tuple(self._sampled(segment)) for segment in fetched.tile.segments)
        if not any(pieces):
            return []
        with self._measurer() as measurer:
            return list(measurer.measure(fetched, pieces))

    def add(self, seen: Any, size: int) -> None:
        for part in seen:
            place = self._place[part.piece.tensor.name]
            self._measured.add(place, part.rest)
            for sums in part.sums:
                self._measured.sums[place] += sums
        self._bytes += size
        now = time.time()
        progress = self._lane.progress
        if not progress or now - progress[-1][0] >= TICK:
            progress.append((now, self._bytes))

    def note(self) -> tuple[str, bytes]:
        self._lane.progress.append((time.time(), self._bytes))
        buffer = io.BytesIO()
        about = json.dumps({"about": self._watcher.about, "lane": vars(self._lane)})
        arrays = {"about": np.frombuffer(about.encode(), np.uint8), **self._arrays()}
        np.savez_compressed(buffer, **arrays)
        return _name(self._watcher, self._shard), buffer.getvalue()

    def _arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self._measured, field.name) for field in fields(Measured)}

    @contextmanager
    def _measurer(self) -> Iterator[TileMeasurer]:
        try:
            measurer = self._idle.get_nowait()
        except Empty:
            measurer = TileMeasurer(self._vectors, self._shard.adapters)
        try:
            yield measurer
        finally:
            self._idle.put(measurer)

    def _sampled(self, segment: Segment) -> Iterator[ChunkRange]:
        """The parts of a segment that are measured."""
        span = segment.span
        if span.trails or not measurable(span.parts[0].tensor, self._vectors, self._shard.adapters):
            return
        ends = self._ends.get(span.start)
        if ends is None:
            ends = self._ends.setdefault(span.start, list(accumulate(part.elements for part in span.parts)))
        place, at = bisect_right(ends, segment.first), segment.first
        while at < segment.last:
            part, stop = span.parts[place], min(ends[place], segment.last)
            start = ends[place] - part.elements
            for first, last in sample(part.elements, at - start, stop - start):
                yield ChunkRange(part.tensor, first, last, start + first - segment.first)
            place, at = place + 1, stop


class OutputWatch(ShardWatch):
    """Measures what is written of one shard, on the same sample, and sketches what that adds to the base."""

    def __init__(self, shard: Shard, probe: OutputProbe) -> None:
        super().__init__(shard, probe)
        self._sketch = np.zeros(LENGTH)

    def measure(self, fetched: FetchedTile, made: memoryview) -> Any:
        pieces = tuple(tuple(self._sampled(segment)) for segment in fetched.tile.segments)
        if not any(pieces):
            return []
        found, sketch = [], np.zeros(LENGTH)
        with self._measurer() as measurer:
            for part in measurer.measure(fetched, pieces, made):
                found.append(part)
                tensor, first = part.piece.tensor, part.piece.first
                if np.isfinite(part.sums).all():
                    scale = math.sqrt(tensor.elements / sampled(tensor.elements))  # squares are scaled by how many are measured
                    add_to_sketch(sketch, tensor.name, first, measurer.difference(part.piece), scale)
        return found, sketch

    def add(self, seen: Any, size: int) -> None:
        found, sketch = seen or ([], None)
        super().add(found, size)
        if sketch is not None:
            self._sketch += sketch

    def _arrays(self) -> dict[str, Any]:
        return {**super()._arrays(), "sketch": self._sketch.astype(np.float32)}


@lru_cache(maxsize=1 << 12)
def sampled(elements: int) -> int:
    """How many elements of a tensor of so many are measured."""
    return sum(last - first for first, last in sample(elements, 0, elements))


def sample(elements: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """What is measured of [first, last) of a tensor: one chunk in EVERY, from the middle, and at least one of the tensor."""
    chunks = -(-elements // MEASURE_CHUNK)
    phase = min(EVERY // 2, (chunks - 1) // 2)
    number = first // MEASURE_CHUNK + (phase - first // MEASURE_CHUNK) % EVERY
    while number * MEASURE_CHUNK < last:
        begin, end = max(first, number * MEASURE_CHUNK), min(last, (number + 1) * MEASURE_CHUNK)
        if begin < end:
            yield begin, end
        number += EVERY


def measurable(tensor: TensorPlan, vectors: Vectors, adapters: Collection[int] = ()) -> bool:
    """Whether a merge reads all that is needed of a tensor: not where a weight of zero leaves out a model, or rows are mapped."""
    inputs = range(len(tensor.sources))  # what is written is behind them
    if tensor.encoded is not None and any(model not in inputs for pair in vectors.pairs for model in pair):
        return False  # codes, whose scales are not there yet
    return (
        tensor.merged
        and tensor.rows is None
        and all(tensor.sources[model] is not None for pair in vectors.pairs for model in pair if model in inputs)
    )


def watched(shard: Shard, vectors: Vectors) -> list[TensorPlan]:
    """The tensors of a shard that are measured, in its order."""
    return [tensor for tensor in shard.tensors if tensor.elements and measurable(tensor, vectors, shard.adapters)]


@dataclass(frozen=True)
class Collected:
    """What the shards of a merge showed."""

    tensors: list[TensorPlan]
    measured: Measured
    """Estimates, from the sample, for the whole of each tensor."""
    lanes: list[Lane]
    missing: int
    """Shards that were made without a probe: nothing is known of their tensors."""
    sketch: Floats
    """[LENGTH], of what was added to the base; zeros where deltas were measured, not outputs."""


def collect(store: Store, shards: Sequence[Shard], probe: DeltaProbe | OutputProbe) -> Collected:
    """What the notes of a probe say that are in an output."""
    tensors: list[TensorPlan] = []
    parts, lanes, sketch = [Measured.nothing(probe.vectors, (0,))], [], np.zeros(LENGTH)
    with Threads(16) as pool:
        notes = pool.map(lambda shard: _note(store, probe, shard), shards)
        for shard, note in zip(shards, notes, strict=True):
            if note is not None:
                tensors += watched(shard, probe.vectors)
                parts.append(note.measured)
                lanes.append(note.lane)
                sketch += note.sketch
    measured = Measured(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Measured)))
    return Collected(tensors, estimated(measured, tensors), lanes, len(shards) - len(lanes), sketch)


def estimated(measured: Measured, tensors: Sequence[TensorPlan]) -> Measured:
    """Sums and counts of whole tensors, from those of a sample of each."""
    share = np.array([tensor.elements / sampled(tensor.elements) for tensor in tensors])

    def scaled(counts: Any) -> Any:
        return np.rint(counts * share.reshape(-1, *[1] * (counts.ndim - 1))).astype(np.int64)

    return Measured(
        measured.sums * share[:, None], measured.peaks, scaled(measured.zeros), scaled(measured.histograms), scaled(measured.signs)
    )


class _Note(NamedTuple):
    """What one shard showed."""

    measured: Measured
    lane: Lane
    sketch: Floats


def _name(probe: DeltaProbe | OutputProbe, shard: Shard) -> str:
    return f"{probe.folder}/{shard.file}.npz"


def _note(store: Store, probe: DeltaProbe | OutputProbe, shard: Shard) -> _Note | None:
    try:
        data = store.read(_name(probe, shard), limit=MAX_NOTE)
    except NotFound:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        told = json.loads(arrays["about"].tobytes())
        if told.get("about") != probe.about:
            return None
        measured = Measured(*(arrays[field.name] for field in fields(Measured)))
        if len(measured.sums) != len(watched(shard, probe.vectors)):  # of a sweep that read fewer models
            return None
        return _Note(measured, Lane(**told["lane"]), arrays["sketch"] if "sketch" in arrays else np.zeros(LENGTH))
