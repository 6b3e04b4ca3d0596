"""Counts that are kept while work goes on, for whoever publishes them: bytes, shards, retries, and seconds of threads by stage.

Counting takes a microsecond and happens once a tile, so it is always on; only the Ray engine publishes what was counted.
Labels have the values listed here and no others: what a monitoring system stores does not grow with models or runs.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, eq=False)  # the hash of an identity is quick
class Metric:
    """A count that only grows. Prometheus sees it as `ray_<name>_total`."""

    name: str
    description: str
    label: str = ""
    """Name of its one label; empty where it has none."""
    values: tuple[str, ...] = ("",)
    """All values that the label can have."""


READ_BYTES = Metric("paramdelta_read_bytes", "Bytes of inputs that were asked for.")
WRITTEN_BYTES = Metric("paramdelta_written_bytes", "Bytes of shards that their store has taken.")
STAGE_SECONDS = Metric(
    "paramdelta_stage_seconds",
    "Seconds of threads, by what they did. read: waited for bytes of inputs; compute: made tiles; write: waited for the output's "
    "store to take bytes. The threads of a worker do these at the same time, so that the largest is what limits it.",
    "stage",
    ("read", "compute", "write"),
)
SHARDS = Metric(
    "paramdelta_shards",
    "Attempts at shards that ended. made: with a shard; failed: with an error; lost: with their worker; stopped: were called off.",
    "outcome",
    ("made", "failed", "lost", "stopped"),
)
RETRIES = Metric(
    "paramdelta_retries",
    "Shards that were begun once more. error: an attempt failed; worker_lost, node_lost: with it or its node; late: it took too long; "
    "leaving: its node was about to go.",
    "cause",
    ("error", "worker_lost", "node_lost", "late", "leaving"),
)
METRICS = (READ_BYTES, WRITTEN_BYTES, STAGE_SECONDS, SHARDS, RETRIES)


class Count(NamedTuple):
    """A metric, and the value of its label."""

    metric: Metric
    value: str = ""


class Meter:
    """Totals by metric and value of its label. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = {Count(metric, value): 0.0 for metric in METRICS for value in metric.values}

    def add(self, metric: Metric, amount: float = 1, value: str = "") -> None:
        """Count `amount` more. Raises KeyError for a value of the label that is not listed."""
        with self._lock:
            self._totals[Count(metric, value)] += amount

    def totals(self) -> dict[Count, float]:
        """Everything that was counted so far."""
        with self._lock:
            return dict(self._totals)

    def total(self, metric: Metric) -> dict[str, int]:
        """The counts of one metric, by its label; only those that are not zero."""
        return {count.value: round(amount) for count, amount in self.totals().items() if count.metric is metric and amount}


METER = Meter()
"""Of this process: what it read, computed and wrote."""


class Stopwatch:
    """Counts the seconds between its starts and stops as those of one stage."""

    def __init__(self, stage: str) -> None:
        self._stage, self._began = stage, 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        METER.add(STAGE_SECONDS, time.perf_counter() - self._began, self._stage)
