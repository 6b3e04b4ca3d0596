"""One output file of every point of a sweep, made from one reading of the inputs: a pipeline and a put for each, side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.output.receipts import Receipt
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.sweep import SweepPlan
from paramdelta_dist.planning.tiles import bytes_to_make
from paramdelta_dist.shards.compute import MergeContext
from paramdelta_dist.shards.merge_shard import stream_shard
from paramdelta_dist.shards.pipeline import tile_reader
from paramdelta_dist.shards.shared_reader import SharedReader, SharedTiles


@dataclass(frozen=True)
class SweepJob:
    """What all files of a sweep have in common."""

    points: Mapping[str, MergeContext]
    """The merge of each point by its name. They read the same models, in tiles of one size."""


@dataclass(frozen=True)
class SweepUnit:
    """One file of the output, of every point that lacks it."""

    shards: Mapping[str, Shard]
    """By the name of the point. They differ in nothing but their calls."""
    bytes_moved: int
    """Bytes read, once for all points, and written."""

    @property
    def file(self) -> str:
        return next(iter(self.shards.values())).file

    @property
    def size(self) -> int:
        """Bytes written, of all points together."""
        return sum(shard.size for shard in self.shards.values())


def sweep_units(sweep: SweepPlan, receipts: Mapping[str, Mapping[str, Receipt]], *, tile_size: int) -> list[SweepUnit]:
    """What is to be made for the points named in `receipts`, which has the files of each that are in place already."""
    units = []
    for number, shard in enumerate(sweep.reading.shards):
        missing = {name: sweep.readings[name][number] for name, held in receipts.items() if shard.file not in held}
        if missing:
            bytes_moved = bytes_to_make(shard, tile_size=tile_size) + (len(missing) - 1) * shard.size
            units.append(SweepUnit(missing, bytes_moved))
    return units


def run_sweep_shard(job: SweepJob, unit: SweepUnit, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> dict[str, Receipt]:
    """Make one file of each point in `unit` and publish it with its receipt; the bytes are those that a merge of the point
    alone gives. Returns the receipts by point; their `bytes_read` add up to what was read.

    `advance` is called with the bytes written, `cancelled` before each tile. Raises what `stream_shard` raises for any of the
    points; those that were finished before stay.
    """
    stop, lock = threading.Event(), threading.Lock()
    first, shard = next(iter(unit.shards.items()))

    def count(size: int) -> None:
        with lock:
            advance(size)

    with tile_reader(job.points[first], shard) as reader:
        tiles = SharedTiles(reader, len(unit.shards), job.points[first].tiles_in_flight)
        with ThreadPoolExecutor(len(unit.shards), thread_name_prefix="point") as pool:
            futures = {
                point: pool.submit(
                    stream_shard,
                    job.points[point],
                    shard,
                    SharedReader(tiles),
                    advance=count,
                    cancelled=lambda: stop.is_set() or cancelled(),
                )
                for point, shard in unit.shards.items()
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
        return {point: future.result() for point, future in futures.items()}
