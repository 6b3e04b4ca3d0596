"""The page about deltas: what they are, where, how large, how alike, and how the run went that measured them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paramdelta_dist.analysis.page.html import framed
from paramdelta_dist.analysis.page.labels import colour, relative_norms, symbol, title_of
from paramdelta_dist.analysis.page.location import alike_section, where_section
from paramdelta_dist.analysis.page.sizes import scaled_section, sizes_section
from paramdelta_dist.analysis.page.svg import number, percent, text
from paramdelta_dist.analysis.page.timeline import run_section
from paramdelta_dist.analysis.probes import Lane
from paramdelta_dist.analysis.statistics import Statistics
from paramdelta_dist.planning.chunks import MEASURE_CHUNK
from paramdelta_dist.sizes import format_seconds, format_size

LARGEST = 200
"""Rows of the table of largest changes."""
ON_PAPER = 40
"""Rows of it that are printed."""


def render_page(statistics: Statistics, run: Mapping[str, Any], lanes: Sequence[Lane] = (), sampled: int = 1) -> bytes:
    """The whole page. `lanes` say how the work went, `sampled` that one chunk in so many was measured."""
    sections = [
        _summary(statistics),
        where_section(statistics),
        alike_section(statistics),
        sizes_section(statistics),
        scaled_section(statistics),
        _largest(statistics),
        run_section(lanes),
        _definitions(run, sampled),
    ]
    subject, title = statistics.subject, title_of(statistics)
    count = f"{len(subject.deltas)} deltas" if len(subject.deltas) > 1 else "one delta"
    lead = (
        f"{count}, {int(statistics.elements.sum()):,} parameters in {len(statistics.tensors):,} tensors; new base "
        f"<code>{text(subject.base)}</code>"
    )
    return framed(title, lead, sections)


def _summary(statistics: Statistics) -> str:
    figures, subject = statistics.of_groups, statistics.subject
    row = statistics.whole
    cards = []
    for delta, one in enumerate(subject.deltas):
        where = _hottest(statistics, delta)
        facts = [
            ("post", f"<code>{text(one.post)}</code>"),
            ("base", f"<code>{text(one.base)}</code>"),
            ("weight", "by rules" if one.weight is None else f"{one.weight:g}"),
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
        ((value, group) for group, value in relative_norms(statistics, delta).items() if group.layer is not None and group.component),
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
    subject, row = statistics.subject, statistics.whole
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
            f"{symbol(statistics, 0)} is {kind} the way from its base to the new one ({symbol(statistics, drift)}): "
            f"cosine {number(value, 2)}."
        )
    return f"<p>{' '.join(said)}</p>" if said else ""


def _not_finite(statistics: Statistics) -> str:
    places = np.flatnonzero(~statistics.finite)
    if not len(places):
        return ""
    names = ", ".join(f"<code>{text(statistics.tensors[place].name)}</code>" for place in places[:20])
    more = f" and {len(places) - 20} more" if len(places) > 20 else ""
    return f'<div class="card warn"><strong>NaN or infinity</strong> in {names}{more}: left out of every sum.</div>'


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
        f'<h2>The largest changes</h2><p>{some} <span class="screen">A press on a column’s head sorts by it.</span></p>'
        f'<div class="card"><div class="scroll"><table class="sortable"><thead><tr><th class="word">tensor</th>{delta_head}'
        '<th class="word">component</th><th>layer</th><th>parameters</th>'
        '<th aria-sort="descending">‖δ‖ / ‖base‖</th><th>‖δ‖</th><th>max |δ|</th><th>mean |δ|</th><th>unchanged</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _definitions(run: Mapping[str, Any], sampled: int) -> str:
    read = (
        f"Read {format_size(run['bytes_read'])} in {format_seconds(run['seconds'])} with {run['workers']} workers "
        f"({'on Ray' if run['engine'] == 'ray' else 'in one process'})."
    )
    estimate = (
        f"<p><strong>All figures are estimates</strong> from one block of {MEASURE_CHUNK:,} parameters in {sampled} of every tensor, "
        "evenly spread, with at least one block of each; maxima are of those blocks. <code>paramdelta-dist analyze</code> "
        "measures every parameter.</p>"
    )
    return (
        "<h2>What the figures are</h2><p>δ is a post-trained model minus its base, element by element. Sums are made in float64, in "
        "an order that depends on nothing but the models; norms are Euclidean. Figures of a layer, a component or the model are of "
        "its tensors laid end to end, except where it says mean of tensors. A cosine “end to end” is Σδₐδ_b / √(Σδₐ² Σδ_b²) over the "
        "group; “mean of tensors” is the unweighted mean of the tensors’ own cosines, those without a change left out. “Same sign” "
        "counts the parameters that both deltas changed. Integer and derived tensors are not counted. Experts, shared ones included, "
        f"are one component; encoders of images or sound are “other”.</p><p>{read} Tables beside this page: "
        "<code>tensors.parquet</code>, <code>tensor-pairs.parquet</code>, <code>groups.parquet</code>, "
        "<code>group-pairs.parquet</code>.</p>"
        f"{estimate if sampled > 1 else ''}"
    )
