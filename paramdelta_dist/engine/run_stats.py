"""Figures of a run: how many workers it had, what was done again, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunStats:
    """Figures of the runs of an executor that have ended. Those of two runs add up to those of both."""

    workers: int = 0
    """Units that were made at the same time, at most."""
    nodes: int = 0
    """Machines on which units were made, at most of any run."""
    lost: int = 0
    """Workers that ended by themselves."""
    retries: int = 0
    """Attempts at units that failed or were lost and were made up for."""
    copies: int = 0
    """Units that were made twice at a time, because one attempt was late."""
    restarts: int = 0
    """Units that were taken from a worker, because the attempt was late."""
    bytes_read_again: int = 0
    """Input bytes of attempts that failed; of those whose worker was lost, the last figure that it had told."""
    causes: Mapping[str, int] = field(default_factory=dict)
    """Units that were begun again, counted by the cause, in the words of `metrics.RETRIES`."""

    def __add__(self, other: RunStats) -> RunStats:
        return RunStats(
            max(self.workers, other.workers),
            max(self.nodes, other.nodes),
            self.lost + other.lost,
            self.retries + other.retries,
            self.copies + other.copies,
            self.restarts + other.restarts,
            self.bytes_read_again + other.bytes_read_again,
            dict(Counter(self.causes) + Counter(other.causes)),
        )
