"""Section of the page: how a merge went, over time and worker by worker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from paramdelta_dist.analysis.page.labels import folded
from paramdelta_dist.analysis.page.svg import Bar, Line, curves, lanes, text
from paramdelta_dist.analysis.probes import Lane
from paramdelta_dist.sizes import format_seconds, format_size

STRETCHES = 80
"""Points of the curve of throughput."""
MOST_LANES = 64
"""Workers that are drawn; the table has all."""


def run_section(made: Sequence[Lane], what: str = "merge") -> str:
    """Nothing where it is not known how the work went."""
    if not made:
        return ""
    start = min(lane.began for lane in made)
    stop = max(lane.progress[-1][0] for lane in made)
    seconds = max(stop - start, 1e-3)
    rates = throughput(made, start, seconds)
    workers = sorted({lane.worker for lane in made})
    rows: list[tuple[str, list[Bar]]] = []
    for worker in workers[:MOST_LANES]:
        of_worker = sorted((lane for lane in made if lane.worker == worker), key=lambda lane: lane.began)
        rows += [(worker if number == 0 else "", bars) for number, bars in enumerate(_stacked(of_worker, start))]
    most = max((rate for _, rate in rates), default=0.0)
    picture = curves(
        "Throughput over time",
        [Line("written", "s0", rates)],
        across="seconds",
        up=lambda y: f"{y / _unit(most)[0]:g} {_unit(most)[1]}/s",
    )
    listed = "".join(
        f"<tr><th>{text(lane.file)}</th><td class=word>{text(lane.worker)}</td><td>{lane.began - start:.1f} s</td>"
        f"<td>{lane.progress[-1][0] - lane.began:.1f} s</td><td>{format_size(lane.progress[-1][1])}</td></tr>"
        for lane in sorted(made, key=lambda lane: lane.began)
    )
    table = folded(
        "<table><thead><tr><th>shard</th><th class=word>worker</th><th>begun at</th><th>took</th><th>bytes</th></tr></thead>"
        f"<tbody>{listed}</tbody></table>"
    )
    total = sum(lane.progress[-1][1] for lane in made)
    drawn = lanes("A lane for each worker, a bar for each shard", rows, seconds)
    few = f" The first {MOST_LANES} workers are drawn." if len(workers) > MOST_LANES else ""
    return (
        f"<h2>How the {what} went</h2><p>{format_size(total)} written in {format_seconds(seconds)} by {len(workers)} "
        f"process{'es' * (len(workers) > 1)}; times are by the workers’ clocks.{few}</p>"
        f'<div class="cards"><div class="card"><h3>Bytes written a second</h3><figure>{picture}</figure></div></div>'
        f'<div class="card"><h3>Who made what when</h3><figure>{drawn}</figure>{table}</div>'
    )


def throughput(made: Sequence[Lane], start: float, seconds: float) -> list[tuple[float, float]]:
    """(seconds since the start, bytes a second) of all shards together, at both ends of equal stretches."""
    edges = np.linspace(0, seconds, min(STRETCHES, max(2, int(seconds / 0.5))) + 1)
    done = np.zeros(len(edges))
    for lane in made:
        times = [lane.began - start, *(time - start for time, _ in lane.progress)]
        done += np.interp(edges, times, [0, *(size for _, size in lane.progress)])
    rates = np.diff(done) / np.diff(edges)
    return [(float(edge), float(rate)) for pair, rate in zip(pairwise(edges), rates, strict=True) for edge in pair]


def _stacked(of_worker: Sequence[Lane], start: float) -> list[list[Bar]]:
    """Bars in as many rows as a worker made shards at the same time."""
    rows: list[list[Bar]] = []
    for lane in of_worker:
        bar = Bar(lane.began - start, lane.progress[-1][0] - start, lane.file)
        free = next((row for row in rows if row[-1].end <= bar.begin), None)
        if free is None:
            rows.append([bar])
        else:
            free.append(bar)
    return rows


def _unit(most: float) -> tuple[float, str]:
    return next(((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= size), (1.0, "B"))
