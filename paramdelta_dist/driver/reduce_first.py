"""Looking at the whole model before the first tensor is made, where the method asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramdelta_dist.driver.observer import Observer
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.storage import Store

if TYPE_CHECKING:
    from paramdelta_dist.engine.executor import Executor
    from paramdelta_dist.shards.compute import MergeContext
    from paramdelta_dist.shards.reduce_model import ModelReductions


def reduce_first(
    store: Store, merge_plan: MergePlan, job: MergeContext, executor: Executor, observer: Observer, *, keep: bool = True
) -> ModelReductions:
    """What the method has to know of the model, told to `observer` as it is found; with `keep` it is kept in `store`, the output."""
    from paramdelta_dist.shards.reduce_model import reduce_model

    def started(number: int, size: int) -> None:
        details = {"shards": len(merge_plan.shards)}
        observer.started(f"looking at the model, sweep {number + 1}", size, details=details, counts=executor.counts)

    return reduce_model(store, merge_plan, job, executor, started=started, advance=observer.advanced, keep=keep)
