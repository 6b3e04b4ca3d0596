"""The result of a merge, and the resources that it used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from paramdelta_dist._version import __version__
from paramdelta_dist.driver.executors import Engine
from paramdelta_dist.driver.workers import Allocation
from paramdelta_dist.engine.machine import peak_memory
from paramdelta_dist.engine.run_stats import RunStats
from paramdelta_dist.planning import MergePlan

if TYPE_CHECKING:
    from paramdelta_dist.output.receipts import Receipt
    from paramdelta_dist.shards.reduce_model import ModelReductions

State = Literal["merged", "nothing to do"]


@dataclass(frozen=True)
class MergeResult:
    """The result of a merge."""

    output: str
    state: State
    """`nothing to do` when the same recipe over the same inputs was committed before, or by another run meanwhile."""
    fingerprint: str
    report: Mapping[str, Any]
    """Bytes, seconds, memory and retries of this run; empty when there was nothing to do."""
    pointer: str | None = None
    """The file that names the latest output, where the recipe's output is a template."""
    page: str | None = None
    """The report, where this run wrote one."""
    lost: tuple[str, ...] = ()
    """Files that the output, where the recipe's output is a template, had lost since it was finished; they are made again."""
    edited: tuple[str, ...] = ()
    """Of an output that was there already the files that people may edit, and did since."""
    gone: str | None = None
    """An earlier output of this merge that is not there any more, which is why it was made again."""


@dataclass(frozen=True)
class RunFacts:
    """The resources that a run took, in the order of its report."""

    engine: Engine
    version: str
    device: str
    workers: int
    """Threads that made tiles at the same time, at most."""
    nodes: int
    bytes_read: int
    bytes_written: int
    requests: int
    seconds: float
    bytes_per_second: int
    """Read and written."""
    peak_memory: int
    """Bytes of the largest process."""
    projected_memory: int
    retries: int
    copies: int
    restarts: int
    retry_causes: Mapping[str, int]
    workers_lost: int

    def as_document(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Outcome:
    """The state of an output after a run."""

    made: int
    """Shards that the run has made."""
    kept: int
    """Shards that were there."""
    bytes_read_again: int
    merged: int
    """Tensors."""
    copied: int
    """Tensors."""
    notes: tuple[str, ...]
    nonfinite: int
    """Elements."""

    def as_document(self) -> dict[str, Any]:
        return {
            "shards": {"made": self.made, "kept": self.kept},
            "bytes_read_again": self.bytes_read_again,
            "tensors": {"merged": self.merged, "copied": self.copied},
            "notes": list(self.notes),
            "nonfinite": self.nonfinite,
        }


@dataclass(frozen=True)
class Work:
    """The work of a run that has ended."""

    allocation: Allocation
    stats: RunStats
    gathered: ModelReductions
    made: Sequence[Receipt]
    """Receipts of the shards that were made."""
    units: int
    """Units of work that were given to the executor."""

    def run_facts(self, seconds: float) -> RunFacts:
        """The resources it took, and the rate over a run of `seconds`."""
        sizing, stats, local = self.allocation.sizing, self.stats, self.allocation.resources.engine == "local"
        bytes_read = self.gathered.bytes_read + sum(receipt.bytes_read for receipt in self.made)
        bytes_written = sum(receipt.bytes_written for receipt in self.made)
        return RunFacts(
            engine=self.allocation.resources.engine,
            version=__version__,
            device=self.allocation.device,
            workers=min(stats.workers, max(1, self.units)) * sizing.threads_per_shard,
            nodes=stats.nodes,
            bytes_read=bytes_read,
            bytes_written=bytes_written,
            requests=self.gathered.requests + sum(receipt.requests for receipt in self.made),
            seconds=round(seconds, 3),
            bytes_per_second=round((bytes_read + bytes_written) / max(seconds, 1e-9)),
            peak_memory=max([receipt.peak_memory for receipt in self.made] + [peak_memory() if local else 0]),
            projected_memory=sizing.projected,
            retries=stats.retries,
            copies=stats.copies,
            restarts=stats.restarts,
            retry_causes=dict(stats.causes),
            workers_lost=stats.lost,
        )


def outcome(merge_plan: MergePlan, receipts: Collection[Receipt], *, made: int, bytes_read_again: int) -> Outcome:
    """The state of the output, of which this run has made `made` shards; `receipts` are of all shards."""
    return Outcome(
        made=made,
        kept=len(receipts) - made,
        bytes_read_again=bytes_read_again,
        merged=merge_plan.merged,
        copied=merge_plan.copied,
        notes=tuple(merge_plan.notes),
        nonfinite=sum(receipt.nonfinite for receipt in receipts),
    )
