"""Pictures as inline SVG: heat maps, matrices, curves, bars. Colours are classes, so that the page's style decides light and dark.

Every picture is about as wide as a phone, and grows with the column it stands in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape
from itertools import count

import numpy as np
from numpy.typing import NDArray

STEPS = 11
"""Colours of a ramp, classes q0…q10 (small to large) and d0…d10 (negative to positive)."""
WIDTH, HEIGHT = 440, 250
"""Of curves."""
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 40
"""Margins of curves."""

_numbers = count(1)

Step = Callable[[float | None], str]
"""The class of a value's colour."""


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    colour: str
    """Class of its colour: s0, s1, … or base."""
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dots: bool = False
    """Whether its points are marked: what lies between them was not measured."""


@dataclass(frozen=True)
class Bar:
    """One stretch of time in a lane, in seconds."""

    begin: float
    end: float
    label: str


def text(value: object) -> str:
    """`value` for HTML: escaped, and without what is not printed."""
    return _escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)))


def percent(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{number(100 * value, digits)} %"


def cosine(value: float | None, places: int = 3) -> str:
    """`value` with so many places behind the point, and no sign where that is zero."""
    return "–" if value is None or not math.isfinite(value) else f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")


def number(value: float | None, digits: int = 3) -> str:
    """`value` with so many significant digits, and no exponent where it can be read without."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}·10{_superscript(int(exponent))}".replace("-", "−")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}".replace("-", "−")


def svg(width: float, height: float, title: str, body: Iterable[str], *, kind: str, natural: bool = False) -> str:
    """A picture that a screen reader calls `title`; `natural` ones are never drawn larger than they are."""
    name = f"t{next(_numbers)}"
    style = f' style="max-width:{width:.0f}px"' if natural else ""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}"{style}>'
        f'<title id="{name}">{text(title)}</title>{"".join(body)}</svg>'
    )


def ramp(low: float, high: float) -> Step:
    """Colours for positive values between `low` and `high`, by their logarithm."""
    span = math.log(high / low) if high > low > 0 else 0.0

    def step(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "none"
        if value <= low or not span:
            return "q0" if value < high or not span else f"q{STEPS - 1}"
        return f"q{min(STEPS - 1, int(math.log(value / low) / span * STEPS))}"

    return step


def diverging(limit: float) -> Step:
    """Colours for values between -limit and limit."""

    def step(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "none"
        return f"d{min(STEPS - 1, max(0, round((value / limit + 1) / 2 * (STEPS - 1))))}"

    return step


def legend(kind: str, labels: Sequence[str], title: str) -> str:
    """The ramp q or d, with labels spread under it."""
    width, cell = 220, 220 / STEPS
    body = [f'<rect class="{kind}{n}" x="{n * cell:g}" y="0" width="{cell:g}" height="12"/>' for n in range(STEPS)]
    for place, label in enumerate(labels):
        anchor = "start" if place == 0 else "end" if place == len(labels) - 1 else "middle"
        body.append(
            f'<text class="tick" x="{width * place / max(1, len(labels) - 1):g}" y="26" text-anchor="{anchor}">{text(label)}</text>'
        )
    return svg(width, 30, title, body, kind="legend", natural=True)


def layer_map(
    title: str,
    layers: Sequence[int],
    columns: Sequence[str],
    values: Mapping[tuple[int, str], float],
    outside: Sequence[tuple[str, float, bool]],
    step: Step,
    shown: Callable[[float | None], str],
) -> str:
    """A model from its first layer down: a row a layer, a column a component, and wide cells (label, value, whether above the
    layers) for what stands outside."""
    left, gap = 34, 2
    column = max(54.0, 216 / max(1, len(columns)))
    height = 18.0 if len(layers) <= 24 else max(6.0, 460 / len(layers))
    gap = gap if height > 8 else 1
    right = left + column * max(1, len(columns))
    body: list[str] = []
    top = 0.0

    def wide(label: str, value: float, at: float) -> str:
        found = step(value)
        middle, size = (left + right) / 2, right - left - gap
        return (
            f"<g><title>{text(label)}: {shown(value)}</title>"
            f'<rect class="cell {found}" x="{left}" y="{at:g}" width="{size:g}" height="18"/>'
            f'<text class="on {found}" x="{middle:g}" y="{at + 13:g}" text-anchor="middle">{text(label)} {shown(value)}</text></g>'
        )

    for label, value, above in outside:
        if above:
            body.append(wide(label, value, top))
            top += 20
    if layers:
        for place, name in enumerate(columns):
            middle = left + (place + 0.5) * column - gap / 2
            body.append(f'<text class="tick" x="{middle:g}" y="{top + 14:g}" text-anchor="middle">{text(name)}</text>')
        top += 19
    every = next(n for n in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, 1000) if n * height >= 12)
    for row, layer in enumerate(layers):
        at = top + row * height
        if row % every == 0:
            body.append(f'<text class="tick" x="{left - 6}" y="{at + height / 2 + 3.5:g}" text-anchor="end">{layer}</text>')
        for place, name in enumerate(columns):
            if (layer, name) in values:
                value = values[layer, name]
                body.append(
                    f'<rect class="cell {step(value)}" x="{left + place * column:g}" y="{at:g}" width="{column - gap:g}" '
                    f'height="{height - gap:g}"><title>layer {layer}, {text(name)}: {shown(value)}</title></rect>'
                )
    top += len(layers) * height + 2
    for label, value, above in outside:
        if not above:
            body.append(wide(label, value, top))
            top += 20
    return svg(right, top, title, body, kind="map", natural=True)


def matrix(title: str, labels: Sequence[str], values: NDArray[np.float64], step: Step) -> str:
    """A square of figures in coloured cells; labels as short as δ₁."""
    cell, left, top = (58.0 if len(labels) < 5 else 44.0), 54, 20
    body = []
    for row, label in enumerate(labels):
        body.append(f'<text class="name" x="{left - 8}" y="{top + row * cell + cell / 2 + 4:g}" text-anchor="end">{text(label)}</text>')
        body.append(f'<text class="name" x="{left + row * cell + cell / 2 - 1:g}" y="{top - 7}" text-anchor="middle">{text(label)}</text>')
        for column, other in enumerate(labels):
            value = float(values[row, column])
            found = "diagonal" if row == column else step(value)
            shown = "1" if row == column else cosine(value, 2)
            x, y = left + column * cell, top + row * cell
            body.append(
                f'<g><title>{text(label)} and {text(other)}: {number(value, 4)}</title><rect class="cell {found}" x="{x:g}" y="{y:g}" '
                f'width="{cell - 2:g}" height="{cell - 2:g}"/><text class="on {found}" x="{x + cell / 2 - 1:g}" y="{y + cell / 2 + 3:g}" '
                f'text-anchor="middle">{shown}</text></g>'
            )
    return svg(left + len(labels) * cell, top + len(labels) * cell, title, body, kind="matrix", natural=True)


def grid(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    step: Step,
    shown: Callable[[float | None], str],
) -> str:
    """Values [rows, columns] as coloured cells, with figures in them where there is room."""
    left = 14 + 6.5 * max((len(label) for label in rows), default=0)
    cell = min(72.0, max(9.0, (WIDTH - left) / max(1, len(columns))))
    height = 24.0 if len(rows) <= 24 else max(8.0, 560 / len(rows))
    written = cell >= 50 and height >= 16
    every = max(1, math.ceil((8 + 6.5 * max((len(label) for label in columns), default=0)) / cell))
    below = next(n for n in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, 1000) if n * height >= 12)
    body = []
    for place, label in enumerate(columns):
        if place % every == 0:
            body.append(f'<text class="tick" x="{left + (place + 0.5) * cell:g}" y="12" text-anchor="middle">{text(label)}</text>')
    for row, label in enumerate(rows):
        y = 19 + row * height
        if row % below == 0:
            body.append(f'<text class="tick" x="{left - 7:g}" y="{y + height / 2 + 3:g}" text-anchor="end">{text(label)}</text>')
        for place, other in enumerate(columns):
            value = float(values[row, place])
            found, x = step(value), left + place * cell
            inside = (
                f'<text class="on {found}" x="{x + cell / 2 - 1:g}" y="{y + height / 2 + 3:g}" text-anchor="middle">{shown(value)}</text>'
                if written
                else ""
            )
            body.append(
                f"<g><title>{text(label)}, {text(other)}: {shown(value)}</title>"
                f'<rect class="cell {found}" x="{x:g}" y="{y:g}" width="{cell - 1.5:g}" height="{height - 1.5:g}"/>{inside}</g>'
            )
    return svg(left + len(columns) * cell, 20 + len(rows) * height, title, body, kind="map", natural=True)


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    across: str,
    up: Callable[[float], str],
    along: Callable[[float], str] = lambda x: f"{x:g}".replace("-", "−"),
    marks: Sequence[tuple[float, str]] = (),
    small: bool = False,
    ticks_across: Sequence[float] | None = None,
    top: float | None = None,
) -> str:
    """Lines over one pair of axes that start at zero upwards; `marks` are places on the axis across that are pointed out."""
    width, height = (220, 130) if small else (WIDTH, HEIGHT)
    left, bottom = (8, 22) if small else (LEFT, BOTTOM)
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    low, high = min(xs), max(xs)
    high = high if high > low else low + 1
    most = top or max((y for line in lines for _, y in line.points), default=1.0) or 1.0

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - RIGHT)

    def y(value: float) -> float:
        return height - bottom - value / most * (height - bottom - TOP)

    body = []
    for value in ticks(0, most, 4):
        body.append(f'<line class="grid" x1="{left}" x2="{width - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        if not small:
            body.append(f'<text class="tick" x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{text(up(value))}</text>')
    places = ticks_across if ticks_across is not None else ticks(low, high, 3 if small else 6)
    for value in places:
        body.append(f'<text class="tick" x="{x(value):.1f}" y="{height - bottom + 16}" text-anchor="middle">{text(along(value))}</text>')
        body.append(f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y(0):.1f}" y2="{y(0) + 4:.1f}"/>')
    body.append(f'<line class="axis" x1="{left}" x2="{width - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    for value, label in marks:
        body.append(f'<line class="mark" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{y(0):.1f}"/>')
        body.append(f'<text class="tick" x="{x(value) + 5:.1f}" y="{TOP + 10}">{text(label)}</text>')
    for line in lines:
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line.points)
        dashed = " dashed" if line.dashed else ""
        body.append(f'<path class="line {line.colour}{dashed}" d="{path}"><title>{text(line.label)}</title></path>')
        for a, b in line.points if line.dots else ():
            shown = f"{text(line.label)}: {text(up(b))} at {text(along(a))}"
            body.append(f'<circle class="dot {line.colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"><title>{shown}</title></circle>')
    if not small:
        body.append(f'<text class="label" x="{(left + width - RIGHT) / 2:g}" y="{height - 5}" text-anchor="middle">{text(across)}</text>')
    return svg(width, height, title, body, kind="curves")


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], shown: Callable[[float | None], str]) -> str:
    """For each label a bar for every (colour, value), their lengths in proportion."""
    left, width, thick = 82, WIDTH, 14
    most = max((value for _, of_row in rows for _, value in of_row if math.isfinite(value)), default=0) or 1.0
    body, at = [], 2.0
    for label, of_row in rows:
        middle = at + len(of_row) * thick / 2
        body.append(f'<text class="name" x="{left - 8}" y="{middle + 4:g}" text-anchor="end">{text(label)}</text>')
        for colour, value in of_row:
            length = value / most * (width - left - 70) if math.isfinite(value) else 0
            body.append(
                f'<rect class="bar {colour}" x="{left}" y="{at + 1:g}" width="{max(length, 1):.1f}" height="{thick - 3}" rx="2"/>'
                f'<text class="tick" x="{left + length + 6:.1f}" y="{at + thick - 4:g}">{shown(value)}</text>'
            )
            at += thick
        at += 8
    return svg(width, at, title, body, kind="bars", natural=True)


def lanes(title: str, rows: Sequence[tuple[str, Sequence[Bar]]], seconds: float) -> str:
    """Who did what from when to when: a lane a worker, a bar a shard."""
    left, width, thick = 96, 2 * WIDTH, 20
    height = len(rows) * thick + 34
    scale = (width - left - RIGHT) / max(seconds, 1e-9)
    body = []
    for value in ticks(0, seconds, 6):
        x = left + value * scale
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{len(rows) * thick:g}"/>')
        body.append(f'<text class="tick" x="{x:.1f}" y="{len(rows) * thick + 16}" text-anchor="middle">{value:g} s</text>')
    for row, (label, of_row) in enumerate(rows):
        body.append(f'<text class="tick" x="{left - 6}" y="{row * thick + 14}" text-anchor="end">{text(label[-16:])}</text>')
        for number_, bar in enumerate(of_row):
            body.append(
                f'<rect class="lane l{number_ % 2}" x="{left + bar.begin * scale:.1f}" y="{row * thick + 2}" '
                f'width="{max((bar.end - bar.begin) * scale - 1, 1):.1f}" height="{thick - 4}" rx="2"><title>{text(bar.label)}: '
                f"{bar.begin:.1f} to {bar.end:.1f} s</title></rect>"
            )
    return svg(width, height, title, body, kind="lanes")


def power(exponent: float) -> str:
    return f"2{_superscript(int(exponent))}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / unit - 1e-9)
    return [round(n * unit, 12) for n in range(first, math.floor(high / unit + 1e-9) + 1)]


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
