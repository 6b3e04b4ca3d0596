"""Writing what was found: tables, page, and the document of the most important figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paramdelta_dist.analysis.page.delta_page import render_page
from paramdelta_dist.analysis.page.sweep_page import render_points_page
from paramdelta_dist.analysis.probes import Lane
from paramdelta_dist.analysis.statistics import WHOLE, Statistics
from paramdelta_dist.analysis.sweep_comparison import Comparison
from paramdelta_dist.analysis.tables import point_tables, render, tables
from paramdelta_dist.errors import OutputOccupied
from paramdelta_dist.storage import Store

PAGE = "report.html"


MAX_PAGE = 256 << 20
_NAMES = (PAGE, "tensors.parquet", "tensor-pairs.parquet", "groups.parquet", "group-pairs.parquet", "pairs.parquet")
_SIGNED = b"<footer>Made by paramdelta-dist "


def require_own(store: Store) -> None:
    """Raise OutputOccupied where a page or tables would be written over files that are no page and tables of ours: before the
    work, not after it."""
    present = store.list() or {}
    taken = [name for name in _NAMES if name in present]
    if taken and not (PAGE in present and _SIGNED in store.read(PAGE, limit=MAX_PAGE)):
        raise OutputOccupied(
            f"{store.url}: {', '.join(taken)} would be written over, and is not ours; move it away, or choose another folder"
        )


def publish(
    store: Store, statistics: Statistics, run: Mapping[str, Any], *, lanes: Sequence[Lane] = (), sampled: int = 1
) -> dict[str, Any]:
    """Write the tables, and then the page, into the store's folder. Returns what `summary` says, and where they are.

    `lanes` say how the work went, `sampled` that one chunk in so many was measured.
    """
    found = summary(statistics)
    files = []
    for name, table in tables(statistics).items():
        store.write(name, render(table))
        files.append(name)
    store.write(PAGE, render_page(statistics, run, lanes, sampled))
    return {"output": store.url, "files": [PAGE, *files], **found, **run}


def publish_points(
    store: Store,
    comparison: Comparison,
    run: Mapping[str, Any],
    *,
    lanes: Sequence[Lane],
    left_out: Sequence[str] = (),
    unmeasured: int = 0,
) -> None:
    """Write the tables, and then the page, of a sweep into the store's folder; the rest as for `render_points_page`."""
    for name, table in point_tables(comparison).items():
        store.write(name, render(table))
    store.write(PAGE, render_points_page(comparison, run, lanes, left_out=left_out, unmeasured=unmeasured))


def summary(statistics: Statistics) -> dict[str, Any]:
    """The figures of the whole model as plain values; None where nothing can be said."""
    subject, row = statistics.subject, statistics.whole
    figures, means = statistics.of_groups, statistics.mean_cosines[WHOLE]
    deltas = [
        {
            "label": delta.label,
            "post": delta.post,
            "base": delta.base,
            "weight": delta.weight,
            "norm": _number(figures.norm[row, number]),
            "relative_norm": _number(figures.relative_norm[row, number]),
            "max_abs": _number(figures.peak[row, number]),
            "mean_abs": _number(figures.mean_magnitude[row, number]),
            "zero_share": _number(figures.zero_share[row, number]),
        }
        for number, delta in enumerate(subject.deltas)
    ]
    agreement = dict(zip(subject.vectors.couples, figures.sign_agreement[row], strict=True))
    pairs = [
        {
            "first": subject.labels[a],
            "second": subject.labels[b],
            "cosine": _number(figures.cosines[row, a, b]),
            "mean_cosine": _number(means[a, b]),
            "sign_agreement": _number(agreement.get((a, b), math.nan)),
        }
        for a, b in subject.vectors.dots
        if a != b
    ]
    return {
        "base": subject.base,
        "tensors": len(statistics.tensors),
        "parameters": int(statistics.elements.sum()),
        "nonfinite_tensors": [statistics.tensors[int(place)].name for place in np.flatnonzero(~statistics.finite)],
        "deltas": deltas,
        "pairs": pairs,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
