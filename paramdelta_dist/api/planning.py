"""What is going to happen: a recipe and its models become a plan, of a merge or of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paramdelta_dist.api.collector import collector_paused
from paramdelta_dist.api.models import check, ids_of_tokens, needs_vocabularies, open_models, read_vocabularies, with_a_tokenizer
from paramdelta_dist.checkpoint import Checkpoint, HomologyReport
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.execution.output import as_begun
from paramdelta_dist.execution.series import Series
from paramdelta_dist.planning import MergePlan, build_plan
from paramdelta_dist.planning.sweep import SweepPlan, build_sweep
from paramdelta_dist.planning.vocabulary import Vocabularies
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.storage import Identity, open_store
from paramdelta_dist.template import is_template
from paramdelta_dist.threads import Threads

FEW_POINTS = 8
"""Points of a sweep that are named in a plan."""


def plan(recipe: Recipe, *, memory: int | None = None) -> tuple[MergePlan, HomologyReport]:
    """The plan of a merge and what was noted on the way. Raises HomologyError when the models do not fit together, OverBudget
    when what they say of themselves takes more than `memory` bytes of this process, half of the machine where that is left out.

    Of a sweep, it is that of the first point. Where the recipe's output is a template, the plan's recipe has the folder that
    it stands for: that of an earlier run of this very merge, else a new one.
    """
    if recipe.sweep:
        sweep, report = plan_sweep(recipe, memory=memory)
        more = "" if len(sweep.points) <= FEW_POINTS else ", …"
        names = ", ".join(list(sweep.points)[:FEW_POINTS]) + more
        note = f"a sweep of {len(sweep.points)} points ({names}), made from one reading; what is said here of writing is for each of them"
        return sweep.reading, replace(report, notes=(*report.notes, note))
    with collector_paused():
        recipe, inputs, report, room = _open_inputs(recipe, memory)
        return _into_its_output(replace(build_plan(recipe, *inputs), planning_memory=room.peak, notes=report.notes)), report


def plan_sweep(recipe: Recipe, *, memory: int | None = None) -> tuple[SweepPlan, HomologyReport]:
    """The plan of a recipe with `sweep:`; raises what `plan` does, and UsageError where the points cannot share one reading."""
    with collector_paused():
        recipe, inputs, report, room = _open_inputs(recipe, memory)
        sweep = build_sweep(recipe, *inputs)
    with Threads(len(sweep.points)) as pool:
        points = pool.map(lambda point: _as_begun(replace(point, planning_memory=room.peak, notes=report.notes)), sweep.points.values())
        return replace(sweep, points=dict(zip(sweep.points, points, strict=True))), report


def _into_its_output(made: MergePlan) -> MergePlan:
    """The plan as its output knows it; of a template, with the folder that it stands for."""
    series = series_of(made.recipe)
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


def _open_inputs(
    recipe: Recipe, memory: int | None
) -> tuple[Recipe, tuple[Mapping[str, Checkpoint], Mapping[str, Identity], Vocabularies, Mapping[str, Any]], HomologyReport, Room]:
    """All that a plan is made from: the recipe, with the base's tokenizer where the post has none, the models, the side files of the
    folder that the tokenizer comes from, where they are needed vocabularies, and what ids in the config become; and the room that
    these took. Raises HomologyError when the models do not fit together."""
    models = open_models(recipe, memory=memory)
    report = check(recipe, models)
    report.require()
    recipe, models, _ = with_a_tokenizer(recipe, models)
    vocabularies = read_vocabularies(recipe, models) if needs_vocabularies(recipe, models) else {}
    ids = ids_of_tokens(recipe, models).changes
    return recipe, (models.checkpoints, models.tokenizer_files, vocabularies, ids), report, models.room


def series_of(recipe: Recipe) -> Series | None:
    return Series(recipe.output, recipe.storage_config) if is_template(recipe.output) else None


def into(merge_plan: MergePlan, output: str) -> MergePlan:
    """The same merge into another folder: where it goes decides nothing of its bytes."""
    return replace(merge_plan, recipe=merge_plan.recipe.with_output(output))
