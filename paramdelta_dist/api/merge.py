"""Merging: claim the folder, make what is missing in it, commit; or find all of that done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from paramdelta_dist.driver.consent import Confirm, replacements
from paramdelta_dist.driver.executors import Device, Engine
from paramdelta_dist.driver.make_plan import into, plan, plan_sweep, series_of
from paramdelta_dist.driver.merge import make_outputs
from paramdelta_dist.driver.observer import NullObserver, Observer
from paramdelta_dist.driver.reports import require_own_page
from paramdelta_dist.driver.result import MergeResult
from paramdelta_dist.driver.sizing import NO_PAGE, page_memory, sweep_page_memory
from paramdelta_dist.driver.workers import Allocation, Resources
from paramdelta_dist.jobs.version import require_submitters_version
from paramdelta_dist.output.mend import mend
from paramdelta_dist.output.series import utc_now
from paramdelta_dist.output.sweep_index import require_own_sweep
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import open_store, redact


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
    resources = Resources(engine, workers, memory, device, patience)
    return merge_with(recipe, resources, overwrite=overwrite, confirm=confirm, report_page=report_page, observer=observer)


def merge_with(
    recipe: Recipe,
    resources: Resources,
    *,
    overwrite: bool = False,
    confirm: Confirm | None = None,
    report_page: bool = False,
    observer: Observer | None = None,
    now: Callable[[], datetime] = utc_now,
) -> MergeResult:
    """`merge` with these resources; `now` tells the day of an output that is named by it."""
    began, observer = time.monotonic(), observer or NullObserver()
    require_submitters_version()

    def made(merges: MergeSet, allocation: Allocation) -> MergeResult:
        replaced = replacements(list(merges.points.values()), confirm) if overwrite else None
        return make_outputs(merges, allocation, replaced, began=began, report_page=report_page, observer=observer)

    if recipe.sweep:
        sweep, _ = plan_sweep(recipe, memory=resources.planning_memory)
        page = sweep_page_memory(sweep, resources.engine) if report_page else NO_PAGE
        allocation = resources.allocation(sweep.reading, points=len(sweep.points), page=page)
        require_own_sweep(open_store(recipe.output, recipe.storage_config))
        if report_page:
            require_own_page(recipe)
        return made(sweep, allocation)
    merge_plan, _ = plan(recipe, memory=resources.planning_memory, now=now)
    allocation = resources.allocation(merge_plan, page=page_memory(merge_plan) if report_page else NO_PAGE)
    series = series_of(recipe, now)
    if series is None:
        return made(MergeSet.of(merge_plan), allocation)
    before = series.recorded(merge_plan.fingerprint)
    day = series.begin(merge_plan.fingerprint, anew=overwrite)
    merge_plan = into(merge_plan, series.output(day, merge_plan.fingerprint))
    lost = [] if overwrite else mend(open_store(merge_plan.recipe.output, merge_plan.recipe.storage_config), merge_plan)
    gone = None if overwrite or before in (None, day) else series.output(before, merge_plan.fingerprint)
    result = made(MergeSet.of(merge_plan), allocation)
    series.point_to(day, merge_plan.fingerprint)
    return replace(result, pointer=series.pointer_url, lost=tuple(lost), gone=gone and redact(gone))
