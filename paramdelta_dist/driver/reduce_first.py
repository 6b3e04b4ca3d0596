"""Reductions over the whole model before the first tensor is made, where the method asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramdelta_dist.driver.observer import Details, Observer
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.storage import Store

if TYPE_CHECKING:
    from paramdelta_dist.engine.executor import Executor
    from paramdelta_dist.shards.compute import MergeContext
    from paramdelta_dist.shards.reduce_model import ModelReductions


def reduce_first(
    store: Store, merge_plan: MergePlan, job: MergeContext, executor: Executor, observer: Observer, *, keep: bool = True
) -> ModelReductions:
    """The results of the method's reductions over the model; with `keep` they are kept in `store`, the output."""
    from paramdelta_dist.shards.reduce_model import reduce_model

    def started(number: int, size: int) -> None:
        details = Details(shards=len(merge_plan.shards))
        observer.started(f"looking at the model, sweep {number + 1}", size, details=details, counts=executor.counts)

    return reduce_model(store, merge_plan, job, executor, started=started, advance=observer.advanced, keep=keep)
