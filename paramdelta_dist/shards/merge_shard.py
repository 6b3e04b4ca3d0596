"""run_shard: one file of each output of a run, made from one reading: tiles made ahead → digests → a put each → receipts."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from blake3 import blake3

from paramdelta_dist.engine.machine import peak_memory
from paramdelta_dist.engine.metrics import METER, WRITTEN_BYTES, Stopwatch
from paramdelta_dist.errors import Interrupted, NotFound, ParamDeltaError, StorageError
from paramdelta_dist.output.hold import Hold, require_hold, settle, write_held
from paramdelta_dist.output.receipts import Receipt, receipt_name
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.tiles import Step, bytes_to_make, cut_tiles, steps_of
from paramdelta_dist.shards.compute import MergeContext
from paramdelta_dist.shards.digests import StreamDigests
from paramdelta_dist.shards.pipeline import TilePipeline, tile_pipeline, tile_reader
from paramdelta_dist.shards.reader import Reader, TileReader
from paramdelta_dist.shards.shared_reader import SharedReader, SharedTiles
from paramdelta_dist.storage import Store, open_store


@dataclass(frozen=True)
class ShardUnit:
    """One file of the output, of every merge of the run that lacks it."""

    shards: Mapping[str, Shard]
    """By the name of the merge. They differ in nothing but their calls."""
    bytes_moved: int
    """Bytes read, once for all of them, and written."""

    @property
    def shard(self) -> Shard:
        """The shard of the first."""
        return next(iter(self.shards.values()))

    @property
    def file(self) -> str:
        return self.shard.file

    @property
    def size(self) -> int:
        """Bytes written, of all merges together."""
        return sum(shard.size for shard in self.shards.values())


def units_to_make(merges: MergeSet, receipts: Mapping[str, Mapping[str, Receipt]], *, tile_size: int) -> list[ShardUnit]:
    """The units to make for the merges named in `receipts`, which has the files of each that are in place already."""
    units = []
    for number, shard in enumerate(merges.reading.shards):
        missing = {name: merges.readings[name][number] for name, held in receipts.items() if shard.file not in held}
        if missing:
            units.append(ShardUnit(missing, bytes_to_make(shard, tile_size=tile_size) + (len(missing) - 1) * shard.size))
    return units


def run_shard(
    contexts: Mapping[str, MergeContext], unit: ShardUnit, *, advance: Callable[[int], None], cancelled: Callable[[], bool]
) -> dict[str, Receipt]:
    """Make one file of each merge in `unit` and publish it with its receipt; the bytes are those that the merge alone gives.
    Returns the receipts by the name of the merge; their `bytes_read` add up to what was read.

    `contexts` are those of the merges by name; they read the same models, in tiles of one size. `advance` is called with the bytes
    written, `cancelled` before each tile. Raises what `stream_shard` raises for any of them; those that were finished before stay.
    """
    first = next(iter(unit.shards))
    with tile_reader(contexts[first], unit.shard) as reader:
        if len(unit.shards) > 1:
            return _stream_side_by_side(contexts, unit, reader, advance, cancelled)
        return {first: stream_shard(contexts[first], unit.shard, reader, advance=advance, cancelled=cancelled)}


def _stream_side_by_side(
    contexts: Mapping[str, MergeContext],
    unit: ShardUnit,
    reader: TileReader,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> dict[str, Receipt]:
    """A pipeline and a put for each, in a thread of its own."""
    stop, lock = threading.Event(), threading.Lock()

    def count(size: int) -> None:
        with lock:
            advance(size)

    def is_stopped() -> bool:
        return stop.is_set() or cancelled()

    tiles = SharedTiles(reader, len(unit.shards), contexts[next(iter(unit.shards))].tiles_in_flight)
    with ThreadPoolExecutor(len(unit.shards), thread_name_prefix="point") as pool:
        futures = {
            name: pool.submit(stream_shard, contexts[name], shard, SharedReader(tiles), advance=count, cancelled=is_stopped)
            for name, shard in unit.shards.items()
        }
        done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
        failed = next((error for future in done if (error := future.exception()) is not None), None)
        if failed is not None:
            stop.set()
            tiles.abort()
    if failed is not None:
        if isinstance(failed, ParamDeltaError):
            failed.bytes_read = reader.bytes_read
        raise failed
    return {name: future.result() for name, future in futures.items()}


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
    arrays = [array for tensor in shard.tensors for array in tensor.arrays]
    digests = StreamDigests([(start, start + nbytes) for _, start, nbytes in arrays if nbytes])
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
        tensors=dict.fromkeys((name for name, _, _ in arrays), blake3().hexdigest())
        | dict(zip((name for name, _, nbytes in arrays if nbytes), digests.of_ranges, strict=True)),
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
