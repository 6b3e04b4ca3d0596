"""Sweeping: all points of a sweep, each as a merge of it alone would be, from one reading of the inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from paramdelta_dist.driver.consent import Confirm, replacements
from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.driver.make_plan import plan_sweep
from paramdelta_dist.driver.observer import Observer
from paramdelta_dist.driver.reduce_first import reduce_first
from paramdelta_dist.driver.reports import make_sweep_probes, publish_sweep_page, require_own_page
from paramdelta_dist.driver.result import MergeResult, Work, outcome
from paramdelta_dist.driver.sizing import NO_PAGE, sweep_page_memory
from paramdelta_dist.driver.workers import Allocation, Resources
from paramdelta_dist.output.claim import Claim, claim, require_shards
from paramdelta_dist.output.publish import SideFiles, publish
from paramdelta_dist.output.replace import Replacement
from paramdelta_dist.output.sweep_index import require_own_sweep, write_sweep
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.planning.sweep import SweepPlan
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import Store, open_store, redact
from paramdelta_dist.threads import Threads

if TYPE_CHECKING:
    from paramdelta_dist.output.receipts import Receipt


@dataclass(frozen=True)
class _Point:
    """One output of a sweep, as it fills."""

    plan: MergePlan
    store: Store
    held: Claim
    made: list[Receipt] = field(default_factory=list)

    @property
    def receipts(self) -> dict[str, Receipt]:
        """Of what is in place, by file."""
        return {**self.held.receipts, **{receipt.file: receipt for receipt in self.made}}


def merge_sweep(
    recipe: Recipe, resources: Resources, *, began: float, overwrite: bool, confirm: Confirm | None, report_page: bool, observer: Observer
) -> MergeResult:
    """All points of a sweep; those that are complete are left alone. `began` is when the run did, by the monotonic clock.

    Raises what `merge` raises.
    """
    sweep, _ = plan_sweep(recipe, memory=resources.planning_memory)
    allocation = resources.allocation(
        sweep.reading, points=len(sweep.points), page=sweep_page_memory(sweep, resources.engine) if report_page else NO_PAGE
    )
    require_own_sweep(open_store(recipe.output, recipe.storage_config))
    if report_page:
        require_own_page(recipe)
    points = _claim_points(sweep, replacements(list(sweep.points.values()), confirm) if overwrite else None)
    unfinished = {name: point for name, point in points.items() if point.held.committed is None}
    work = _make_missing(sweep, allocation, unfinished, report_page=report_page, observer=observer)
    effort, again = work.run_facts(time.monotonic() - began), work.executor.bytes_read_again
    page = None
    if report_page and unfinished:  # before any of them is committed: a run that is killed here comes by again
        page = publish_sweep_page(sweep, {name: point.store for name, point in points.items()}, effort)
    copies = SideFiles(recipe.storage_config)
    for point in unfinished.values():
        _publish_point(point, {**effort, "points": len(points)}, again, copies)
    documents = _write_down(sweep, recipe, points, report=page)
    output = redact(recipe.output)
    if not unfinished:
        return MergeResult(output, "nothing to do", sweep.fingerprint, {"points": documents})
    receipts = [receipt for point in unfinished.values() for receipt in point.receipts.values()]
    again += sum(point.held.bytes_read for point in points.values())
    total = outcome(sweep.reading, receipts, made=len(work.made), bytes_read_again=again)
    return MergeResult(
        output, "merged", sweep.fingerprint, {**effort, **total, "points": documents}, page=f"{output}/{page}" if page else None
    )


def _claim_points(sweep: SweepPlan, replaced: Sequence[Replacement] | None) -> dict[str, _Point]:
    """Every point with its folder, claimed; side by side, because each is a matter of waiting for storage."""

    def claimed(merge_plan: MergePlan, replacement: Replacement | None) -> _Point:
        store = open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config)
        return _Point(merge_plan, store, claim(store, merge_plan, replacement))

    with Threads(len(sweep.points)) as pool:
        claims = pool.map(claimed, sweep.points.values(), replaced or [None] * len(sweep.points))
        return dict(zip(sweep.points, claims, strict=True))


def _make_missing(sweep: SweepPlan, allocation: Allocation, points: Mapping[str, _Point], *, report_page: bool, observer: Observer) -> Work:
    """Make the shards that `points` lack."""
    with gc_paused():  # what computes comes last: a mistake shows without waiting for torch
        from paramdelta_dist.shards.reduce_model import ModelReductions
        from paramdelta_dist.shards.sweep_shard import SweepJob, run_sweep_shard, sweep_units

    held = {name: point.held.receipts for name, point in points.items()}
    units = sweep_units(sweep, held, tile_size=allocation.sizing.tile_size)
    probes = make_sweep_probes(sweep) if report_page else {}
    jobs = {
        name: replace(allocation.job(point.plan, point.held.hold), models=sweep.models, probe=probes.get(name))
        for name, point in points.items()
    }
    total = ModelReductions()
    with allocation.executor(idle=not units) as executor:
        for name in {name for unit in units for name in unit.shards}:
            gathered = reduce_first(points[name].store, points[name].plan, jobs[name], executor, observer)
            jobs[name] = replace(jobs[name], statistics=gathered.statistics)
            total = ModelReductions((), total.bytes_read + gathered.bytes_read, total.requests + gathered.requests)
        observer.started(
            "merging",
            sum(point.plan.bytes_to_write for point in points.values()),
            done=sum(receipt.size for point in points.values() for receipt in point.held.receipts.values()),
            details={
                "shards": len(sweep.reading.shards),
                "bytes_to_read": sweep.reading.bytes_to_read,
                "memory": asdict(allocation.sizing),
            },
            counts=executor.counts,
        )
        with closing(executor.run(run_sweep_shard, SweepJob(jobs), units, advance=observer.advanced)) as results:
            for receipts in results:
                for name, receipt in receipts.items():
                    points[name].made.append(receipt)
                    observer.finished(receipt)
    made = [receipt for point in points.values() for receipt in point.made]
    return Work(allocation, executor, total, made, units=len(units))


def _publish_point(point: _Point, effort: Mapping[str, Any], bytes_read_again: int, copies: SideFiles) -> None:
    """Commit one output; `effort` and `bytes_read_again` are those of the whole sweep, which cannot be told apart."""
    receipts, again = point.receipts, bytes_read_again + point.held.bytes_read
    report = {**effort, **outcome(point.plan, receipts.values(), made=len(point.made), bytes_read_again=again)}
    hold = point.held.hold
    publish(point.store, hold, point.plan, require_shards(point.store, hold, receipts), report, copies)


def _write_down(sweep: SweepPlan, recipe: Recipe, points: Mapping[str, _Point], *, report: str | None) -> list[dict[str, Any]]:
    """Say in the folder of the points, and to the caller, which there are."""
    documents = [
        {
            "name": name,
            "output": redact(point.plan.recipe.output),
            "fingerprint": point.plan.fingerprint,
            "values": sweep.values[name],
            "state": "merged" if point.held.committed is None else "nothing to do",
        }
        for name, point in points.items()
    ]
    write_sweep(open_store(recipe.output, recipe.storage_config), sweep.fingerprint, documents, report=report)
    return documents
