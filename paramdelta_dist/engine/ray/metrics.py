"""From a meter to Ray's metrics, which the agent of each node serves to Prometheus."""

from __future__ import annotations

import threading

from ray.util.metrics import Counter

from paramdelta_dist.engine.metrics import METRICS, Count, Meter


class Publisher:
    """Hands on what a meter has counted since the last time. Safe to use from several threads."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._lock = meter, threading.Lock()
        self._counters = {metric: Counter(metric.name, metric.description, (metric.label,) if metric.label else ()) for metric in METRICS}
        self._told: dict[Count, float] = {}

    def publish(self) -> None:
        with self._lock:
            totals = self._meter.totals()
            for count, total in totals.items():
                if (more := total - self._told.get(count, 0.0)) > 0:
                    self._counters[count.metric].inc(more, {count.metric.label: count.value} if count.metric.label else {})
            self._told = totals
