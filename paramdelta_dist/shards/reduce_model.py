"""Sweeps over whole models: a pass of its own over the same shards, before the first byte is made.

What a shard contributes is kept beside the output as soon as it is known, and what comes of all of them once it is: a run
that goes on after an interruption begins where the other stopped, and `verify` computes with what was merged with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from paramdelta_dist.engine.executor import Executor
from paramdelta_dist.errors import IntegrityError, Interrupted, NotFound, ParamDeltaError, UsageError
from paramdelta_dist.kernels.blocks import Subject
from paramdelta_dist.methods import Scope, Sweep
from paramdelta_dist.output.hold import write_held
from paramdelta_dist.output.receipts import FOLDER
from paramdelta_dist.output.sealed_json import read_document, render_document
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.planning.tiles import Step, bytes_to_look_at, cut_tiles
from paramdelta_dist.shards.compute import Job
from paramdelta_dist.shards.merge_shard import ShardUnit
from paramdelta_dist.shards.pipeline import tile_pipeline, tile_reader
from paramdelta_dist.storage import Store, open_store

STATISTICS = f"{FOLDER}/statistics"


@dataclass(frozen=True)
class Found:
    """What a shard contributes to a statistic."""

    file: str
    total: Any
    """None where nothing in it is merged."""
    bytes_read: int
    requests: int


@dataclass(frozen=True)
class Gathered:
    """What all sweeps over a model found, and what finding it cost this run."""

    statistics: tuple[Any, ...] = ()
    bytes_read: int = 0
    requests: int = 0


def model_sweeps(plan: MergePlan) -> tuple[Sweep, ...]:
    """The sweeps over whole models that a plan asks for. Raises UsageError where tensors differ in what they ask for."""
    every = [tuple(sweep for sweep in settings.sweeps if sweep.scope is Scope.MODEL) for settings in plan.settings]
    if len(every) > 1 and any(every):
        raise UsageError("the method looks at the whole model first, so its parameters have to be the same for all tensors")
    return every[0] if every else ()


def gather(
    store: Store,
    plan: MergePlan,
    job: Job,
    executor: Executor,
    *,
    started: Callable[[int, int], None],
    advance: Callable[[int], None],
    keep: bool = True,
) -> Gathered:
    """What the sweeps over the model find: read where it was found before, else found by the workers of `executor`.

    `started(number, bytes)` is called as a sweep begins. With `keep`, results are written beside the output.
    """
    found = Gathered()
    for number, sweep in enumerate(model_sweeps(plan)):
        kept = _kept(store, f"{STATISTICS}/{number}.json", job.fingerprint)
        if kept is None:
            job = replace(job, statistics=found.statistics)
            found = _swept(store, plan, job, executor, number, started, advance, keep=keep, before=found)
            total = _folded(sweep, found.statistics[-1])
            settings = plan.settings[0]
            elements = sum(tensor.elements for shard in plan.shards for tensor in shard.tensors if tensor.merged and not tensor.twin)
            values, numbers = tuple(term.values for term in settings.terms), tuple(term.number for term in settings.terms)
            subject = Subject("", (elements,), settings.parameters, values, numbers, found.statistics[:-1])
            result = sweep.finish(total, subject)
            found = replace(found, statistics=(*found.statistics[:-1], result))
            if keep:
                _keep(store, job, f"{STATISTICS}/{number}.json", result)
                _forget(store, f"{STATISTICS}/{number}/")
        else:
            found = replace(found, statistics=(*found.statistics, kept[0]))
    return found


def _swept(
    store: Store,
    plan: MergePlan,
    job: Job,
    executor: Executor,
    number: int,
    started: Callable[[int, int], None],
    advance: Callable[[int], None],
    *,
    keep: bool,
    before: Gathered,
) -> Gathered:
    """`before`, with the totals of all shards, in their order, as the last of its statistics."""
    present = (store.list() or {}) if keep else {}
    totals: dict[str, Any] = {}
    for shard in plan.shards:
        name = part_name(number, shard.file)
        kept = _kept(store, name, job.fingerprint) if name in present else None
        if kept is not None:
            totals[shard.file] = kept[0]
    missing = [ShardUnit(shard, bytes_to_look_at(shard)) for shard in plan.shards if shard.file not in totals]
    started(number, sum(look.size for look in missing))
    bytes_read, requests = before.bytes_read, before.requests
    with closing(executor.run(look_at_shard, LookJob(job, number, keep), missing, advance=advance)) as results:
        for result in results:
            totals[result.file] = result.total
            bytes_read, requests = bytes_read + result.bytes_read, requests + result.requests
    return Gathered((*before.statistics, [totals[shard.file] for shard in plan.shards]), bytes_read, requests)


@dataclass(frozen=True)
class LookJob:
    """What all looks of one sweep have in common."""

    merge: Job
    number: int
    """Of the sweep, among those over the model."""
    keep: bool


def look_at_shard(job: LookJob, look: ShardUnit, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> Found:
    """Sweep over the merged tensors of one shard. Raises Interrupted when `cancelled` says so, and what the stores raise."""
    shard, done = look.shard, 0

    def steps() -> Iterator[Step]:
        nonlocal done
        for tile in cut_tiles(shard, tile_size=job.merge.tile_size):
            if cancelled():
                raise Interrupted("stopped")
            if merged := tuple(segment for segment in tile.segments if segment.run.merged and not segment.run.tensors[0].twin):
                yield Step(tile._replace(segments=merged), job.number)
            done += tile.stop - tile.start
            advance(tile.stop - tile.start)

    with tile_reader(job.merge, shard) as reader, tile_pipeline(job.merge, shard, reader) as pipeline:
        try:
            total = pipeline.total(steps())
        except ParamDeltaError as error:
            error.bytes_read = pipeline.reader.bytes_read
            raise
    if job.keep:
        _keep(open_store(job.merge.output, job.merge.storage), job.merge, part_name(job.number, shard.file), total)
    advance(shard.size - done)
    return Found(shard.file, total, pipeline.reader.bytes_read, pipeline.reader.requests)


def part_name(number: int, file: str) -> str:
    """Where what a shard contributes to a sweep is kept."""
    return f"{STATISTICS}/{number}/{file}.json"


def _folded(sweep: Sweep, totals: Sequence[Any]) -> Any:
    """The totals of shards as one, in the order of the shards."""
    some = [total for total in totals if total is not None]
    total = some[0] if some else None
    for more in some[1:]:
        total = sweep.combine(total, more)
    return total


def _keep(store: Store, job: Job, name: str, value: Any) -> None:
    from paramdelta_dist.kernels.statistics_json import encode  # here: most merges have no use for torch

    assert job.hold is not None
    write_held(store, job.hold, name, render_document({"fingerprint": job.fingerprint, "value": encode(value)}))


def _kept(store: Store, name: str, fingerprint: str) -> tuple[Any] | None:
    """What was kept under a name for this plan; None where there is nothing that can be trusted."""
    from paramdelta_dist.kernels.statistics_json import decode

    try:
        document: Mapping[str, Any] = read_document(store, name)
    except (NotFound, IntegrityError):
        return None
    return (decode(document["value"]),) if document.get("fingerprint") == fingerprint else None


def _forget(store: Store, prefix: str) -> None:
    for name in store.list() or {}:
        if name.startswith(prefix):
            with suppress(NotFound):
                store.delete(name)
