"""Merging: claim the folder, make what is missing in it, commit; or find all of that done."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, replace

from paramdelta_dist.api.collector import collector_paused
from paramdelta_dist.api.consent import Confirm, replacements
from paramdelta_dist.api.crew import Crew, Means
from paramdelta_dist.api.engines import Device, Engine
from paramdelta_dist.api.looking import look_first
from paramdelta_dist.api.observing import Observer, Unobserved
from paramdelta_dist.api.pages import make_watcher, publish_page
from paramdelta_dist.api.planning import into, plan, series_of
from paramdelta_dist.api.results import MergeResult, Work, outcome
from paramdelta_dist.api.sizing import NO_PAGE, page_memory
from paramdelta_dist.api.sweeping import merge_sweep
from paramdelta_dist.execution.mending import mend
from paramdelta_dist.execution.output import Claim, claim, committed_meanwhile, require_shards
from paramdelta_dist.execution.replacing import Replacement
from paramdelta_dist.jobs.version import require_submitters_version
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.storage import Store, open_store, redact


def merge(
    recipe: Recipe,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    confirm: Confirm | None = None,
    patience: float | None = None,
    report_page: bool = False,
    observer: Observer | None = None,
) -> MergeResult:
    """Make the output of a recipe, or go on where an earlier run of it stopped, or find it done.

    `memory` bounds, in bytes, this process (local) or each worker (ray). With `overwrite` what a merge of ours left in the folder
    is replaced; where that would delete anything else, `confirm` is asked first, and without one it is refused. `patience` is how
    many seconds to wait while a cluster gives no worker at all; the default is a quarter of an hour, in which it can start
    machines. With `report_page` the deltas are measured on a sample as they are read, and a page about them and the run is
    written beside the receipts; of a sweep it is what the points write that is measured, and the page, beside their folders,
    compares them. Raises ParamDeltaErrors only; whatever is raised, the output is either untouched, unfinished and ready to go
    on, complete, or another run's: OutputTaken then.
    """
    began, observer = time.monotonic(), observer or Unobserved()
    means = Means(engine, workers, memory, device, patience)
    require_submitters_version()
    if recipe.sweep:
        return merge_sweep(recipe, means, began=began, overwrite=overwrite, confirm=confirm, report_page=report_page, observer=observer)
    merge_plan, _ = plan(recipe, memory=means.planning_memory)
    crew = means.crew(merge_plan, page=page_memory(merge_plan) if report_page else NO_PAGE)
    series = series_of(recipe)
    if series is None:
        replacement = replacements([merge_plan], confirm)[0] if overwrite else None
        return _merge_into_folder(merge_plan, crew, replacement, began=began, report_page=report_page, observer=observer)
    before = series.recorded(merge_plan.fingerprint)
    day = series.begin(merge_plan.fingerprint, anew=overwrite)
    merge_plan = into(merge_plan, series.output(day, merge_plan.fingerprint))
    replacement = replacements([merge_plan], confirm)[0] if overwrite else None
    lost = [] if overwrite else mend(open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config), merge_plan)
    gone = None if overwrite or before in (None, day) else series.output(before, merge_plan.fingerprint)
    result = _merge_into_folder(merge_plan, crew, replacement, began=began, report_page=report_page, observer=observer)
    series.point(day, merge_plan.fingerprint)
    return replace(result, pointer=series.pointer_url, lost=tuple(lost), gone=gone and redact(gone))


def _merge_into_folder(
    merge_plan: MergePlan, crew: Crew, replacement: Replacement | None, *, began: float, report_page: bool, observer: Observer
) -> MergeResult:
    """The merge, where the plan's output is the folder to fill, in place of what the `replacement` lists. `began` is when the run
    did, by the monotonic clock."""
    output = merge_plan.recipe.output
    store = open_store(output, merge_plan.recipe.storage_config)
    held = claim(store, merge_plan, replacement)
    work = _make_missing(store, merge_plan, crew, held, report_page=report_page, observer=observer) if held.committed is None else None
    if work is None:
        store.publish()  # also where the run that committed it was killed a moment later
        return MergeResult(redact(output), "nothing to do", merge_plan.fingerprint, {}, edited=held.edited)
    from paramdelta_dist.execution.publish import SideFiles, publish

    receipts = {**held.receipts, **{receipt.file: receipt for receipt in work.made}}
    again = work.executor.bytes_read_again + held.bytes_read
    report = {
        **work.effort(time.monotonic() - began),
        **outcome(merge_plan, receipts.values(), made=len(work.made), bytes_read_again=again),
    }
    receipts = require_shards(store, held.hold, receipts)
    page = publish_page(store, merge_plan, report) if report_page else None
    publish(store, held.hold, merge_plan, receipts, report, SideFiles(merge_plan.recipe.storage_config))
    store.publish()
    return MergeResult(redact(output), "merged", merge_plan.fingerprint, report, page=page)


def _make_missing(store: Store, merge_plan: MergePlan, crew: Crew, held: Claim, *, report_page: bool, observer: Observer) -> Work | None:
    """Make the shards that `held` lacks; None where another run of the same merge was faster and has committed it."""
    with collector_paused():  # what computes comes last: a mistake shows without waiting for torch
        from paramdelta_dist.execution.shard import ShardUnit, run_shard
        from paramdelta_dist.execution.statistics import Gathered

    missing = [shard for shard in merge_plan.shards if shard.file not in held.receipts]
    job = replace(crew.job(merge_plan, held.hold), watcher=make_watcher(merge_plan) if report_page else None)
    made = []
    with crew.executor(idle=not missing) as executor:
        gathered = look_first(store, merge_plan, job, executor, observer) if missing else Gathered()
        job = replace(job, statistics=gathered.statistics)
        observer.started(
            "merging",
            merge_plan.bytes_to_write,
            done=sum(receipt.size for receipt in held.receipts.values()),
            details={"shards": len(merge_plan.shards), "bytes_to_read": merge_plan.bytes_to_read, "memory": asdict(crew.sizing)},
            counts=executor.counts,
        )
        units = [ShardUnit.to_make(shard, job) for shard in missing]
        with closing(executor.run(run_shard, job, units, advance=observer.advanced)) as results:
            for receipt in results:
                made.append(receipt)
                observer.finished(receipt)
                if committed_meanwhile(store, held.hold, merge_plan.fingerprint):  # what the other run made stays as it is
                    return None
    return Work(crew, executor, gathered, made, units=len(missing))
