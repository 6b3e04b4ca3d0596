"""run_shard: one output file as one stream: tiles made ahead → digests → one put → a receipt."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from paramdelta_dist.engine.machine import peak_memory
from paramdelta_dist.engine.metrics import METER, WRITTEN_BYTES, Stopwatch
from paramdelta_dist.errors import Interrupted, NotFound, ParamDeltaError, StorageError
from paramdelta_dist.output.hold import Hold, require_hold, settle, write_held
from paramdelta_dist.output.receipts import Receipt, receipt_name
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.tiles import Step, bytes_to_make, cut_tiles, steps_of
from paramdelta_dist.shards.compute import MergeContext
from paramdelta_dist.shards.digests import StreamDigests
from paramdelta_dist.shards.pipeline import TilePipeline, tile_pipeline, tile_reader
from paramdelta_dist.shards.reader import Reader
from paramdelta_dist.storage import Store, open_store


@dataclass(frozen=True)
class ShardUnit:
    """One shard, to be made or to be looked at."""

    shard: Shard
    bytes_moved: int
    """Bytes read and written."""

    @classmethod
    def to_make(cls, shard: Shard, job: MergeContext) -> ShardUnit:
        return cls(shard, bytes_to_make(shard, tile_size=job.tile_size))

    @property
    def file(self) -> str:
        return self.shard.file

    @property
    def size(self) -> int:
        return self.shard.size


def run_shard(job: MergeContext, unit: ShardUnit, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> Receipt:
    """Make one shard and publish it with its receipt, as `stream_shard` does, from bytes that are read for it alone."""
    with tile_reader(job, unit.shard) as reader:
        return stream_shard(job, unit.shard, reader, advance=advance, cancelled=cancelled)


def stream_shard(
    job: MergeContext, shard: Shard, reader: Reader, *, advance: Callable[[int], None], cancelled: Callable[[], bool]
) -> Receipt:
    """Make one shard and publish it with its receipt. The bytes depend on recipe and inputs alone.

    `advance` is called with the bytes written of the file as they are made, `cancelled` before each tile. Raises Interrupted
    when it says so, NonFinite, CheckpointError where copied tensors disagree, and what the stores raise, then with the
    bytes that were read in vain as `bytes_read`; nothing of the shard has become visible.
    """
    began = time.monotonic()
    output, hold = open_store(job.output, job.storage), job.hold
    assert hold is not None
    require_hold(output, hold)
    filled = [tensor for tensor in shard.tensors if tensor.nbytes]
    digests = StreamDigests([(tensor.start, tensor.start + tensor.nbytes) for tensor in filled])
    writing = Stopwatch("write")
    probe = None if job.probe is None else job.probe.begin(shard)
    with tile_pipeline(job, shard, reader, probe) as pipeline:
        try:
            chunks = _chunks(job, shard, pipeline, digests, writing, output, hold, advance, cancelled)
            identity = output.put(shard.file, chunks, size=shard.size)
            writing.stop()
            settle(output, hold, shard.file, identity)
        except ParamDeltaError as error:
            error.bytes_read = pipeline.reader.bytes_read
            if isinstance(error, (NotFound, StorageError)):  # so fails a put whose part or upload was removed by who took the output
                require_hold(output, hold)
            raise
    receipt = Receipt(
        file=shard.file,
        fingerprint=job.fingerprint,
        size=identity.size,
        tag=identity.tag,
        digest=digests.whole,
        tensors=dict.fromkeys((tensor.name for tensor in shard.tensors), blake3().hexdigest())
        | dict(zip((tensor.name for tensor in filled), digests.of_ranges, strict=True)),
        bytes_read=pipeline.reader.bytes_read,
        bytes_written=shard.size,
        requests=pipeline.reader.requests,
        nonfinite=pipeline.nonfinite,
        seconds=round(time.monotonic() - began, 3),
        peak_memory=peak_memory(),
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )
    if probe is not None:
        write_held(output, hold, *probe.note())
    write_held(output, hold, receipt_name(shard.file), receipt.to_json())
    return receipt


def _chunks(
    job: MergeContext,
    shard: Shard,
    pipeline: TilePipeline,
    digests: StreamDigests,
    writing: Stopwatch,
    output: Store,
    hold: Hold,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> Iterator[memoryview | bytes]:
    """Header, then tiles; each chunk is valid until the next is asked for. Raises at the end, before anything becomes
    visible, if the output is no longer ours."""
    METER.add(WRITTEN_BYTES, len(shard.header))
    digests.update(shard.header)
    yield shard.header
    advance(len(shard.header))

    def steps() -> Iterator[Step]:
        for step in steps_of(cut_tiles(shard, tile_size=job.tile_size), tile_size=job.tile_size):
            if cancelled():
                raise Interrupted("stopped")
            yield step

    for made in pipeline.make(steps()):
        digests.update(made.data)
        writing.start()
        yield made.data
        writing.stop()
        METER.add(WRITTEN_BYTES, len(made.data))
        advance(len(made.data))
    if cancelled():  # another attempt may have been faster
        raise Interrupted("stopped")
    # in a thread of the reader's: obstore runs this generator where no other request can be made
    pipeline.reader.pool.submit(require_hold, output, hold).result()
    writing.start()  # what is under way is still to arrive
