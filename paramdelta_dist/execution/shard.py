"""run_shard: one output file as one streaming pipeline: reads in flight → tile arithmetic → one put → a receipt."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from blake3 import blake3

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.errors import CheckpointError, Interrupted, NonFinite, ParamDeltaError
from paramdelta_dist.execution.machine import peak_memory
from paramdelta_dist.execution.output import require_claim
from paramdelta_dist.execution.reader import FetchedTile, TileReader
from paramdelta_dist.execution.receipts import Receipt, receipt_name
from paramdelta_dist.kernels.merging import Merger, view
from paramdelta_dist.methods import Method
from paramdelta_dist.planning.plan import Shard, TensorPlan, Term
from paramdelta_dist.planning.tiles import Segment, Tile, cut_tiles
from paramdelta_dist.storage import StorageConfig, Store, open_store, redact


@dataclass(frozen=True)
class Job:
    """What all shards of a merge have in common: everything a worker needs besides the shard."""

    method: Method
    models: tuple[str, ...]
    terms: tuple[Term, ...]
    output: str
    storage: StorageConfig
    fingerprint: str
    allow_nonfinite: bool
    tile_size: int
    tiles_in_flight: int
    device: str
    """cpu or cuda."""


def run_shard(job: Job, shard: Shard, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> Receipt:
    """Make one shard and publish it with its receipt. The bytes depend on recipe and inputs alone.

    `advance` is called with the bytes written of the file as they are made, `cancelled` before each tile. Raises Interrupted
    when it says so, NonFinite, CheckpointError where copied tensors disagree, and what the stores raise, then with the
    bytes that were read in vain as `bytes_read`; nothing of the shard has become visible.
    """
    began = time.monotonic()
    output = open_store(job.output, job.storage)
    with tile_reader(job, shard) as reader:
        stream = _ShardStream(job, shard, reader, output, advance, cancelled)
        try:
            identity = output.put(shard.file, stream.chunks(), size=shard.size)
        except ParamDeltaError as error:
            error.bytes_read = reader.bytes_read
            raise
    receipt = Receipt(
        file=shard.file,
        fingerprint=job.fingerprint,
        size=identity.size,
        tag=identity.tag,
        digest=stream.file_digest.hexdigest(),
        tensors=stream.tensor_digests,
        bytes_read=reader.bytes_read,
        bytes_written=shard.size,
        requests=reader.requests,
        nonfinite=stream.maker.nonfinite,
        seconds=round(time.monotonic() - began, 3),
        peak_memory=peak_memory(),
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )
    output.write(receipt_name(shard.file), receipt.to_json())
    return receipt


@contextmanager
def tile_reader(job: Job, shard: Shard) -> Iterator[TileReader]:
    """A reader of the shard's inputs with its own threads, which are gone when it is left."""
    stores = [open_store(url, job.storage) for url in job.models]
    at_a_time = job.tiles_in_flight * len(stores) if any(store.remote for store in stores) else 2
    pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="read")
    try:
        yield TileReader(shard, stores, job.tile_size, job.tiles_in_flight, pool)
    finally:
        pool.shutdown(cancel_futures=True)


class _ShardStream:
    """The bytes of a shard's file, made tile by tile in one reused buffer, and the digests of what went by."""

    def __init__(
        self, job: Job, shard: Shard, reader: TileReader, output: Store, advance: Callable[[int], None], cancelled: Callable[[], bool]
    ) -> None:
        self._job, self._shard, self._reader, self._output = job, shard, reader, output
        self._advance, self._cancelled = advance, cancelled
        self.maker = TileMaker(job)
        self.file_digest = blake3()
        self.tensor_digests = {tensor.name: "" for tensor in shard.tensors}

    def chunks(self) -> Iterator[memoryview | bytes]:
        """Header, then tiles; each chunk is valid until the next is asked for. Raises at the end, before anything becomes
        visible, if the output is no longer ours."""
        self.file_digest.update(self._shard.header)
        for tensor in self._shard.tensors:
            if tensor.nbytes == 0:
                self.tensor_digests[tensor.name] = blake3().hexdigest()
        yield self._shard.header
        self._advance(len(self._shard.header))
        buffer = memoryview(bytearray(min(self._job.tile_size, self._shard.size)))
        unfinished = blake3()
        for fetched in self._reader.fetch(cut_tiles(self._shard, tile_size=self._job.tile_size)):
            if self._cancelled():
                raise Interrupted("stopped")
            out = buffer[: fetched.tile.stop - fetched.tile.start]
            for segment, piece in self.maker.make(fetched, out):
                unfinished.update(piece)
                if segment.last == segment.tensor.elements:
                    self.tensor_digests[segment.tensor.name] = unfinished.hexdigest()
                    unfinished = blake3()
            self.file_digest.update(out)
            yield out
            self._advance(len(out))
        # in a thread of the reader's: obstore runs this generator where no other request can be made
        self._reader.pool.submit(require_claim, self._output, self._job.fingerprint).result()


class TileMaker:
    """Makes the output bytes of tiles, in the caller's memory. Keeps its scratch between them; one a thread."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)  # parallelism is one thread a shard; more inside would fight over the same cores
        self._job = job
        self._merger = Merger(job.method.function, [t.weight for t in job.terms], job.method.scratch, torch.device(job.device))
        self.nonfinite = 0
        """Elements let through that are NaN or infinite."""

    def make(self, fetched: FetchedTile, out: memoryview) -> Iterator[tuple[Segment, memoryview]]:
        """Fill `out` with the tile, segment by segment; each is yielded with its bytes when they are there."""
        for segment in fetched.tile.segments:
            piece = _piece(out, fetched.tile, segment)
            if segment.tensor.merged:
                self._merge(fetched, segment, piece)
            else:
                self._copy(fetched, segment, piece)
            yield segment, piece

    def _merge(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> None:
        tensor = segment.tensor
        sources = [self._tensor(fetched, segment, model) for model in range(len(self._job.models))]
        base = _required(sources, 0, tensor)
        deltas = [(_required(sources, term.post, tensor), _required(sources, term.base, tensor)) for term in self._job.terms]
        count, first = self._merger.merge(view(piece, _torch_dtype(tensor.dtype)), base, deltas)
        if count and not self._job.allow_nonfinite:
            raise NonFinite(self._nonfinite_message(tensor, segment.first + first, first, sources))
        self.nonfinite += count

    def _nonfinite_message(self, tensor: TensorPlan, element: int, place: int, sources: Sequence[torch.Tensor | None]) -> str:
        urls = [
            redact(url)
            for url, values in zip(self._job.models, sources, strict=True)
            if values is not None and not torch.isfinite(values[place])
        ]
        cause = f"it is not finite in {', '.join(urls)}" if urls else f"the sum is too large for {tensor.dtype}; write a wider dtype"
        return (
            f"tensor {tensor.name!r}, element {element}: the result is NaN or infinite: {cause}. "
            "Nothing was published; `allow_nonfinite: true` in the recipe lets such values through"
        )

    def _copy(self, fetched: FetchedTile, segment: Segment, piece: memoryview) -> None:
        tensor = segment.tensor
        for model, url in enumerate(self._job.models):
            data = fetched.source(segment, model)
            if model == 0:
                assert data is not None
                piece[:] = data
            elif data is not None and data != piece:
                raise CheckpointError(
                    f"tensor {tensor.name!r} is {tensor.dtype}, which is copied and not merged, and {redact(url)} holds other "
                    "values than the base; it must agree in all models"
                )

    def _tensor(self, fetched: FetchedTile, segment: Segment, model: int) -> torch.Tensor | None:
        data, source = fetched.source(segment, model), segment.tensor.sources[model]
        return None if data is None or source is None else view(data, _torch_dtype(source.dtype))


def _piece(out: memoryview, tile: Tile, segment: Segment) -> memoryview:
    """The part of a tile's output that a segment fills."""
    width = DTYPES[segment.tensor.dtype].itemsize
    start = segment.tensor.start - tile.start
    return out[start + segment.first * width : start + segment.last * width]


def _required(sources: Sequence[torch.Tensor | None], model: int, tensor: TensorPlan) -> torch.Tensor:
    found = sources[model]
    assert found is not None, f"{tensor.name} of model {model} was not planned"
    return found


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, DTYPES[name].torch)
    assert isinstance(dtype, torch.dtype)
    return dtype
