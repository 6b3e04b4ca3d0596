"""Sections of the page: how large changes are, and how far a scaled merge is from its inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paramdelta_dist.analysis.distance_curve import spread
from paramdelta_dist.analysis.page.labels import called, colour, folded, symbol
from paramdelta_dist.analysis.page.svg import Line, curves, number, percent, power, text
from paramdelta_dist.analysis.statistics import Group, Statistics
from paramdelta_dist.kernels.measure import BINS, LOWEST, Floats


def sizes_section(statistics: Statistics) -> str:
    row, figures, subject = statistics.whole, statistics.of_groups, statistics.subject
    used = np.flatnonzero(figures.histograms[row].sum(axis=0))
    if not len(used):
        return ""
    low, high = int(used[0]), int(used[-1]) + 1
    shares = [_shares(figures.histograms[row, delta], int(figures.elements[row])) for delta in range(subject.vectors.deltas)]
    # a bin without a neighbour in sight says little: the picture begins where one in ten thousand is
    seen = [b for b in range(low, high) if any(share[b] > 1e-4 for share in shares)]
    low, high = (seen[0], seen[-1] + 1) if seen else (low, high)
    lines = [Line(called(statistics, delta), colour(delta), _steps(shares[delta], low, high)) for delta in range(len(shares))]
    every = max(1, -(-(high - low) // 7))
    ticks = [LOWEST + b for b in range(low, high + 1, every)]
    picture = curves(
        "Distribution of the size of changes", lines, across="|δ|", up=lambda y: percent(y, 2), along=power, ticks_across=ticks
    )
    zeros = "".join(
        f'<tr><th><span class="swatch {colour(delta)}"></span> {text(called(statistics, delta))}</th>'
        f"<td>{percent(figures.zero_share[row, delta])}</td><td>{number(figures.mean_magnitude[row, delta])}</td>"
        f"<td>{number(figures.peak[row, delta])}</td></tr>"
        for delta in range(len(shares))
    )
    heads = "".join(f"<th>{symbol(statistics, delta)}</th>" for delta in range(len(shares)))
    counts = "".join(
        f"<tr><th>{power(LOWEST + b)} to {power(LOWEST + b + 1)}</th>{''.join(f'<td>{percent(share[b])}</td>' for share in shares)}</tr>"
        for b in range(int(used[0]), int(used[-1]) + 1)
    )
    small = []
    for component in statistics.components:
        place = statistics.row(Group(component, None))
        assert place is not None
        of = [_shares(figures.histograms[place, delta], int(figures.elements[place])) for delta in range(len(shares))]
        lines = [Line(called(statistics, delta), colour(delta), _steps(share, low, high)) for delta, share in enumerate(of)]
        drawn = curves(
            f"Distribution in {component.value}",
            lines,
            across="",
            up=str,
            along=power,
            small=True,
            ticks_across=ticks[:: max(1, len(ticks) // 3)],
        )
        shown = drawn if any(share.any() for share in of) else '<p class="soft">nothing changed</p>'
        small.append(f"<figure><h3>{component.value}</h3>{shown}</figure>")
    return (
        "<h2>How large the changes are</h2><p>Share of the parameters by the size of their change, in powers of two. Those that did not "
        'change at all are in the table.</p><div class="cards">'
        f'<div class="card"><figure>{picture}</figure><div class="scroll"><table><thead><tr><th>delta</th>'
        f"<th>unchanged</th><th>mean |δ|</th><th>max |δ|</th></tr></thead><tbody>{zeros}</tbody></table></div>"
        f"{folded(f'<table><thead><tr><th>|δ|</th>{heads}</tr></thead><tbody>{counts}</tbody></table>')}</div>"
        f'<div class="card"><h3>By component</h3><div class="tiny">{"".join(small)}</div></div></div>'
    )


def _shares(histogram: Any, elements: int) -> Floats:
    shares: Floats = np.asarray(histogram, np.float64) / max(elements, 1)
    return shares


def _steps(shares: Floats, low: int, high: int) -> list[tuple[float, float]]:
    """A histogram's outline, over the logarithm of |δ|."""
    points: list[tuple[float, float]] = [(LOWEST + low, 0.0)]
    for b in range(low, min(high, BINS)):
        points += [(LOWEST + b, float(shares[b])), (LOWEST + b + 1, float(shares[b]))]
    return [*points, (LOWEST + high, 0.0)]


def scaled_section(statistics: Statistics) -> str:
    found = spread(statistics)
    bases = statistics.subject.vectors.bases
    scale = math.sqrt(statistics.base_squares[bases.index(0)])
    if not scale or not any(curve.c for curve in found):
        return ""
    alphas = np.linspace(0, 2, 81)
    posts = {delta.post: colour(number_) for number_, delta in reversed(list(enumerate(statistics.subject.deltas)))}
    of_bases = [delta.base for delta in statistics.subject.deltas]
    olds = {url: colour(of_bases.index(url)) if of_bases.count(url) == 1 else "base" for url in of_bases}
    lines, rows, keys = [], [], []
    for place, curve in enumerate(found):
        kind = "base" if place == 0 else posts.get(curve.url) or olds.get(curve.url, "base")
        dashed = place > 0 and curve.url not in posts
        lines.append(Line(curve.label, kind, [(float(a), float(d) / scale) for a, d in zip(alphas, curve.at(alphas), strict=True)], dashed))
        nearest = "any α" if curve.nearest is None else number(curve.nearest, 3)
        least = float(curve.at(curve.nearest)) if curve.nearest is not None else float(curve.at(0.0))
        rows.append(
            f"<tr><th>{text(curve.label)}</th><td>{percent(float(curve.at(0.0)) / scale)}</td>"
            f"<td>{percent(float(curve.at(1.0)) / scale)}</td><td>{nearest}</td><td>{percent(least / scale)}</td></tr>"
        )
        role = "the new base" if place == 0 else "post" if curve.url in posts else "base of a delta"
        keys.append(f'<li><span class="{"dash" if dashed else "solid"} {kind}"></span>{text(curve.label)}, {role}</li>')
    picture = curves(
        "Distance of the merge from each input as a function of α",
        lines,
        across="α",
        up=lambda y: percent(y, 2),
        marks=[(1.0, "the recipe")],
    )
    return (
        "<h2>How far a scaled merge is from its inputs</h2><p>Distance of Θ′<sub>base</sub> + α Σ wᵢδᵢ from each model, as a share of "
        "‖Θ′<sub>base</sub>‖. α = 1 is the sum with the recipe’s weights (1 where rules choose them)."
        f'</p><div class="cards"><div class="card"><figure>{picture}<ul class="key">{"".join(keys)}</ul></figure></div>'
        '<div class="card"><div class="scroll"><table><thead><tr><th>distance from</th><th>α = 0</th><th>α = 1</th><th>nearest at α</th>'
        f"<th>there</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>{_swept_card(statistics, scale)}</div>"
    )


def _swept_card(statistics: Statistics, scale: float) -> str:
    """How far the points of a sweep are from every input, before any of them is made."""
    points = {name: spread(statistics, weights) for name, weights in (statistics.subject.points or {}).items()}
    if not points:
        return ""
    heads = "".join(f"<th>from {text(curve.label)}</th>" for curve in next(iter(points.values())))
    rows = "".join(
        f"<tr><th>{text(name)}</th>{''.join(f'<td>{percent(float(curve.at(1.0)) / scale)}</td>' for curve in found)}</tr>"
        for name, found in points.items()
    )
    return (
        '<div class="card"><h3>The points of the sweep</h3><div class="scroll"><table><thead><tr><th>point</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )
