"""The page of a merge: its deltas are measured as they are read, and shown beside the receipts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paramdelta_dist.planning import MergePlan
from paramdelta_dist.storage import Store, open_store

if TYPE_CHECKING:
    from paramdelta_dist.execution.watching import Watcher


def make_watcher(merge_plan: MergePlan) -> Watcher:
    """Who measures the deltas of a merge as it runs."""
    from paramdelta_dist.analysis.statistics import describe
    from paramdelta_dist.analysis.watching import DeltaWatcher

    return DeltaWatcher(describe(merge_plan).vectors, merge_plan.fingerprint)


def publish_page(store: Store, merge_plan: MergePlan, report: Mapping[str, Any]) -> None:
    """The report of a merge, from what its shards showed as they were made: a folder beside the receipts."""
    from paramdelta_dist.analysis.publish import publish
    from paramdelta_dist.analysis.statistics import Statistics, describe
    from paramdelta_dist.analysis.watching import EVERY, collected
    from paramdelta_dist.execution.receipts import FOLDER

    subject = describe(merge_plan)
    tensors, measured, lanes = collected(store, merge_plan, subject.vectors)
    into = open_store(f"{merge_plan.recipe.output}/{FOLDER}/report", merge_plan.recipe.storage_config)
    publish(into, Statistics(subject, tensors, measured), report, lanes=lanes, sampled=EVERY)
