"""Analyzing the deltas of a recipe: one reading of its inputs, tables and a page."""

from __future__ import annotations

import glob
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from paramdelta_dist._version import __version__
from paramdelta_dist.api.rounding import rounding_document
from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.vocabulary import find_entries
from paramdelta_dist.driver.executors import Engine
from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.driver.make_plan import plan
from paramdelta_dist.driver.observer import Details, NullObserver, Observer
from paramdelta_dist.driver.sizing import page_memory
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import UsageError
from paramdelta_dist.jobs.version import require_submitters_version
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.of_deltas import of_deltas, weights_of
from paramdelta_dist.recipe.output_template import is_template
from paramdelta_dist.recipe.rules import Selection
from paramdelta_dist.storage import inside, normalize, open_store, redact

if TYPE_CHECKING:
    from paramdelta_dist.analysis.survey import ShardSurvey


def analyze(
    recipe: Recipe,
    output: str | None = None,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    memory: int | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """What the deltas of a recipe are, from one reading of its inputs: tables and a page, written to the folder `output`.

    `output` is by default the folder `analysis` of this directory. `memory` bounds, in bytes, this process (local) or each
    worker (ray). Of a recipe with `sweep:` the deltas are read once, and the page tells how far each point would be from the
    inputs where it is a plain sum of them. Returns a document of the most important figures. Raises ParamDeltaErrors only,
    such as HomologyError where the models do not fit together; nothing is written then.
    """
    return analyze_with(recipe, output, Resources(engine, workers, memory), observer=observer)


def analyze_with(recipe: Recipe, output: str | None, resources: Resources, *, observer: Observer | None = None) -> dict[str, Any]:
    """`analyze` with these resources."""
    require_submitters_version()
    began, observer = time.monotonic(), observer or NullObserver()
    folder = normalize(output or "analysis")
    if not is_template(recipe.output) and inside(folder, recipe.output):
        raise UsageError(f"--output {redact(folder)} is in the recipe's output, which a merge must find empty; choose another folder")
    for url in (*recipe.models, recipe.tokenizer_url):
        if inside(folder, url):
            raise UsageError(f"--output {redact(folder)} is in the input {redact(url)}; choose another folder")
    if any(base != recipe.base for base in recipe.adapters.values()):
        raise UsageError(
            "adapters are measured over the model they grew from: name that as `base` of the recipe, and leave out the delta's"
        )
    store = open_store(folder, recipe.storage_config)
    with gc_paused():
        from paramdelta_dist.analysis.publish import require_own
    require_own(store)
    merge_plan, _ = plan(_comparable(recipe), memory=resources.planning_memory)
    allocation = resources.allocation(merge_plan, writes=False, page=page_memory(merge_plan))
    sizing = allocation.sizing
    with gc_paused():
        from paramdelta_dist.analysis.publish import publish
        from paramdelta_dist.analysis.statistics import Statistics, describe
        from paramdelta_dist.analysis.survey import SurveyJob, SurveyUnit, joined, survey_shard

    subject = describe(merge_plan, _weights(recipe), _weights_of_points(recipe))
    units = [SurveyUnit(shard) for shard in merge_plan.shards]
    job = SurveyJob(
        merge_plan.models,
        subject.vectors,
        recipe.storage_config,
        sizing.tile_size,
        sizing.tiles_in_flight,
        threads=sizing.threads_per_shard,
    )
    surveys: dict[str, ShardSurvey] = {}
    with allocation.executor() as executor:
        observer.started(
            "analyzing",
            sum(unit.size for unit in units),
            details=Details(shards=len(units), memory=sizing),
            counts=executor.counts,
        )
        with closing(executor.run(survey_shard, job, units, advance=observer.advanced)) as results:
            for survey in results:
                surveys[survey.file] = survey
                observer.finished(survey)
    statistics = Statistics(subject, *joined(merge_plan, subject.vectors, surveys))
    seconds = time.monotonic() - began
    run = {
        "engine": resources.engine,
        "version": __version__,
        "workers": min(executor.stats.workers, len(units)) * sizing.threads_per_shard,
        "bytes_read": sum(survey.bytes_read for survey in surveys.values()),
        "requests": sum(survey.requests for survey in surveys.values()),
        "seconds": round(seconds, 3),
        "peak_memory": max(survey.peak_memory for survey in surveys.values()),
        "projected_memory": sizing.projected,
        "retries": executor.stats.retries,
    }
    document = publish(store, statistics, run)
    return document | rounding_document(merge_plan) if merge_plan.is_encoded else document


def _weights(recipe: Recipe) -> list[float | None]:
    """The weight of each delta; 1 where it is swept, so that the page shows what comes of scaling the delta."""
    of_points = [weights_of(point) for point in recipe.points.values()] or [weights_of(recipe)]
    return [each[0] if len(set(each)) == 1 else 1.0 for each in zip(*of_points, strict=True)]


def _weights_of_points(recipe: Recipe) -> dict[str, list[float]]:
    """The weights of the deltas at each point of a sweep; none where outputs are no plain sums, of which it can be told before."""
    if recipe.method != "paramdelta":
        return {}
    weights = {name: weights_of(point) for name, point in recipe.points.items()}
    return {name: [each for each in of_point if each is not None] for name, of_point in weights.items() if None not in of_point}


def _comparable(recipe: Recipe) -> Recipe:
    """The recipe that reads all deltas whole, without embeddings and heads whose rows need not belong to the same tokens."""
    selection, base = Selection(recipe.include, recipe.exclude), open_checkpoint(recipe.base, recipe.storage_config)
    entries = find_entries([(base.config, base.tensors)], recipe.answers)
    rowed = [name for name in (*entries.known, *entries.asked) if recipe.vocab != "strict" or not selection.has(name)]
    return of_deltas(recipe).model_copy(update={"exclude": tuple(map(glob.escape, rowed))})
