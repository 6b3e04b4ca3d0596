"""Making one output: claim its folder, make what is missing in it, commit; or find all of that done."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, replace

from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.driver.observer import Observer
from paramdelta_dist.driver.reduce_first import reduce_first
from paramdelta_dist.driver.reports import make_probe, publish_page
from paramdelta_dist.driver.result import MergeResult, Work, outcome
from paramdelta_dist.driver.workers import Allocation
from paramdelta_dist.output.claim import Claim, claim, committed_meanwhile, require_shards
from paramdelta_dist.output.replace import Replacement
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.storage import Store, open_store, redact


def merge_into_folder(
    merge_plan: MergePlan, allocation: Allocation, replacement: Replacement | None, *, began: float, report_page: bool, observer: Observer
) -> MergeResult:
    """The merge, where the plan's output is the folder to fill, in place of what the `replacement` lists. `began` is when the run
    did, by the monotonic clock."""
    output = merge_plan.recipe.output
    store = open_store(output, merge_plan.recipe.storage_config)
    held = claim(store, merge_plan, replacement)
    work = (
        _make_missing(store, merge_plan, allocation, held, report_page=report_page, observer=observer) if held.committed is None else None
    )
    if work is None:
        store.publish()  # also where the run that committed it was killed a moment later
        return MergeResult(redact(output), "nothing to do", merge_plan.fingerprint, {}, edited=held.edited)
    from paramdelta_dist.output.publish import SideFiles, publish

    receipts = {**held.receipts, **{receipt.file: receipt for receipt in work.made}}
    again = work.executor.bytes_read_again + held.bytes_read
    report = {
        **work.run_facts(time.monotonic() - began),
        **outcome(merge_plan, receipts.values(), made=len(work.made), bytes_read_again=again),
    }
    receipts = require_shards(store, held.hold, receipts)
    page = publish_page(store, merge_plan, report) if report_page else None
    publish(store, held.hold, merge_plan, receipts, report, SideFiles(merge_plan.recipe.storage_config))
    store.publish()
    return MergeResult(redact(output), "merged", merge_plan.fingerprint, report, page=page)


def _make_missing(
    store: Store, merge_plan: MergePlan, allocation: Allocation, held: Claim, *, report_page: bool, observer: Observer
) -> Work | None:
    """Make the shards that `held` lacks; None where another run of the same merge was faster and has committed it."""
    with gc_paused():  # what computes comes last: a mistake shows without waiting for torch
        from paramdelta_dist.shards.merge_shard import ShardUnit, run_shard
        from paramdelta_dist.shards.reduce_model import ModelReductions

    missing = [shard for shard in merge_plan.shards if shard.file not in held.receipts]
    job = replace(allocation.job(merge_plan, held.hold), probe=make_probe(merge_plan) if report_page else None)
    made = []
    with allocation.executor(idle=not missing) as executor:
        gathered = reduce_first(store, merge_plan, job, executor, observer) if missing else ModelReductions()
        job = replace(job, statistics=gathered.statistics)
        observer.started(
            "merging",
            merge_plan.bytes_to_write,
            done=sum(receipt.size for receipt in held.receipts.values()),
            details={"shards": len(merge_plan.shards), "bytes_to_read": merge_plan.bytes_to_read, "memory": asdict(allocation.sizing)},
            counts=executor.counts,
        )
        units = [ShardUnit.to_make(shard, job) for shard in missing]
        with closing(executor.run(run_shard, job, units, advance=observer.advanced)) as results:
            for receipt in results:
                made.append(receipt)
                observer.finished(receipt)
                if committed_meanwhile(store, held.hold, merge_plan.fingerprint):  # what the other run made stays as it is
                    return None
    return Work(allocation, executor, gathered, made, units=len(missing))
