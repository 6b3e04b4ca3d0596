"""Makes a plan of a recipe and its models, of a merge or of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from paramdelta_dist.checkpoint import HomologyReport
from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.driver.open_inputs import open_inputs
from paramdelta_dist.output.claim import as_begun
from paramdelta_dist.output.series import Series, utc_now
from paramdelta_dist.planning import MergePlan, build_plan
from paramdelta_dist.planning.merge_set import MergeSet, build_sweep
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.output_template import is_template
from paramdelta_dist.storage import open_store
from paramdelta_dist.threads import Threads

FEW_POINTS = 8
"""Points of a sweep that are named in a plan."""


def plan(recipe: Recipe, *, memory: int | None = None, now: Callable[[], datetime] = utc_now) -> tuple[MergePlan, HomologyReport]:
    """The plan of a merge and what was noted on the way. Raises HomologyError when the models do not fit together, OverBudget
    when what they say of themselves takes more than `memory` bytes of this process, half of the machine where that is left out.

    Of a sweep, it is that of the first point. Where the recipe's output is a template, the plan's recipe has the folder that
    it stands for: that of an earlier run of this very merge, else a new one, of the day that `now` says.
    """
    if recipe.sweep:
        sweep, report = plan_sweep(recipe, memory=memory)
        more = "" if len(sweep.points) <= FEW_POINTS else ", …"
        names = ", ".join(list(sweep.points)[:FEW_POINTS]) + more
        note = f"a sweep of {len(sweep.points)} points ({names}), made from one reading; what is said here of writing is for each of them"
        return sweep.reading, replace(report, notes=(*report.notes, note))
    with gc_paused():
        recipe, inputs, report, room = open_inputs(recipe, memory)
        return _into_its_output(replace(build_plan(recipe, *inputs), planning_memory=room.peak, notes=report.notes), now), report


def plan_sweep(recipe: Recipe, *, memory: int | None = None) -> tuple[MergeSet, HomologyReport]:
    """The plan of a recipe with `sweep:`; raises what `plan` does, and UsageError where the points cannot share one reading."""
    with gc_paused():
        recipe, inputs, report, room = open_inputs(recipe, memory)
        sweep = build_sweep(recipe, *inputs)
    with Threads(len(sweep.points)) as pool:
        points = pool.map(lambda point: _as_begun(replace(point, planning_memory=room.peak, notes=report.notes)), sweep.points.values())
        return replace(sweep, points=dict(zip(sweep.points, points, strict=True))), report


def _into_its_output(made: MergePlan, now: Callable[[], datetime]) -> MergePlan:
    """The plan as its output knows it; of a template, with the folder that it stands for."""
    series = series_of(made.recipe, now)
    if series is None:
        return _as_begun(made)
    if made.fingerprint != made.unlocated:
        begun = _as_begun(into(made, series.output(series.find(made.unlocated), made.unlocated)))
        if begun.fingerprint == made.unlocated:
            return begun
    return into(made, series.output(series.find(made.fingerprint), made.fingerprint))


def _as_begun(made: MergePlan) -> MergePlan:
    if made.fingerprint == made.unlocated:
        return made
    return as_begun(open_store(made.recipe.output, made.recipe.storage_config), made)


def series_of(recipe: Recipe, now: Callable[[], datetime] = utc_now) -> Series | None:
    return Series(recipe.output, recipe.storage_config, now) if is_template(recipe.output) else None


def into(merge_plan: MergePlan, output: str) -> MergePlan:
    """The same merge into another folder: where it goes decides nothing of its bytes."""
    return replace(merge_plan, recipe=merge_plan.recipe.with_output(output))
