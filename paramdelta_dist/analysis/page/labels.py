"""What the parts of the page have in common: what deltas are called, their colours, keys and folded tables."""

from __future__ import annotations

from paramdelta_dist.analysis.page.svg import text
from paramdelta_dist.analysis.statistics import Group, Statistics


def symbol(statistics: Statistics, vector: int) -> str:
    """δ₁, δ₂, … of deltas, and Δ with a number of the new base's way from their bases."""
    deltas, drifts = statistics.subject.vectors.deltas, len(statistics.subject.drifts)
    if vector < deltas:
        return f"δ{_subscript(vector + 1)}" if deltas > 1 else "δ"
    return f"Δ{_subscript(vector - deltas + 1)}" if drifts > 1 else "Δ"


def called(statistics: Statistics, delta: int) -> str:
    return f"{symbol(statistics, delta)} {statistics.subject.deltas[delta].label}"


def colour(delta: int) -> str:
    return f"s{delta % 8}"


def title_of(statistics: Statistics) -> str:
    labels = [delta.label for delta in statistics.subject.deltas]
    shown = labels[:-1] if len(labels) <= 4 else labels[:3]
    last = labels[-1] if len(labels) <= 4 else f"{len(labels) - 3} more"
    return f"What changed in {', '.join(shown)} and {last}" if shown else f"What changed in {last}"


def relative_norms(statistics: Statistics, delta: int) -> dict[Group, float]:
    figures = statistics.of_groups.relative_norm
    return {group: float(figures[row, delta]) for row, group in enumerate(statistics.groups)}


def key(statistics: Statistics) -> str:
    if statistics.subject.vectors.deltas < 2:
        return ""
    items = "".join(
        f'<li><span class="swatch {colour(delta)}"></span>{text(called(statistics, delta))}</li>'
        for delta in range(statistics.subject.vectors.deltas)
    )
    return f'<ul class="key">{items}</ul>'


def folded(table: str) -> str:
    return f'<details><summary>Figures as a table</summary><div class="scroll">{table}</div></details>'


def _subscript(value: int) -> str:
    return str(value).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
