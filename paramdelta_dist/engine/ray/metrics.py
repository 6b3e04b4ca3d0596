"""From a meter to Ray's metrics, which the agent of each node serves to Prometheus."""

from __future__ import annotations

import threading

from ray.util.metrics import Counter

from paramdelta_dist.engine.metrics import METRICS, Meter, Metric


class Publisher:
    """Hands on what a meter has counted since the last time. Safe to use from several threads."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._lock = meter, threading.Lock()
        self._counters = {metric: Counter(metric.name, metric.description, (metric.label,) if metric.label else ()) for metric in METRICS}
        self._told: dict[tuple[Metric, str], float] = {}

    def publish(self) -> None:
        with self._lock:
            totals = self._meter.totals()
            for (metric, value), total in totals.items():
                if (more := total - self._told.get((metric, value), 0.0)) > 0:
                    self._counters[metric].inc(more, {metric.label: value} if metric.label else {})
            self._told = totals
