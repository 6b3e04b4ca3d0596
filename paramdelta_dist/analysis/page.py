"""The page: one HTML file with everything in it, for a browser without a network, a phone, and paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any

import numpy as np

from paramdelta_dist._version import __version__
from paramdelta_dist.analysis.drawing import (
    Line,
    bars,
    curves,
    diverging,
    layer_map,
    legend,
    matrix,
    number,
    percent,
    ramp,
    text,
)
from paramdelta_dist.analysis.spread import spread
from paramdelta_dist.analysis.statistics import WHOLE, Group, Statistics
from paramdelta_dist.checkpoint.components import Component
from paramdelta_dist.kernels.measuring import BINS, LOWEST, Floats
from paramdelta_dist.sizes import format_seconds, format_size

LARGEST = 200
"""Rows of the table of largest changes."""
ON_PAPER = 40
"""Rows of it that are printed."""
PAIR_MAPS = 6
"""Pairs of which a map of cosines by layer is drawn: those that are least orthogonal."""
DECADES = 2.0
"""Most powers of ten that the colours of a map span: below that all looks the same."""


def render_page(statistics: Statistics, title: str, run: dict[str, Any], more: Iterable[str] = ()) -> bytes:
    """The whole page; `more` are sections that come before the definitions."""
    sections = [
        _summary(statistics),
        _where(statistics),
        _alike(statistics),
        _sizes(statistics),
        _scaled(statistics),
        _largest(statistics),
        *more,
        _definitions(statistics, run),
    ]
    style, script = (files(__package__).joinpath("assets", name).read_text() for name in ("style.css", "script.js"))
    subject = statistics.subject
    count = f"{len(subject.deltas)} deltas" if len(subject.deltas) > 1 else "one delta"
    document = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{text(title)}</h1>
<p class="soft">{count}, {int(statistics.elements.sum()):,} parameters in {len(statistics.tensors):,} tensors; new base
<code>{text(subject.base)}</code></p>
{"".join(section for section in sections if section)}
<footer>Made by paramdelta-dist {__version__} on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC.</footer>
</main>
<script>
{script}</script>
</body>
</html>
"""
    return document.encode(errors="backslashreplace")


def symbol(statistics: Statistics, vector: int) -> str:
    """δ₁, δ₂, … of deltas, and Δ with a number of the new base's way from their bases."""
    deltas, drifts = statistics.subject.vectors.deltas, len(statistics.subject.drifts)
    if vector < deltas:
        return f"δ{_subscript(vector + 1)}" if deltas > 1 else "δ"
    return f"Δ{_subscript(vector - deltas + 1)}" if drifts > 1 else "Δ"


def colour(delta: int) -> str:
    return f"s{delta % 8}"


def _summary(statistics: Statistics) -> str:
    row = statistics.row(WHOLE)
    figures, subject = statistics.of_groups, statistics.subject
    cards = []
    for delta, one in enumerate(subject.deltas):
        where = _hottest(statistics, delta)
        facts = [
            ("post", f"<code>{text(one.post)}</code>"),
            ("base", f"<code>{text(one.base)}</code>"),
            ("weight", number(one.weight, 4)),
            ("‖δ‖", number(figures.norm[row, delta], 4)),
            ("max |δ|", number(figures.peak[row, delta], 4)),
            ("mean |δ|", number(figures.mean_magnitude[row, delta], 4)),
            ("unchanged", percent(figures.zero_share[row, delta])),
            *([("most in", where)] if where else []),
        ]
        listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
        cards.append(
            f'<div class="card"><div class="delta-name"><span class="swatch {colour(delta)}"></span>{symbol(statistics, delta)} '
            f'{text(one.label)}</div><div class="fact">{percent(figures.relative_norm[row, delta])}</div>'
            f'<div class="soft">of the norm of its base</div><dl class="small">{listed}</dl></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>{_sentence(statistics)}{_not_finite(statistics)}'


def _hottest(statistics: Statistics, delta: int) -> str:
    """Layer and component, of those with a layer, in which a delta is largest for what was there."""
    best = max(
        ((value, group) for group, value in _relative(statistics, delta).items() if group.layer is not None and group.component),
        default=None,
        key=lambda found: found[0],
    )
    if best is None:
        return ""
    value, group = best
    assert group.component is not None
    return f"layer {group.layer}, {group.component.value}: {percent(value)}"


def _sentence(statistics: Statistics) -> str:
    """What the cosines come to, in words."""
    subject, row = statistics.subject, statistics.row(WHOLE)
    cosines = statistics.of_groups.cosines[row]
    said = []
    couples = [(abs(cosines[a, b]), a, b) for a, b in subject.vectors.couples if math.isfinite(cosines[a, b])]
    if couples:
        most, a, b = max(couples)
        names = f"{symbol(statistics, a)} and {symbol(statistics, b)}"
        if most < 0.1:
            said.append(f"The deltas are nearly orthogonal: no two have a cosine beyond ±{number(most, 2)} ({names}).")
        else:
            said.append(f"The deltas that have most in common are {names}: their cosine is {number(cosines[a, b], 2)}.")
    drift = subject.vectors.deltas
    if subject.drifts and math.isfinite(cosines[0, drift]):
        value = cosines[0, drift]
        kind = "nearly orthogonal to" if abs(value) < 0.1 else "partly along" if value > 0 else "partly against"
        said.append(
            f"{symbol(statistics, 0)} is {kind} the way from its base to the new one ({symbol(statistics, drift)}): cosine {number(value, 2)}."
        )
    return f"<p>{' '.join(said)}</p>" if said else ""


def _not_finite(statistics: Statistics) -> str:
    places = np.flatnonzero(~statistics.finite)
    if not len(places):
        return ""
    names = ", ".join(f"<code>{text(statistics.tensors[place].name)}</code>" for place in places[:20])
    more = f" and {len(places) - 20} more" if len(places) > 20 else ""
    return f'<div class="card warn"><strong>NaN or infinity</strong> in {names}{more}: left out of every sum.</div>'


def _where(statistics: Statistics) -> str:
    subject = statistics.subject
    values = [_relative(statistics, delta) for delta in range(subject.vectors.deltas)]
    positive = [v for of_delta in values for v in of_delta.values() if v > 0 and math.isfinite(v)]
    if not positive:
        return ""
    high = max(positive)
    low = max(min(positive), high / 10**DECADES)
    step = ramp(low, high)
    maps = []
    for delta, one in enumerate(subject.deltas):
        name = f"{symbol(statistics, delta)} {one.label}"
        picture = _map(statistics, f"Relative norm of {name} by layer and component", values[delta], step, percent)
        maps.append(
            f'<div class="card"><h3><span class="swatch {colour(delta)}"></span> {text(name)}</h3><figure>{picture}</figure>'
            f"{_map_table(statistics, values[delta], percent)}</div>"
        )
    rows: list[tuple[str, list[tuple[str, float]]]] = [
        (component.value, [(colour(delta), of_delta.get(Group(component, None), math.nan)) for delta, of_delta in enumerate(values)])
        for component in statistics.components
    ]
    picture = bars("Relative norm by component", rows, percent)
    heads = "".join(f"<th>{symbol(statistics, delta)}</th>" for delta in range(len(values)))
    table = "".join(f"<tr><th>{name}</th>{''.join(f'<td>{percent(v)}</td>' for _, v in row)}</tr>" for name, row in rows)
    by_component = (
        f'<div class="card grow"><h3>By component</h3><figure>{picture}{_key(statistics)}</figure>'
        f"{_details(f'<table><thead><tr><th>component</th>{heads}</tr></thead><tbody>{table}</tbody></table>')}"
        f'<h3 style="margin-top:18px">Colours of the maps</h3>'
        f"{legend('q', [percent(low, 2), percent(math.sqrt(low * high), 2), percent(high, 2)], 'From small to large relative norms')}</div>"
    )
    return (
        f"<h2>Where the deltas are</h2><p>‖δ‖ / ‖base‖ in every layer and component, from the first layer down. A darker cell is a part "
        f'that training changed more, for its size.</p><div class="maps">{"".join(maps)}{by_component}</div>'
    )


def _relative(statistics: Statistics, delta: int) -> dict[Group, float]:
    figures = statistics.of_groups.relative_norm
    return {group: float(figures[row, delta]) for row, group in enumerate(statistics.groups)}


def _map(
    statistics: Statistics,
    title: str,
    values: dict[Group, float],
    step: Callable[[float | None], str],
    shown: Callable[[float | None], str],
) -> str:
    inside = {(g.layer, g.component.value): v for g, v in values.items() if g.layer is not None and g.component is not None}
    columns = [c.value for c in statistics.components if any(name == c.value for _, name in inside)]
    return layer_map(title, statistics.layers, columns, inside, _outside(statistics, values), step, shown)


def _outside(statistics: Statistics, values: dict[Group, float]) -> list[tuple[str, float, bool]]:
    """Components of which some tensor stands in no layer, unless others of them do: their figure would be of both."""
    within = {group.component for group in statistics.groups if group.layer is not None}
    return [
        (component.value, values[Group(component, None)], component is Component.EMBEDDING)
        for component in statistics.components
        if component not in within and Group(component, None) in values
    ]


def _map_table(statistics: Statistics, values: dict[Group, float], shown: Callable[[float | None], str]) -> str:
    columns = [c for c in statistics.components if any(Group(c, layer) in values for layer in statistics.layers)]
    heads = "".join(f"<th>{column.value}</th>" for column in columns)
    rows = [
        f"<tr><th>{layer}</th>{''.join(f'<td>{shown(values.get(Group(column, layer)))}</td>' for column in columns)}</tr>"
        for layer in statistics.layers
    ]
    return _details(f"<table><thead><tr><th>layer</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>") if rows else ""


def _alike(statistics: Statistics) -> str:
    subject, row = statistics.subject, statistics.row(WHOLE)
    size = len(subject.vectors.pairs)
    if size < 2:
        return ""
    ends, means = statistics.of_groups.cosines[row], statistics.mean_cosines[WHOLE]
    symbols = [symbol(statistics, vector) for vector in range(size)]
    pairs = [(a, b) for a, b in subject.vectors.dots if a != b]
    most = max((abs(v) for table in (ends, means) for v in [table[a, b] for a, b in pairs] if math.isfinite(v)), default=0)
    step = diverging(_round_up(most))
    cards = [
        f'<div class="card"><h3>Whole model, laid end to end</h3><figure>{matrix("Cosines over the whole model", symbols, ends, step)}'
        "</figure></div>",
        f'<div class="card"><h3>Mean of tensors</h3><figure>{matrix("Means of the tensors cosines", symbols, means, step)}</figure></div>',
    ]
    agreement = dict(zip(subject.vectors.couples, statistics.of_groups.sign_agreement[row], strict=True))
    rows = "".join(
        f"<tr><th>{text(subject.labels[a])}</th><td class=word>{text(subject.labels[b])}</td><td>{number(ends[a, b])}</td>"
        f"<td>{number(means[a, b])}</td><td>{percent(agreement.get((a, b)))}</td></tr>"
        for a, b in pairs
    )
    table = (
        "<table><thead><tr><th>between</th><th class=word>and</th><th>end to end</th><th>mean of tensors</th><th>same sign</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    names = "".join(f"<dt>{symbols[vector]}</dt><dd>{text(label)}</dd>" for vector, label in enumerate(subject.labels))
    cards.append(
        f'<div class="card grow"><h3>Pairs</h3><div class="scroll">{table}</div><dl class="small">{names}</dl>'
        f"<figcaption>Independent changes of n parameters have a cosine of about 1/√n and half of their signs in common.</figcaption></div>"
    )
    maps = _pair_maps(statistics, pairs, symbols)
    return f'<h2>Whether they go the same way</h2><div class="maps">{"".join(cards)}</div>{maps}'


def _pair_maps(statistics: Statistics, pairs: Sequence[tuple[int, int]], symbols: Sequence[str]) -> str:
    if not statistics.layers:
        return ""
    cosines, row = statistics.of_groups.cosines, statistics.row(WHOLE)
    chosen = sorted(pairs, key=lambda pair: -np.nan_to_num(np.abs(cosines[row, pair[0], pair[1]])))[:PAIR_MAPS]
    tables = [{g: float(cosines[n, a, b]) for n, g in enumerate(statistics.groups)} for a, b in chosen]
    most = max((abs(v) for table in tables for v in table.values() if math.isfinite(v)), default=0)
    limit = _round_up(most)
    maps = []
    for (a, b), table in zip(chosen, tables, strict=True):
        name = f"{symbols[a]} and {symbols[b]}"
        picture = _map(statistics, f"Cosines of {name} by layer and component", table, diverging(limit), _cosine)
        maps.append(f'<div class="card"><h3>{name}</h3><figure>{picture}</figure>{_map_table(statistics, table, _cosine)}</div>')
    some = f" of the {len(chosen)} pairs with the largest" if len(chosen) < len(pairs) else ""
    ends = legend("d", [_cosine(-limit), "0", _cosine(limit)], "From opposite to alike")
    return (
        f'<h2>… and where</h2><p>Cosines{some} in every layer and component, end to end.</p>{ends}<div class="maps">{"".join(maps)}</div>'
    )


def _cosine(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def _sizes(statistics: Statistics) -> str:
    row, figures, subject = statistics.row(WHOLE), statistics.of_groups, statistics.subject
    assert row is not None
    used = np.flatnonzero(figures.histograms[row].sum(axis=0))
    if not len(used):
        return ""
    low, high = int(used[0]), int(used[-1]) + 1
    shares = [_shares(figures.histograms[row, delta], int(figures.elements[row])) for delta in range(subject.vectors.deltas)]
    # a bin without a neighbour in sight says little: the picture begins where one in a hundred thousand is
    seen = [b for b in range(low, high) if any(share[b] > 1e-5 for share in shares)]
    low, high = (seen[0], seen[-1] + 1) if seen else (low, high)
    lines = [Line(_called(statistics, delta), colour(delta), _steps(shares[delta], low, high)) for delta in range(len(shares))]
    every = max(1, -(-(high - low) // 7))
    ticks = [LOWEST + b for b in range(low, high + 1, every)]
    picture = curves(
        "Distribution of the size of changes", lines, across="|δ|", up=lambda y: percent(y, 2), along=_power, ticks_across=ticks
    )
    zeros = "".join(
        f'<tr><th><span class="swatch {colour(delta)}"></span> {text(_called(statistics, delta))}</th>'
        f"<td>{percent(figures.zero_share[row, delta])}</td><td>{number(figures.mean_magnitude[row, delta])}</td>"
        f"<td>{number(figures.peak[row, delta])}</td></tr>"
        for delta in range(len(shares))
    )
    heads = "".join(f"<th>{symbol(statistics, delta)}</th>" for delta in range(len(shares)))
    counts = "".join(
        f"<tr><th>{_power(LOWEST + b)} to {_power(LOWEST + b + 1)}</th>{''.join(f'<td>{percent(share[b])}</td>' for share in shares)}</tr>"
        for b in range(int(used[0]), int(used[-1]) + 1)
    )
    small = []
    for component in statistics.components:
        place = statistics.row(Group(component, None))
        assert place is not None
        of = [_shares(figures.histograms[place, delta], int(figures.elements[place])) for delta in range(len(shares))]
        lines = [Line(_called(statistics, delta), colour(delta), _steps(share, low, high)) for delta, share in enumerate(of)]
        drawn = curves(
            f"Distribution in {component.value}",
            lines,
            across="",
            up=str,
            along=_power,
            small=True,
            ticks_across=ticks[:: max(1, len(ticks) // 3)],
        )
        small.append(f"<figure><h3>{component.value}</h3>{drawn}</figure>")
    return (
        "<h2>How large the changes are</h2><p>Share of the parameters by the size of their change, in powers of two. Those that did not "
        'change at all are in the table.</p><div class="cards">'
        f'<div class="card"><figure>{picture}{_key(statistics)}</figure>'
        f"{_details(f'<table><thead><tr><th>|δ|</th>{heads}</tr></thead><tbody>{counts}</tbody></table>')}</div>"
        f'<div class="card"><div class="scroll"><table><thead><tr><th>delta</th><th>unchanged</th><th>mean |δ|</th><th>max |δ|</th></tr></thead>'
        f'<tbody>{zeros}</tbody></table></div><h3 style="margin-top:18px">By component</h3><div class="tiny">{"".join(small)}</div></div></div>'
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


def _power(exponent: float) -> str:
    return "2" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _scaled(statistics: Statistics) -> str:
    found = spread(statistics)
    bases = statistics.subject.vectors.bases
    scale = math.sqrt(statistics.base_squares[bases.index(0)])
    if not scale or not any(curve.c for curve in found):
        return ""
    alphas = np.linspace(0, 2, 81)
    posts = {delta.post: colour(number_) for number_, delta in reversed(list(enumerate(statistics.subject.deltas)))}
    olds = {delta.base: colour(number_) for number_, delta in reversed(list(enumerate(statistics.subject.deltas)))}
    lines, rows, keys = [], [], []
    for place, curve in enumerate(found):
        kind = "base" if place == 0 else posts.get(curve.url) or olds.get(curve.url, "base")
        dashed = place > 0 and curve.url not in posts
        lines.append(Line(curve.label, kind, [(float(a), float(d) / scale) for a, d in zip(alphas, curve.at(alphas), strict=True)], dashed))
        nearest = "any α" if curve.nearest is None else number(curve.nearest, 3)
        least = float(curve.at(curve.nearest)) if curve.nearest is not None else float(curve.at(0.0))
        rows.append(
            f"<tr><th>{text(curve.label)}</th><td>{percent(float(curve.at(0.0)) / scale)}</td><td>{percent(float(curve.at(1.0)) / scale)}</td>"
            f"<td>{nearest}</td><td>{percent(least / scale)}</td></tr>"
        )
        role = "the new base" if place == 0 else "post" if curve.url in posts else "base of a delta"
        keys.append(
            f'<li class="{kind}"><span class="{"dash" if dashed else "solid"}"></span><span>{text(curve.label)}, {role}</span></li>'
        )
    picture = curves(
        "Distance of the merge from each input as a function of α",
        lines,
        across="α",
        up=lambda y: percent(y, 2),
        marks=[(1.0, "the recipe")],
    )
    return (
        "<h2>How far a scaled merge is from its inputs</h2><p>Distance of Θ′<sub>base</sub> + α Σ wᵢδᵢ from each model, as a share of "
        "‖Θ′<sub>base</sub>‖. α = 1 is the recipe with its weights; the distances follow from norms and dot products, no merge was made."
        f'</p><div class="cards"><div class="card"><figure>{picture}<ul class="key">{"".join(keys)}</ul></figure></div>'
        '<div class="card"><div class="scroll"><table><thead><tr><th>distance from</th><th>α = 0</th><th>α = 1</th><th>nearest at α</th>'
        f"<th>there</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></div></div>"
    )


def _largest(statistics: Statistics) -> str:
    figures, subject = statistics.of_tensors, statistics.subject
    relative = figures.relative_norm.reshape(-1)
    order = np.argsort(-np.nan_to_num(relative, nan=-1.0), kind="stable")[:LARGEST]
    rows = []
    for position, flat in enumerate(order):
        tensor, delta = divmod(int(flat), subject.vectors.deltas)
        place = statistics.places[tensor]
        cells = [
            (figures.elements[tensor], f"{int(figures.elements[tensor]):,}"),
            (relative[flat], percent(relative[flat])),
            (figures.norm[tensor, delta], number(figures.norm[tensor, delta])),
            (figures.peak[tensor, delta], number(figures.peak[tensor, delta])),
            (figures.mean_magnitude[tensor, delta], number(figures.mean_magnitude[tensor, delta])),
            (figures.zero_share[tensor, delta], percent(figures.zero_share[tensor, delta])),
        ]
        shown = "".join(f'<td data-v="{float(value):.6g}">{words}</td>' for value, words in cells)
        name = f'<td class="word">{symbol(statistics, delta)}</td>' if subject.vectors.deltas > 1 else ""
        layer = "" if place.layer is None else str(place.layer)
        rows.append(
            f"<tr{' class=more' if position >= ON_PAPER else ''}><td><code>{text(statistics.tensors[tensor].name)}</code></td>{name}"
            f'<td class="word">{place.component.value}</td><td data-v="{layer}">{layer or "–"}</td>{shown}</tr>'
        )
    total = relative.size
    some = f"The {len(order)} of {total:,} with the largest ‖δ‖ / ‖base‖; all are in tensors.parquet." if total > len(order) else ""
    delta_head = '<th class="word">delta</th>' if subject.vectors.deltas > 1 else ""
    return (
        f'<h2>The largest changes</h2><p>{some} <span class="screen">A press on a column’s head sorts by it.</span></p><div class="card"><div class="scroll">'
        f'<table class="sortable"><thead><tr><th class="word">tensor</th>{delta_head}<th class="word">component</th><th>layer</th><th>parameters</th>'
        '<th aria-sort="descending">‖δ‖ / ‖base‖</th><th>‖δ‖</th><th>max |δ|</th><th>mean |δ|</th><th>unchanged</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _definitions(statistics: Statistics, run: dict[str, Any]) -> str:
    read = (
        f"Read {format_size(run['bytes_read'])} in {format_seconds(run['seconds'])} with {run['workers']} workers "
        f"({'on Ray' if run['engine'] == 'ray' else 'in one process'})."
    )
    return (
        "<h2>What the figures are</h2><p>δ is a post-trained model minus its base, element by element. Sums are made in float64, in an order "
        "that depends on nothing but the models; norms are Euclidean. Figures of a layer, a component or the model are of its tensors laid end to "
        "end, except where a mean of tensors is said. A cosine “end to end” is Σδₐδ_b / √(Σδₐ² Σδ_b²) over the group; “mean of tensors” is the "
        "unweighted mean of the tensors’ own cosines, those without a change left out. “Same sign” counts the parameters that both deltas "
        "changed. Integer and derived tensors are not counted. Experts, shared ones included, are one component; encoders of images or sound are "
        f"“other”.</p><p>{read} Tables beside this page: <code>tensors.parquet</code>, <code>tensor-pairs.parquet</code>, "
        "<code>groups.parquet</code>, <code>group-pairs.parquet</code>.</p>"
    )


def _key(statistics: Statistics) -> str:
    if statistics.subject.vectors.deltas < 2:
        return ""
    items = "".join(
        f'<li><span class="swatch {colour(delta)}"></span>{text(_called(statistics, delta))}</li>'
        for delta in range(statistics.subject.vectors.deltas)
    )
    return f'<ul class="key">{items}</ul>'


def _called(statistics: Statistics, delta: int) -> str:
    return f"{symbol(statistics, delta)} {statistics.subject.deltas[delta].label}"


def _details(table: str) -> str:
    return f'<details><summary>Figures as a table</summary><div class="scroll">{table}</div></details>'


def _round_up(value: float) -> float:
    """The end of a scale of cosines that shows `value`."""
    return next((limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if value <= limit), 1.0)


def _subscript(value: int) -> str:
    return str(value).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
