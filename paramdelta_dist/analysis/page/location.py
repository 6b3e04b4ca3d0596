"""Sections of the page: where in the model the deltas are, and whether and where they go the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from paramdelta_dist.analysis.page.labels import colour, folded, key, relative_norms, symbol
from paramdelta_dist.analysis.page.svg import bars, cosine, diverging, layer_map, legend, matrix, number, percent, ramp, text
from paramdelta_dist.analysis.statistics import WHOLE, Group, Statistics
from paramdelta_dist.checkpoint.components import Component

PAIR_MAPS = 6
"""Pairs of which a map of cosines is drawn: those that have most in common, or most against each other."""
CHANCE = 6.0
"""A pair whose cosines all stay below this many times 1/√n is not drawn."""
DECADES = 2.0
"""Most powers of ten that the colours of a map span: below that all looks the same."""


def where_section(statistics: Statistics) -> str:
    subject = statistics.subject
    values = [relative_norms(statistics, delta) for delta in range(subject.vectors.deltas)]
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
    scale = legend("q", [percent(low, 2), percent(math.sqrt(low * high), 2), percent(high, 2)], "From small to large relative norms")
    by_component = (
        f'<div class="card grow"><h3>By component</h3><figure>{picture}{key(statistics)}</figure>'
        f"{folded(f'<table><thead><tr><th>component</th>{heads}</tr></thead><tbody>{table}</tbody></table>')}"
        "</div>"
    )
    return (
        "<h2>Where the deltas are</h2><p>‖δ‖ / ‖base‖ in every layer and component, from the first layer down: how much training changed "
        f"a part, for its size.</p>{scale}<div class='maps'>{''.join(maps)}{by_component}</div>"
    )


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
    return folded(f"<table><thead><tr><th>layer</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>") if rows else ""


def alike_section(statistics: Statistics) -> str:
    subject, row = statistics.subject, statistics.whole
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
        "<table><thead><tr><th>between</th><th class=word>and</th><th>end to end</th><th>mean of tensors</th>"
        "<th>same sign</th></tr></thead>"
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
    cosines, chance = statistics.of_groups.cosines, 1 / np.sqrt(np.maximum(statistics.of_groups.elements, 1))
    most_of = {(a, b): float(np.nanmax(np.nan_to_num(np.abs(cosines[:, a, b]) - CHANCE * chance))) for a, b in pairs}
    chosen = sorted((pair for pair in pairs if most_of[pair] > 0), key=lambda pair: -most_of[pair])[:PAIR_MAPS]
    if not chosen:
        return (
            f"<h2>… and where</h2><p>Nowhere: in no layer and component is a cosine beyond what chance gives there "
            f"({CHANCE:g}/√n of n parameters).</p>"
        )
    tables = [{g: float(cosines[n, a, b]) for n, g in enumerate(statistics.groups)} for a, b in chosen]
    most = max((abs(v) for table in tables for v in table.values() if math.isfinite(v)), default=0)
    limit = _round_up(most)
    maps = []
    for (a, b), table in zip(chosen, tables, strict=True):
        name = f"{symbols[a]} and {symbols[b]}"
        picture = _map(statistics, f"Cosines of {name} by layer and component", table, diverging(limit), cosine)
        maps.append(f'<div class="card"><h3>{name}</h3><figure>{picture}</figure>{_map_table(statistics, table, cosine)}</div>')
    rest = len(pairs) - len(chosen)
    some = f", of the pairs that have most in common, or most against each other; {rest} more in group-pairs.parquet" if rest else ""
    ends = legend("d", [cosine(-limit), "0", cosine(limit)], "From opposite to alike")
    return (
        f'<h2>… and where</h2><p>Cosines in every layer and component, end to end{some}.</p>{ends}<div class="maps">{"".join(maps)}</div>'
    )


def _round_up(value: float) -> float:
    """The end of a scale of cosines that shows `value`."""
    return next((limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if value <= limit), 1.0)
