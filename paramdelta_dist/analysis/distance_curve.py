"""How far Θ_new = Θ'_base + α Σ wᵢδᵢ is from every input, as a function of α: in closed form, from dot products alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paramdelta_dist.analysis.statistics import Statistics, short_names
from paramdelta_dist.kernels.measure import Floats


class Curve(NamedTuple):
    """Distance from one input: √(a + 2bα + cα²)."""

    label: str
    url: str
    a: float
    b: float
    c: float

    def at(self, alpha: float | Floats) -> Floats:
        """‖Θ_new(α) − input‖."""
        value: Floats = np.sqrt(np.maximum(self.a + 2 * self.b * alpha + self.c * np.square(alpha), 0))
        return value

    @property
    def nearest(self) -> float | None:
        """The α at which the distance is least; None when it is the same for all."""
        return -self.b / self.c if self.c else None


def spread(statistics: Statistics, weights: Sequence[float] | None = None) -> list[Curve]:
    """One curve for each input: the new base, then every post and every other base, once each.

    With vectors vₖ (deltas, and the new base minus each other base), the difference from any input is Σ (xₖ + α yₖ) vₖ, where y
    are the weights (those given, else the recipe's) and x says which input: so a = xᵀGx, b = xᵀGy, c = yᵀGy with G their dot products.
    """
    subject, gram = statistics.subject, statistics.gram
    pairs, deltas = subject.vectors.pairs, subject.vectors.deltas
    moved = np.zeros(len(pairs))
    moved[:deltas] = weights or [1.0 if delta.weight is None else delta.weight for delta in subject.deltas]
    drift = {base: deltas + number for number, (_, base) in enumerate(pairs[deltas:])}
    inputs: dict[int, tuple[str, Floats]] = {0: (subject.base, np.zeros(len(pairs)))}
    for (post, base), delta in zip(pairs[:deltas], subject.deltas, strict=True):
        away = np.zeros(len(pairs))
        if base in drift:
            away[drift[base]] = 1
        inputs.setdefault(base, (delta.base, away.copy()))
        away[pairs.index((post, base))] -= 1
        inputs.setdefault(post, (delta.post, away))
    names = short_names([url for url, _ in inputs.values()])
    return [Curve(names[url], url, _form(gram, x, x), _form(gram, x, moved), _form(gram, moved, moved)) for url, x in inputs.values()]


def _form(gram: Floats, x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    return float(np.asarray(x) @ gram @ np.asarray(y))
