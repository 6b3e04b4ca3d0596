"""Reductions over whole models: a pass of its own over the same shards, before the first byte is made.

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
from paramdelta_dist.kernels.blocks import TensorInfo
from paramdelta_dist.methods import Reduction, Scope
from paramdelta_dist.output.hold import write_held
from paramdelta_dist.output.names import STATISTICS
from paramdelta_dist.output.sealed_json import read_document, render_document
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.planning.tiles import Step, bytes_of_reduction, cut_tiles
from paramdelta_dist.shards.compute import MergeContext
from paramdelta_dist.shards.merge_shard import ShardUnit
from paramdelta_dist.shards.pipeline import tile_pipeline, tile_reader
from paramdelta_dist.storage import Store, open_store


@dataclass(frozen=True)
class ShardPartial:
    """The partial result of one shard."""

    file: str
    total: Any
    """None where nothing in it is merged."""
    bytes_read: int
    requests: int


@dataclass(frozen=True)
class ModelReductions:
    """The results of all reductions over a model, and the bytes and requests that they cost this run."""

    statistics: tuple[Any, ...] = ()
    bytes_read: int = 0
    requests: int = 0


def model_reductions(plan: MergePlan) -> tuple[Reduction, ...]:
    """The reductions over whole models that a plan asks for. Raises UsageError where tensors differ in what they ask for."""
    every = [tuple(reduction for reduction in call.reductions if reduction.scope is Scope.MODEL) for call in plan.calls]
    if len(every) > 1 and any(every):
        raise UsageError("the method looks at the whole model first, so its parameters have to be the same for all tensors")
    return every[0] if every else ()


def reduce_model(
    store: Store,
    plan: MergePlan,
    job: MergeContext,
    executor: Executor,
    *,
    started: Callable[[int, int], None],
    advance: Callable[[int], None],
    keep: bool = True,
) -> ModelReductions:
    """The results of the reductions over the model: read where they were found before, else found by the workers of `executor`.

    `started(number, bytes)` is called as a reduction begins. With `keep`, results are written beside the output.
    """
    found = ModelReductions()
    for number, reduction in enumerate(model_reductions(plan)):
        kept = _read_kept(store, f"{STATISTICS}/{number}.json", job.fingerprint)
        if kept is None:
            job = replace(job, statistics=found.statistics)
            found = _reduce_shards(store, plan, job, executor, number, started, advance, keep=keep, before=found)
            total = _combine(reduction, found.statistics[-1])
            call = plan.calls[0]
            elements = sum(tensor.elements for shard in plan.shards for tensor in shard.tensors if tensor.merged and not tensor.twin)
            values, numbers = tuple(term.values for term in call.terms), tuple(term.position for term in call.terms)
            info = TensorInfo("", (elements,), call.parameters, values, numbers, found.statistics[:-1])
            result = reduction.finalize(total, info)
            found = replace(found, statistics=(*found.statistics[:-1], result))
            if keep:
                _keep(store, job, f"{STATISTICS}/{number}.json", result)
                _delete_partials(store, f"{STATISTICS}/{number}/")
        else:
            found = replace(found, statistics=(*found.statistics, kept[0]))
    return found


def _reduce_shards(
    store: Store,
    plan: MergePlan,
    job: MergeContext,
    executor: Executor,
    number: int,
    started: Callable[[int, int], None],
    advance: Callable[[int], None],
    *,
    keep: bool,
    before: ModelReductions,
) -> ModelReductions:
    """`before`, with the totals of all shards, in their order, as the last of its statistics."""
    present = (store.list() or {}) if keep else {}
    totals: dict[str, Any] = {}
    for shard in plan.shards:
        name = part_name(number, shard.file)
        kept = _read_kept(store, name, job.fingerprint) if name in present else None
        if kept is not None:
            totals[shard.file] = kept[0]
    missing = [ShardUnit({"": shard}, bytes_of_reduction(shard)) for shard in plan.shards if shard.file not in totals]
    started(number, sum(unit.size for unit in missing))
    bytes_read, requests = before.bytes_read, before.requests
    with closing(executor.run(reduce_shard, ReductionContext(job, number, keep), missing, advance=advance)) as results:
        for result in results:
            totals[result.file] = result.total
            bytes_read, requests = bytes_read + result.bytes_read, requests + result.requests
    return ModelReductions((*before.statistics, [totals[shard.file] for shard in plan.shards]), bytes_read, requests)


@dataclass(frozen=True)
class ReductionContext:
    """The context that all shards of one reduction share."""

    merge: MergeContext
    number: int
    """Of the reduction, among those over the model."""
    keep: bool


def reduce_shard(job: ReductionContext, unit: ShardUnit, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> ShardPartial:
    """Reduction over the merged tensors of one shard. Raises Interrupted when `cancelled` says so, and what the stores raise."""
    shard, done = unit.shard, 0

    def steps() -> Iterator[Step]:
        nonlocal done
        for tile in cut_tiles(shard, tile_size=job.merge.tile_size):
            if cancelled():
                raise Interrupted("stopped")
            if merged := tuple(segment for segment in tile.segments if segment.span.merged and not segment.span.parts[0].tensor.twin):
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
    return ShardPartial(shard.file, total, pipeline.reader.bytes_read, pipeline.reader.requests)


def part_name(number: int, file: str) -> str:
    """Name of the file that keeps the partial result of a shard."""
    return f"{STATISTICS}/{number}/{file}.json"


def _combine(reduction: Reduction, totals: Sequence[Any]) -> Any:
    """The totals of shards as one, in the order of the shards."""
    some = [total for total in totals if total is not None]
    total = some[0] if some else None
    for more in some[1:]:
        total = reduction.combine(total, more)
    return total


def _keep(store: Store, job: MergeContext, name: str, value: Any) -> None:
    from paramdelta_dist.kernels.statistics_json import encode  # here: most merges have no use for torch

    assert job.hold is not None
    write_held(store, job.hold, name, render_document({"fingerprint": job.fingerprint, "value": encode(value)}))


def _read_kept(store: Store, name: str, fingerprint: str) -> tuple[Any] | None:
    """The value kept under a name for this plan; None where there is nothing that can be trusted."""
    from paramdelta_dist.kernels.statistics_json import decode

    try:
        document: Mapping[str, Any] = read_document(store, name)
    except (NotFound, IntegrityError):
        return None
    return (decode(document["value"]),) if document.get("fingerprint") == fingerprint else None


def _delete_partials(store: Store, prefix: str) -> None:
    for name in store.list() or {}:
        if name.startswith(prefix):
            with suppress(NotFound):
                store.delete(name)
