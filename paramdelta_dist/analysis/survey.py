"""survey_shard: one pass over what a shard's tensors hold in every model, measured and forgotten.

A unit is what the merge would write as one file. Its tensors are read in tiles that never cut a chunk; threads measure
tiles, and the sums of their chunks are added in the order of the elements, so that no figure depends on tiles, threads or
workers.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from queue import SimpleQueue

import numpy as np

from paramdelta_dist.checkpoint.dtypes import ITEMSIZES
from paramdelta_dist.engine.machine import peak_memory
from paramdelta_dist.errors import Interrupted, ParamDeltaError
from paramdelta_dist.kernels.encodings import Space
from paramdelta_dist.kernels.measure import Floats, Measured, Measurer, Vectors, widened
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.planning.chunks import MEASURE_CHUNK, ChunkedTile, ChunkRange, cut_chunks
from paramdelta_dist.planning.plan import MergePlan, Shard, TensorPlan, parts_of
from paramdelta_dist.planning.tiles import Segment
from paramdelta_dist.shards.inputs import Decoder
from paramdelta_dist.shards.reader import FetchedTile, Fetching, TileReader, open_reader
from paramdelta_dist.storage import StorageConfig


@dataclass(frozen=True)
class SurveyJob:
    """What all units of a survey have in common."""

    models: tuple[str, ...]
    vectors: Vectors
    storage: StorageConfig
    tile_size: int
    tiles_in_flight: int
    threads: int
    """That measure tiles of one unit."""


@dataclass(frozen=True)
class SurveyUnit:
    """The tensors of one shard, to be read in all models."""

    shard: Shard

    @property
    def file(self) -> str:
        return self.shard.file

    @cached_property
    def size(self) -> int:
        """Bytes to read."""
        return sum(bytes_of(tensor) for tensor in self.shard.tensors if tensor.merged)

    @property
    def bytes_moved(self) -> int:
        return self.size


@dataclass(frozen=True)
class ShardSurvey:
    """What was measured of one shard."""

    file: str
    size: int
    measured: Measured
    """Of each tensor that holds floating-point parameters, in the shard's order: arrays with a leading axis [tensors]."""
    bytes_read: int
    requests: int
    seconds: float
    """Wall time of the unit."""
    peak_memory: int
    """Peak resident memory, in bytes, of the worker's process so far."""
    worker: str
    """Host and process that measured it."""


@dataclass(frozen=True, slots=True)
class MeasuredRange:
    """Some chunks of one tensor."""

    piece: ChunkRange
    sums: Floats
    """[chunks, Vectors.sums], in the order of the elements."""
    rest: Measured
    """What has no order. Its own sums are zero."""


class TileMeasurer:
    """Measures fetched tiles. Keeps its scratch between them; one a thread."""

    def __init__(self, vectors: Vectors, adapters: Collection[int] = ()) -> None:
        """`adapters` are the models that hold deltas: measured are the models that these make of what they grew from."""
        self._vectors = vectors
        self._grown = {adapter: base for adapter, base in vectors.pairs if adapter in adapters}
        self._measurer = Measurer(vectors, MEASURE_CHUNK)
        self._decoder = Decoder()

    def measure(
        self, fetched: FetchedTile, pieces: tuple[tuple[ChunkRange, ...], ...], made: memoryview | None = None
    ) -> Iterator[MeasuredRange]:
        """What each piece of the tile's segments holds. All models that are measured must have been read for it; what was
        `made` of the tile is one more model, behind all others."""
        position = 0
        self._decoder.forget()
        for segment, of_segment in zip(fetched.tile.segments, pieces, strict=True):
            models, start = {}, position
            position += segment.span.output_bytes(segment.last) - segment.span.output_bytes(segment.first)
            encoded = [m for m, source in enumerate(segment.span.sources) if source is not None and not source.is_plain]
            for model in range(len(segment.span.sources)):
                numbers = self._decoder.numbers(fetched, segment, model) if of_segment and model not in encoded else None
                if numbers is not None:
                    models[model] = numbers
            if made is not None and of_segment:
                models[len(segment.span.sources)] = RawElements(made[start:position], segment.span.dtype)
            for piece in of_segment:
                size = piece.last - piece.first
                sums, rest = np.zeros((-(-size // MEASURE_CHUNK), self._vectors.sums)), Measured.nothing(self._vectors)
                for number, row in enumerate(sums):
                    first, last = piece.at + number * MEASURE_CHUNK, piece.at + min((number + 1) * MEASURE_CHUNK, size)
                    chunks = {model: _some(elements, first, last) for model, elements in models.items()}
                    part = Segment(segment.span, segment.first + first, segment.first + last)
                    for model in encoded:
                        decoded = self._decoder.numbers(fetched, part, model)
                        assert decoded is not None
                        chunks[model] = decoded
                    for adapter, base in self._grown.items():
                        source = segment.span.sources[adapter]
                        if source is None:
                            chunks[adapter] = chunks[base]
                        elif source.space is Space.DELTA:
                            chunks[adapter] = RawElements((widened(chunks[base]) + widened(chunks[adapter])).data.cast("B"), "F64")
                    self._measurer.measure(chunks, row, rest)
                yield MeasuredRange(piece, sums, rest)

    def difference(self, piece: ChunkRange) -> Floats:
        """Elements of the first vector in the piece that was measured last, which is no longer than a chunk; overwritten with
        the next."""
        return self._measurer.difference(0, piece.last - piece.first)


def _some(elements: RawElements, first: int, last: int) -> RawElements:
    size = ITEMSIZES[elements.dtype]
    return RawElements(elements.data[first * size : last * size], elements.dtype)


def bytes_of(tensor: TensorPlan) -> int:
    """Bytes of a tensor in all models together."""
    return sum(source.nbytes(part.elements) for part in parts_of([tensor]) for source in part.sources if source is not None)


def survey_shard(job: SurveyJob, unit: SurveyUnit, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> ShardSurvey:
    """Measure all floating-point tensors of a shard. Nothing is written.

    `advance` is called with bytes read as they are measured, `cancelled` before each tile. Raises Interrupted when it says
    so, and what the stores raise, then with the bytes that were read in vain as `bytes_read`.
    """
    began = time.monotonic()
    tensors = [tensor for tensor in unit.shard.tensors if tensor.merged]
    place = {tensor.name: position for position, tensor in enumerate(tensors)}
    measured = Measured.nothing(job.vectors, (len(tensors),))
    with open_reader(unit.shard, job.models, job.storage, tile_size=job.tile_size) as reader:
        try:
            for found in _measured(job, unit.shard, reader):
                if cancelled():
                    raise Interrupted("stopped")
                for part in found:
                    position = place[part.piece.tensor.name]
                    measured.add(position, part.rest)
                    for sums in part.sums:  # one after the other: their order decides the last digits
                        measured.sums[position] += sums
                    tensor = part.piece.tensor
                    advance((part.piece.last - part.piece.first) * bytes_of(tensor) // tensor.elements)
        except ParamDeltaError as error:
            error.bytes_read = reader.bytes_read
            raise
    return ShardSurvey(
        file=unit.file,
        size=unit.size,
        measured=measured,
        bytes_read=reader.bytes_read,
        requests=reader.requests,
        seconds=round(time.monotonic() - began, 3),
        peak_memory=peak_memory(),
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )


def joined(plan: MergePlan, vectors: Vectors, surveys: Mapping[str, ShardSurvey]) -> tuple[list[TensorPlan], Measured]:
    """The measured tensors of a plan, in its order, and what was measured of them, given the survey of each shard's file."""
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors if tensor.merged]
    parts = [surveys[shard.file].measured for shard in plan.shards] or [Measured.nothing(vectors, (0,))]
    columns = (np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Measured))
    return tensors, Measured(*columns)


def _measured(job: SurveyJob, shard: Shard, reader: TileReader) -> Iterator[list[MeasuredRange]]:
    """What the tiles of a shard hold, in order; a bounded number of them is fetched and measured ahead."""
    upcoming = cut_chunks(shard, tile_size=job.tile_size)
    measurers: SimpleQueue[TileMeasurer] = SimpleQueue()
    for _ in range(job.threads):
        measurers.put(TileMeasurer(job.vectors, shard.adapters))

    def measure(chunked: ChunkedTile, fetching: Fetching) -> list[MeasuredRange]:
        fetched, measurer = fetching.result(), measurers.get()
        try:
            return list(measurer.measure(fetched, chunked.pieces))
        finally:
            measurers.put(measurer)
            fetched.parts.clear()
            reader.release(fetching)

    under_way: deque[tuple[Fetching, Future[list[MeasuredRange]]]] = deque()
    with ThreadPoolExecutor(job.threads, thread_name_prefix="measure") as threads:
        try:
            while True:
                while len(under_way) < job.tiles_in_flight and (chunked := next(upcoming, None)) is not None:
                    fetching = reader.start(chunked.tile)
                    under_way.append((fetching, threads.submit(measure, chunked, fetching)))
                if not under_way:
                    return
                yield under_way.popleft()[1].result()
        finally:
            for fetching, future in under_way:
                future.cancel()
                fetching.cancel()
