"""Making outputs: claim their folders, make what is missing in them from one reading, commit; or find all of that done.

A merge is a sweep of one point: there is one way through here for both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.driver.observer import Details, Observer
from paramdelta_dist.driver.reduce_first import reduce_first
from paramdelta_dist.driver.reports import make_probes, publish_page, publish_sweep_page
from paramdelta_dist.driver.result import MergeResult, RunFacts, Work, outcome
from paramdelta_dist.driver.workers import Allocation
from paramdelta_dist.output.claim import Claim, claim
from paramdelta_dist.output.commit import committed_meanwhile
from paramdelta_dist.output.kept_shards import require_shards
from paramdelta_dist.output.replace import Replacement
from paramdelta_dist.output.sweep_index import write_sweep
from paramdelta_dist.planning import MergePlan
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.storage import Store, open_store, redact
from paramdelta_dist.threads import Threads

if TYPE_CHECKING:
    from paramdelta_dist.output.receipts import Receipt


@dataclass(frozen=True)
class _Output:
    """One output, as it fills."""

    plan: MergePlan
    store: Store
    held: Claim
    made: list[Receipt] = field(default_factory=list)
    """Receipts of the shards that this run has made."""

    @property
    def receipts(self) -> dict[str, Receipt]:
        """Of what is in place, by file."""
        return {**self.held.receipts, **{receipt.file: receipt for receipt in self.made}}

    @property
    def is_committed_meanwhile(self) -> bool:
        """Whether another run of the same merge was faster."""
        return committed_meanwhile(self.store, self.held.hold, self.plan.fingerprint)


def make_outputs(
    merges: MergeSet,
    allocation: Allocation,
    replaced: Sequence[Replacement] | None,
    *,
    began: float,
    report_page: bool,
    observer: Observer,
) -> MergeResult:
    """Make every output of the set, each in the folder of its plan, in place of what `replaced` lists for it; those that are
    complete are left alone. `began` is when the run did, by the monotonic clock. Raises what `merge` raises."""
    outputs = _claim_outputs(merges, replaced)
    unfinished = {name: output for name, output in outputs.items() if output.held.committed is None}
    work = _make_missing(merges, allocation, unfinished, report_page=report_page, observer=observer) if unfinished else None
    facts = None if work is None else work.run_facts(time.monotonic() - began)
    reports: dict[str, dict[str, Any]] = {}
    page = None
    if work is not None and facts is not None:
        again, points = work.stats.bytes_read_again, {"points": len(outputs)} if merges.is_sweep else {}
        reports = {name: _report(output, {**facts.as_document(), **points}, again) for name, output in unfinished.items()}
        if report_page:  # before anything is committed: a run that is killed here comes by again
            page = _publish_page(merges, outputs, facts, reports)
        _publish(merges, unfinished, reports)
    for output in outputs.values():
        output.store.publish()  # also where the run that committed it was killed a moment later
    index = _write_index(merges, outputs, reports, page) if merges.is_sweep else None
    return _result(merges, outputs, work, facts, reports, page, index)


def _claim_outputs(merges: MergeSet, replaced: Sequence[Replacement] | None) -> dict[str, _Output]:
    """Every output with its folder, claimed; side by side, because each is a matter of waiting for storage."""

    def claimed(plan: MergePlan, replacement: Replacement | None) -> _Output:
        store = open_store(plan.recipe.output, plan.recipe.storage_config)
        return _Output(plan, store, claim(store, plan, replacement))

    with Threads(len(merges.points)) as pool:
        claims = pool.map(claimed, merges.points.values(), replaced or [None] * len(merges.points))
        return dict(zip(merges.points, claims, strict=True))


def _make_missing(
    merges: MergeSet, allocation: Allocation, outputs: Mapping[str, _Output], *, report_page: bool, observer: Observer
) -> Work | None:
    """Make the shards that `outputs` lack; None where other runs of the same merges were faster and have committed all of them."""
    with gc_paused():  # what computes comes last: a mistake shows without waiting for torch
        from paramdelta_dist.shards.merge_shard import run_shard, units_to_make
        from paramdelta_dist.shards.reduce_model import ModelReductions

    held = {name: output.held.receipts for name, output in outputs.items()}
    units = units_to_make(merges, held, tile_size=allocation.sizing.tile_size)
    probes = make_probes(merges) if report_page else {}
    contexts = {
        name: replace(allocation.context(output.plan, output.held.hold), models=merges.models, probe=probes.get(name))
        for name, output in outputs.items()
    }
    spent = ModelReductions()
    with allocation.executor(idle=not units) as executor:
        for name in {name: None for unit in units for name in unit.shards}:
            found = reduce_first(outputs[name].store, outputs[name].plan, contexts[name], executor, observer)
            contexts[name] = replace(contexts[name], statistics=found.statistics)
            spent = ModelReductions((), spent.bytes_read + found.bytes_read, spent.requests + found.requests)
        observer.started(
            "merging",
            sum(output.plan.bytes_to_write for output in outputs.values()),
            done=sum(receipt.size for output in outputs.values() for receipt in output.held.receipts.values()),
            details=Details(shards=len(merges.reading.shards), bytes_to_read=merges.reading.bytes_to_read, memory=allocation.sizing),
            counts=executor.counts,
        )
        with closing(executor.run(run_shard, contexts, units, advance=observer.advanced)) as results:
            for receipts in results:
                for name, receipt in receipts.items():
                    outputs[name].made.append(receipt)
                    observer.finished(receipt)
                if all(output.is_committed_meanwhile for output in outputs.values()):  # what the others made stays as it is
                    return None
    made = [receipt for output in outputs.values() for receipt in output.made]
    return Work(allocation, executor.stats, spent, made, units=len(units))


def _report(output: _Output, facts: Mapping[str, Any], bytes_read_again: int) -> dict[str, Any]:
    """The report of one output, a document; `facts` and `bytes_read_again` are those of the whole run, which cannot be told apart."""
    again = bytes_read_again + output.held.bytes_read
    return {**facts, **outcome(output.plan, output.receipts.values(), made=len(output.made), bytes_read_again=again).as_document()}


def _publish_page(
    merges: MergeSet, outputs: Mapping[str, _Output], facts: RunFacts, reports: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Returns the page's URL; None where nothing was measured whole."""
    if not merges.is_sweep:
        return publish_page(outputs[""].store, outputs[""].plan, reports[""])
    return publish_sweep_page(merges, {name: output.store for name, output in outputs.items()}, facts.as_document())


def _publish(merges: MergeSet, outputs: Mapping[str, _Output], reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Commit the outputs, one after the other."""
    from paramdelta_dist.output.publish import SideFiles, publish

    copies = SideFiles(merges.recipe.storage_config)
    for name, output in outputs.items():
        hold = output.held.hold
        publish(output.store, hold, output.plan, require_shards(output.store, hold, output.receipts), reports[name], copies)


def _write_index(merges: MergeSet, outputs: Mapping[str, _Output], reports: Mapping[str, Any], page: str | None) -> list[dict[str, Any]]:
    """Say in the folder of the points, and to the caller, which there are."""
    documents = [
        {
            "name": name,
            "output": redact(output.plan.recipe.output),
            "fingerprint": output.plan.fingerprint,
            "values": merges.values[name],
            "state": "merged" if name in reports else "nothing to do",
        }
        for name, output in outputs.items()
    ]
    write_sweep(open_store(merges.recipe.output, merges.recipe.storage_config), merges.fingerprint, documents, report=page)
    return documents


def _result(
    merges: MergeSet,
    outputs: Mapping[str, _Output],
    work: Work | None,
    facts: RunFacts | None,
    reports: Mapping[str, Mapping[str, Any]],
    page: str | None,
    index: Sequence[Mapping[str, Any]] | None,
) -> MergeResult:
    output = redact(merges.recipe.output)
    if work is None or facts is None:
        edited = () if merges.is_sweep else outputs[""].held.edited
        return MergeResult(output, "nothing to do", merges.fingerprint, {} if index is None else {"points": index}, edited=edited)
    if index is None:
        return MergeResult(output, "merged", merges.fingerprint, reports[""], page=page)
    receipts = [receipt for name in reports for receipt in outputs[name].receipts.values()]
    again = work.stats.bytes_read_again + sum(each.held.bytes_read for each in outputs.values())
    total = outcome(merges.reading, receipts, made=len(work.made), bytes_read_again=again)
    return MergeResult(
        output,
        "merged",
        merges.fingerprint,
        {**facts.as_document(), **total.as_document(), "points": index},
        page=f"{output}/{page}" if page else None,
    )
