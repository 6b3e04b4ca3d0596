"""The pages of merges and sweeps: something is measured as tiles are made, left beside the receipts, and shown in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.output.names import PAGES, SWEEP_PAGES
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import Store, open_store, redact

if TYPE_CHECKING:
    from paramdelta_dist.analysis.probes import DeltaProbe, OutputProbe


def make_probe(merge_plan: MergePlan) -> DeltaProbe:
    """The probe that measures the deltas of a merge as it runs."""
    from paramdelta_dist.analysis.probes import DeltaProbe
    from paramdelta_dist.analysis.statistics import describe

    return DeltaProbe(describe(merge_plan).vectors, {"fingerprint": merge_plan.fingerprint})


def publish_page(store: Store, merge_plan: MergePlan, report: Mapping[str, Any]) -> str:
    """The report of a merge, from what its shards showed as they were made: a folder beside the receipts. Returns the page's
    URL, without secrets."""
    with gc_paused():
        from paramdelta_dist.analysis.probes import EVERY, collect
        from paramdelta_dist.analysis.publish import PAGE, publish
        from paramdelta_dist.analysis.statistics import Statistics, describe

    found = collect(store, merge_plan.shards, make_probe(merge_plan))
    into = open_store(f"{merge_plan.recipe.output}/{PAGES}", merge_plan.recipe.storage_config)
    publish(into, Statistics(describe(merge_plan), found.tensors, found.measured), report, lanes=found.lanes, sampled=EVERY)
    return f"{into.url}/{PAGE}"


def make_probes(merges: MergeSet) -> Mapping[str, DeltaProbe | OutputProbe]:
    """Probes by the name of the merge: of the deltas of a single one, of what each point of a sweep writes."""
    if not merges.is_sweep:
        return {"": make_probe(merges.points[""])}
    from paramdelta_dist.analysis.sweep_comparison import output_probes

    return output_probes(merges)


def require_own_page(recipe: Recipe) -> None:
    """Raise OutputOccupied where the page of a sweep would be written over somebody else's."""
    with gc_paused():
        from paramdelta_dist.analysis.publish import require_own

    require_own(open_store(f"{recipe.output}/{SWEEP_PAGES}", recipe.storage_config))


def publish_sweep_page(sweep: MergeSet, stores: Mapping[str, Store], report: Mapping[str, Any]) -> str | None:
    """The report of a sweep, from what its points showed as they were made, in this run or before: a folder beside theirs.
    Returns the page's name there; None where no point was measured whole."""
    with gc_paused():
        from paramdelta_dist.analysis.probes import Lane, collect
        from paramdelta_dist.analysis.publish import PAGE, publish_points
        from paramdelta_dist.analysis.sweep_comparison import Comparison, Point, compared_inputs, output_probes

    lanes: list[Lane] = []
    left_out: list[str] = []
    probes = output_probes(sweep)
    comparison = Comparison(compared_inputs(sweep))
    for name, store in stores.items():
        found = collect(store, sweep.readings[name], probes[name])
        lanes += [replace(lane, file=f"{name}/{lane.file}") for lane in found.lanes]
        if found.missing:
            left_out.append(name)
        else:
            comparison.add(Point(name, sweep.values[name], redact(sweep.points[name].recipe.output)), found)
    if not comparison.points:
        return None
    unmeasured = sum(len(shard.tensors) for shard in sweep.reading.shards) - len(comparison.tensors)
    into = open_store(f"{sweep.recipe.output}/{SWEEP_PAGES}", sweep.recipe.storage_config)
    publish_points(into, comparison, report, lanes=lanes, left_out=left_out, unmeasured=unmeasured)
    return f"{SWEEP_PAGES}/{PAGE}"
