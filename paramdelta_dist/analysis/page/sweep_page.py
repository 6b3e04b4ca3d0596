"""The page about a sweep: its points side by side, over what was swept, in every part of the model, and against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paramdelta_dist.analysis.page.html import framed
from paramdelta_dist.analysis.page.labels import colour, folded
from paramdelta_dist.analysis.page.svg import Line, curves, grid, layer_map, legend, number, percent, ramp, text
from paramdelta_dist.analysis.page.timeline import run_section
from paramdelta_dist.analysis.probes import EVERY, Lane
from paramdelta_dist.analysis.statistics import WHOLE, Group
from paramdelta_dist.analysis.sweep_comparison import Comparison
from paramdelta_dist.checkpoint.components import Component
from paramdelta_dist.kernels.measure import Floats
from paramdelta_dist.kernels.sketch import LENGTH
from paramdelta_dist.planning.chunks import MEASURE_CHUNK
from paramdelta_dist.sizes import format_seconds, format_size

LARGEST = 100
"""Rows of the table of largest changes."""
ON_PAPER = 40
"""Rows of it that are printed."""
MAPS = 8
"""Points of which a map of layers and components is drawn."""
FEW = 8
"""Points that have a column each in the table of largest changes."""
DECADES = 2.0
"""Most powers of ten that the colours of a map span."""
LONG = 9
"""Signs of a point's name that are too many for the head of a column."""


def render_points_page(
    comparison: Comparison, run: Mapping[str, Any], lanes: Sequence[Lane], *, left_out: Sequence[str] = (), unmeasured: int = 0
) -> bytes:
    """The whole page. `left_out` are points of which not everything was measured, `unmeasured` the tensors of which none is."""
    swept = list(dict.fromkeys(key for point in comparison.points for key in point.values))
    count = len(comparison.points)
    title = f"{count} point{'s' * (count != 1)} of a sweep over {' and '.join(swept)}"
    lead = (
        f"{int(comparison.elements.sum()):,} parameters in {len(comparison.tensors):,} tensors; base <code>{text(comparison.inputs[0].url)}"
        "</code>"
    )
    sections = [
        _not_compared(comparison, left_out),
        _points(comparison),
        _over(comparison, swept),
        _where(comparison),
        _apart(comparison),
        _largest(comparison),
        run_section(lanes, "sweep"),
        _definitions(run, unmeasured),
    ]
    return framed(title, lead, sections)


def labels_of(comparison: Comparison) -> list[str]:
    """As short a name of each point as will do: its value where one parameter is swept, else P1, P2, …"""
    short = [
        name.partition("=")[2] if len(point.values) == 1 else name
        for name, point in zip(_names(comparison), comparison.points, strict=True)
    ]
    return short if all(len(name) <= LONG for name in short) else [f"P{n + 1}" for n in range(len(short))]


def _names(comparison: Comparison) -> list[str]:
    return [point.name for point in comparison.points]


def _key(comparison: Comparison) -> str:
    """What the labels stand for, where that is not plain."""
    labels, names = labels_of(comparison), _names(comparison)
    if len(comparison.points[0].values) == 1 and labels[0] in names[0]:
        return f'<p class="soft">Points are named by their {text(next(iter(comparison.points[0].values)))}.</p>'
    if labels == names:
        return ""
    items = "".join(f"<dt>{label}</dt><dd>{text(name)}</dd>" for label, name in zip(labels, names, strict=True))
    return f'<details class="print"><summary>What the points are</summary><dl class="small">{items}</dl></details>'


def _not_compared(comparison: Comparison, left_out: Sequence[str]) -> str:
    said = ""
    if left_out:
        names = ", ".join(f"<code>{text(name)}</code>" for name in left_out)
        said += f'<div class="card warn">{names}: made before, at least in part, without being measured, and so not on this page.</div>'
    places = np.flatnonzero(~comparison.finite)
    if len(places):
        names = ", ".join(f"<code>{text(comparison.tensors[place].name)}</code>" for place in places[:20])
        more = f" and {len(places) - 20} more" if len(places) > 20 else ""
        said += f'<div class="card warn"><strong>NaN or infinity</strong> in {names}{more}: left out of every sum.</div>'
    return said


def _points(comparison: Comparison) -> str:
    rows, whole, labels = comparison.of_groups, comparison.whole, labels_of(comparison)
    relative = rows.relative[:, whole]
    body = []
    for place, point in enumerate(comparison.points):
        value = next(iter(point.values.values())) if len(point.values) == 1 else place
        first = f' data-v="{float(value):.9g}"' if _is_number(value) else ""
        cells = [
            *((relative[place, other], percent(relative[place, other])) for other in range(len(comparison.inputs))),
            (rows.distance[place, whole, 0], number(rows.distance[place, whole, 0], 4)),
            (rows.peak[place, whole], number(rows.peak[place, whole])),
            (rows.unchanged[place, whole], percent(rows.unchanged[place, whole])),
        ]
        shown = "".join(f'<td data-v="{float(figure):.6g}">{words}</td>' for figure, words in cells)
        label = f"{labels[place]} · " if labels[place] not in point.name else ""
        body.append(f'<tr><td{first}>{label}{text(point.name)}</td>{shown}<td class="word">{_most(comparison, place)}</td></tr>')
    heads = "".join(f"<th>from {text(each.label)}</th>" for each in comparison.inputs[1:])
    return (
        "<h2>The points</h2><p>How far each output is from the models it was made of, as a share of the norm of the base: from the base, "
        f'which is what was added to it, and from every model that took part. {_nearest(comparison)} <span class="screen">A press on '
        'a column’s head sorts by it.</span></p><div class="card"><div class="scroll"><table class="sortable"><thead><tr>'
        f"<th>point</th><th>from the base</th>{heads}<th>‖added‖</th><th>max |added|</th><th>unchanged</th>"
        f'<th class="word">most in</th></tr></thead><tbody>{"".join(body)}</tbody></table></div></div>'
    )


def _most(comparison: Comparison, point: int) -> str:
    """Layer and component in which a point adds most, for what was there."""
    relative = comparison.of_groups.relative[point, :, 0]
    best = max(
        ((relative[row], g) for g, row in comparison.rows.items() if g.layer is not None and g.component and relative[row] > 0),
        default=None,
        key=lambda found: float(found[0]),
    )
    if best is None or best[1].component is None:
        return "–"
    return f"layer {best[1].layer}, {best[1].component.value}: {percent(best[0])}"


def _nearest(comparison: Comparison) -> str:
    """Which point is nearest to each model that took part."""
    relative, names = comparison.of_groups.relative[:, comparison.whole], _names(comparison)
    said = []
    for other, each in enumerate(comparison.inputs[1:], 1):
        if np.isfinite(relative[:, other]).all():
            best = int(np.argmin(relative[:, other]))
            said.append(f"Nearest to <b>{text(each.label)}</b> is {text(names[best])}.")
    return " ".join(said[:4])


def _over(comparison: Comparison, swept: Sequence[str]) -> str:
    """The figures over what was swept: curves for one number, a grid for two parameters; for more, the table has to do."""
    if len(comparison.points) < 2:
        return ""
    rows, whole = comparison.of_groups, comparison.whole
    values = [list(point.values.values()) for point in comparison.points]
    if len(swept) == 1 and all(_is_number(value) for (value,) in values):
        return _curves(comparison, swept[0], [float(value) for (value,) in values])
    if len(swept) != 2:
        return ""
    down, across = (list(dict.fromkeys(str(each[side]) for each in values)) for side in (0, 1))
    figures = [("Distance from the base", rows.relative[:, whole, 0])]
    figures += [(f"Distance from {each.label}", rows.relative[:, whole, n]) for n, each in enumerate(comparison.inputs) if n]
    figures.append(("Unchanged parameters", rows.unchanged[:, whole]))
    cards = []
    for name, of_points in figures:
        table = np.full((len(down), len(across)), np.nan)
        for (one, other), value in zip(values, of_points, strict=True):
            table[down.index(str(one)), across.index(str(other))] = value
        picture = grid(f"{name} by {swept[0]} and {swept[1]}", down, across, table, _ramp(table), lambda v: percent(v, 3))
        cards.append(f'<div class="card"><h3>{text(name)}</h3><figure>{picture}</figure></div>')
    return (
        f"<h2>Over {text(swept[0])} and {text(swept[1])}</h2><p>{text(swept[0])} downwards, {text(swept[1])} to the right. Distances are "
        f'shares of the base’s norm. Each picture has colours of its own.</p><div class="maps">{"".join(cards)}</div>'
    )


def _curves(comparison: Comparison, swept: str, values: Sequence[float]) -> str:
    rows, whole = comparison.of_groups, comparison.whole
    order = np.argsort(values)
    span = (max(values) - min(values)) or 1.0
    near = min((b - a for a, b in zip(sorted(values), sorted(values)[1:], strict=False)), default=span)
    at = sorted(values) if len(values) <= 12 and near / span > 0.07 else None

    def line(label: str, kind: str, figures: Floats, dashed: bool = False) -> Line:
        return Line(label, kind, [(values[n], float(figures[n])) for n in order if math.isfinite(figures[n])], dashed, dots=True)

    def card(title: str, drawn: Sequence[Line], keys: str, up: Any) -> str:
        picture = curves(f"{title} as a function of {swept}", drawn, across=swept, up=up, ticks_across=at)
        return f'<div class="card"><h3>{text(title)}</h3><figure>{picture}{keys}</figure></div>'

    relative = rows.relative[:, whole]
    distances, keys = [], []
    for place, each in enumerate(comparison.inputs):
        kind, label = ("base", "the base") if place == 0 else (colour(place - 1), each.label)
        distances.append(line(label, kind, relative[:, place]))
        keys.append(f'<li><span class="solid {kind}"></span>{text(label)}</li>')
    parts = [(component, rows.relative[:, comparison.rows[Group(component, None)], 0]) for component in comparison.components]
    by_part = [line(component.value, colour(place), figures) for place, (component, figures) in enumerate(parts)]
    part_keys = "".join(
        f'<li><span class="solid {colour(place)}"></span>{component.value}</li>' for place, (component, _) in enumerate(parts)
    )
    cards = [
        card("Distance from each input", distances, f'<ul class="key">{"".join(keys)}</ul>', lambda y: percent(y, 2)),
        card("What is added, by component", by_part, f'<ul class="key">{part_keys}</ul>', lambda y: percent(y, 2)),
        card("Unchanged parameters", [line("unchanged", "s0", rows.unchanged[:, whole])], "", lambda y: percent(y, 2)),
        card("Largest change of a parameter", [line("max |added|", "s0", rows.peak[:, whole])], "", lambda y: number(y, 2)),
    ]
    return (
        f"<h2>Over {text(swept)}</h2><p>Dots are the points; the lines between them lead the eye. Distances are shares of the base’s norm, "
        f'of the whole model or of the component.</p><div class="cards">{"".join(cards)}</div>'
    )


def _where(comparison: Comparison) -> str:
    rows, labels = comparison.of_groups, labels_of(comparison)
    added = rows.relative[:, :, 0]
    positive = added[np.isfinite(added) & (added > 0)]
    if not positive.size:
        return "<h2>Where it is added</h2><p>Nowhere: every point is the base, element by element, as far as it was measured.</p>"
    step, (low, high) = _ramp(added), _span(added)
    scale = legend("q", [percent(low, 2), percent(math.sqrt(low * high), 2), percent(high, 2)], "From little to much that was added")
    components = comparison.components
    by_component = added[:, [comparison.rows[Group(component, None)] for component in components]]
    cards = [
        _grid_card("By component", labels, [component.value for component in components], by_component, step),
        _grid_card(
            "By layer",
            [str(layer) for layer in comparison.layers],
            labels,
            added[:, [comparison.rows[Group(None, layer)] for layer in comparison.layers]].T,
            step,
        )
        if comparison.layers
        else "",
    ]
    count = len(comparison.points)
    chosen = sorted({round(n * (count - 1) / max(1, min(MAPS, count) - 1)) for n in range(min(MAPS, count))})
    maps = "".join(_map_card(comparison, point, labels[point], step) for point in chosen) if comparison.layers else ""
    some = f" {len(chosen)} of {count} points; all are in groups.parquet." if len(chosen) < count else ""
    each = (
        f"<h3>Layer by layer and component by component</h3><p>From the first layer down.{some}</p><div class='maps'>{maps}</div>"
        if maps
        else ""
    )
    return (
        f"<h2>Where it is added</h2><p>‖output − base‖ / ‖base‖ of every part of the model. All maps have the same colours.</p>{scale}"
        f"{_key(comparison)}<div class='maps'>{''.join(cards)}</div>{each}"
    )


def _grid_card(title: str, down: Sequence[str], across: Sequence[str], values: Floats, step: Any) -> str:
    picture = grid(f"What is added, {title.lower()}", down, across, values, step, lambda v: percent(v, 2))
    heads = "".join(f"<th>{text(each)}</th>" for each in across)
    lines = "".join(
        f"<tr><th>{text(name)}</th>{''.join(f'<td>{percent(value)}</td>' for value in row)}</tr>"
        for name, row in zip(down, values.tolist(), strict=True)
    )
    table = folded(f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table>")
    return f'<div class="card"><h3>{text(title)}</h3><figure>{picture}</figure>{table}</div>'


def _map_card(comparison: Comparison, point: int, label: str, step: Any) -> str:
    added = comparison.of_groups.relative[point, :, 0]
    inside = {
        (g.layer, g.component.value): float(added[row])
        for g, row in comparison.rows.items()
        if g.layer is not None and g.component is not None
    }
    columns = [component.value for component in comparison.components if any(name == component.value for _, name in inside)]
    outside = [
        (component.value, float(added[comparison.rows[Group(component, None)]]), component is Component.EMBEDDING)
        for component in comparison.components
        if component.value not in columns
    ]
    name = comparison.points[point].name
    picture = layer_map(f"What {name} adds by layer and component", comparison.layers, columns, inside, outside, step, percent)
    shown = text(name) if label in name else f"{label} · {text(name)}"
    return f'<div class="card"><h3>{shown}</h3><figure>{picture}</figure></div>'


def _apart(comparison: Comparison) -> str:
    if len(comparison.points) < 2:
        return ""
    labels = labels_of(comparison)
    table = comparison.apart / comparison.of_groups.base_norm[comparison.rows[WHOLE]]
    np.fill_diagonal(table, 0.0)
    picture = grid("Distances between the points", labels, labels, table, _ramp(table), lambda v: percent(v, 2))
    heads = "".join(f"<th>{text(each)}</th>" for each in labels)
    lines = "".join(
        f"<tr><th>{text(name)}</th>{''.join(f'<td>{percent(value)}</td>' for value in row)}</tr>"
        for name, row in zip(labels, table.tolist(), strict=True)
    )
    folded_table = folded(f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table>")
    return (
        "<h2>How far the points are from each other</h2><p>Distance of any two outputs over the whole model, as a share of the base’s "
        f'norm; 0 where they are the same.</p><div class="maps"><div class="card"><figure>{picture}</figure>{folded_table}</div></div>'
    )


def _largest(comparison: Comparison) -> str:
    rows, labels = comparison.of_tensors, labels_of(comparison)
    relative = rows.relative[:, :, 0]
    most, least = np.nan_to_num(relative, nan=-1.0).max(axis=0), np.nan_to_num(relative, nan=-1.0).min(axis=0)
    order = np.argsort(-most, kind="stable")[:LARGEST]
    few = len(comparison.points) <= FEW
    body = []
    for position, tensor in enumerate(int(n) for n in order):
        place = comparison.places[tensor]
        layer = "" if place.layer is None else str(place.layer)
        figures = relative[:, tensor] if few else np.array([least[tensor], most[tensor]])
        shown = "".join(f'<td data-v="{float(value):.6g}">{percent(float(value))}</td>' for value in figures)
        peak = float(rows.peak[:, tensor].max())
        body.append(
            f"<tr{' class=more' if position >= ON_PAPER else ''}><td><code>{text(comparison.tensors[tensor].name)}</code></td>"
            f'<td class="word">{place.component.value}</td><td data-v="{layer}">{layer or "–"}</td>'
            f'<td data-v="{int(comparison.elements[tensor])}">{int(comparison.elements[tensor]):,}</td>{shown}'
            f'<td data-v="{peak:.6g}">{number(peak)}</td></tr>'
        )
    some = (
        f"The {len(order)} of {len(most):,} tensors with the largest change; all are in tensors.parquet." if len(most) > len(order) else ""
    )
    columns = [f"at {label}" for label in labels] if few else ["least", "most"]
    heads = "".join(f"<th>{text(column)}</th>" for column in columns)
    return (
        "<h2>The largest changes</h2><p>‖output − base‖ / ‖base‖ of single tensors, "
        f"{'point by point' if few else 'at the points where it is least and most'}. {some}</p>"
        '<div class="card"><div class="scroll"><table class="sortable"><thead><tr><th class="word">tensor</th>'
        f'<th class="word">component</th>'
        f"<th>layer</th><th>parameters</th>{heads}<th>max |added|</th></tr></thead><tbody>{''.join(body)}</tbody></table></div></div>"
    )


def _definitions(run: Mapping[str, Any], unmeasured: int) -> str:
    rest = f" {unmeasured:,} tensors that are copied, or whose rows come from several places, are not in it." if unmeasured else ""
    return (
        "<h2>What the figures are</h2><p>Outputs are compared as they were written, rounded to their dtype, with the base and with every "
        "model that took part, element by element. Sums are made in float64; norms are Euclidean. Figures of a layer, a component or the "
        f"model are of its tensors laid end to end.{rest}</p>"
        f"<p><strong>All figures are estimates</strong> from one block of {MEASURE_CHUNK:,} "
        f"parameters in {EVERY} of every tensor, evenly spread, with at least one block of each: what is said of a tensor of at most "
        f"{MEASURE_CHUNK:,} parameters is exact. Maxima are of the blocks that were measured. Distances between two points are told from "
        f"{LENGTH:,} numbers that each point keeps of what it added, which is right to about {percent(1 / math.sqrt(2 * LENGTH), 1)}; "
        "they are 0 only where nothing that was measured differs.</p>"
        f"<p>The inputs were read once for all points that were made in this run: {format_size(run['bytes_read'])} read and "
        f"{format_size(run['bytes_written'])} written in {format_seconds(run['seconds'])} "
        f"({'on Ray' if run['engine'] == 'ray' else 'in one process'}). Tables beside this page: <code>tensors.parquet</code> (a row a "
        "point and tensor), <code>groups.parquet</code>, <code>pairs.parquet</code>.</p>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _span(values: Floats) -> tuple[float, float]:
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return 0.0, 1.0
    high = float(positive.max())
    return max(float(positive.min()), high / 10**DECADES), high


def _ramp(values: Floats) -> Any:
    return ramp(*_span(values))
