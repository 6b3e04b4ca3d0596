"""The report of a merge: deltas measured as they pass by, on a sample, and who made which shard when.

Of every 32 chunks of a tensor one is measured, always the same: so the merge is hardly slower, and the figures are those of
`analyze` up to the sample. What a shard showed lies beside its receipt until all are done, so that an interrupted merge
has the whole report too.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from paramdelta_dist.analysis.survey import MeasuredPiece, TileMeasurer
from paramdelta_dist.errors import NotFound
from paramdelta_dist.execution.reader import FetchedTile
from paramdelta_dist.execution.receipts import FOLDER
from paramdelta_dist.kernels.measuring import Measured, Vectors
from paramdelta_dist.planning.chunks import CHUNK, Piece
from paramdelta_dist.planning.plan import MergePlan, Shard, TensorPlan
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.storage import Store

EVERY = 32
"""One chunk in so many is measured."""
NOTES = f"{FOLDER}/watched"
MAX_NOTE = 256 << 20
TICK = 0.2
"""Seconds between two points of a shard's progress, at least."""


@dataclass(frozen=True)
class DeltaWatcher:
    """Measures deltas in every shard."""

    vectors: Vectors
    fingerprint: str

    def begin(self, shard: Shard) -> ShardWatch:
        return ShardWatch(shard, self.vectors, self.fingerprint)


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

    def __init__(self, shard: Shard, vectors: Vectors, fingerprint: str) -> None:
        self._shard, self._vectors, self._fingerprint = shard, vectors, fingerprint
        self._place = {tensor.name: place for place, tensor in enumerate(watched(shard, vectors))}
        self._measured = Measured.nothing(vectors, (len(self._place),))
        self._idle: SimpleQueue[TileMeasurer] = SimpleQueue()
        self._ends: dict[int, list[int]] = {}
        self._lane = Lane(shard.file, f"{socket.gethostname()}:{os.getpid()}", time.time(), [])
        self._bytes = 0

    def look(self, fetched: FetchedTile) -> list[MeasuredPiece]:
        pieces = tuple(tuple(self._sampled(segment)) for segment in fetched.tile.segments)
        if not any(pieces):
            return []
        try:
            measurer = self._idle.get_nowait()
        except Empty:
            measurer = TileMeasurer(self._vectors)
        try:
            return measurer.measure(fetched, pieces)
        finally:
            self._idle.put(measurer)

    def add(self, seen: list[MeasuredPiece], size: int) -> None:
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
        about = json.dumps({"fingerprint": self._fingerprint, **vars(self._lane)})
        arrays = {field.name: getattr(self._measured, field.name) for field in fields(Measured)}
        np.savez_compressed(buffer, about=np.frombuffer(about.encode(), np.uint8), **arrays)
        return f"{NOTES}/{self._shard.file}.npz", buffer.getvalue()

    def _sampled(self, segment: Segment) -> Iterator[Piece]:
        """The parts of a segment that are measured."""
        run = segment.run
        if not measurable(run.tensors[0], self._vectors):
            return
        ends = self._ends.get(run.start)
        if ends is None:
            ends = self._ends.setdefault(run.start, list(accumulate(tensor.elements for tensor in run.tensors)))
        place, at = bisect_right(ends, segment.first), segment.first
        while at < segment.last:
            tensor, stop = run.tensors[place], min(ends[place], segment.last)
            start = ends[place] - tensor.elements
            for first, last in sample(tensor.elements, at - start, stop - start):
                yield Piece(tensor, first, last, start + first - segment.first)
            place, at = place + 1, stop


def sample(elements: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """What is measured of [first, last) of a tensor: one chunk in EVERY, from the middle, and at least one of the tensor."""
    chunks = -(-elements // CHUNK)
    phase = min(EVERY // 2, (chunks - 1) // 2)
    number = first // CHUNK + (phase - first // CHUNK) % EVERY
    while number * CHUNK < last:
        begin, end = max(first, number * CHUNK), min(last, (number + 1) * CHUNK)
        if begin < end:
            yield begin, end
        number += EVERY


def measurable(tensor: TensorPlan, vectors: Vectors) -> bool:
    """Whether a merge reads all that is needed of a tensor: not where a weight of zero leaves out a model, or rows are mapped."""
    whole = tensor.rows is None and tensor.first == 0
    return tensor.merged and whole and all(tensor.sources[model] is not None for pair in vectors.pairs for model in pair)


def watched(shard: Shard, vectors: Vectors) -> list[TensorPlan]:
    """The tensors of a shard that are measured, in its order."""
    return [tensor for tensor in shard.tensors if tensor.elements and measurable(tensor, vectors)]


def collected(store: Store, plan: MergePlan, vectors: Vectors) -> tuple[list[TensorPlan], Measured, list[Lane]]:
    """What the shards of a plan showed: the tensors, their figures estimated from the sample, and the lanes. Shards that were
    made without a watch are missing."""
    tensors: list[TensorPlan] = []
    parts, lanes = [Measured.nothing(vectors, (0,))], []
    for shard in plan.shards:
        found = _note(store, shard, plan.fingerprint)
        if found is not None:
            tensors += watched(shard, vectors)
            parts.append(found[0])
            lanes.append(found[1])
    measured = Measured(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Measured)))
    return tensors, estimated(measured, tensors), lanes


def estimated(measured: Measured, tensors: Sequence[TensorPlan]) -> Measured:
    """Sums and counts of whole tensors, from those of a sample of each."""
    seen = measured.zeros[:, 0] + measured.histograms[:, 0].sum(axis=-1)
    share = np.array([tensor.elements for tensor in tensors]) / np.maximum(seen, 1)

    def scaled(counts: Any) -> Any:
        return np.rint(counts * share.reshape(-1, *[1] * (counts.ndim - 1))).astype(np.int64)

    return Measured(
        measured.sums * share[:, None], measured.peaks, scaled(measured.zeros), scaled(measured.histograms), scaled(measured.signs)
    )


def _note(store: Store, shard: Shard, fingerprint: str) -> tuple[Measured, Lane] | None:
    try:
        data = store.read(f"{NOTES}/{shard.file}.npz", limit=MAX_NOTE)
    except NotFound:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        if about.pop("fingerprint") != fingerprint:
            return None
        return Measured(*(arrays[field.name] for field in fields(Measured))), Lane(**about)
