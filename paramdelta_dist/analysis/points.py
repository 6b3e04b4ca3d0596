"""What the points of a sweep made of the same inputs: how far each output is from every input, and from the other outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.analysis.statistics import WHOLE, Group, members_of, short_names
from paramdelta_dist.analysis.watching import Collected, OutputWatcher
from paramdelta_dist.checkpoint.components import Component, Place, locate
from paramdelta_dist.kernels.measuring import Counts, Floats, Vectors
from paramdelta_dist.planning.plan import TensorPlan
from paramdelta_dist.planning.sweep import SweepPlan
from paramdelta_dist.storage import redact


class Point(NamedTuple):
    """One output of a sweep."""

    name: str
    values: Mapping[str, Any]
    """What the sweep sets at it."""
    output: str
    """Its folder, without secrets."""


class Input(NamedTuple):
    """A model that outputs are compared with."""

    label: str
    url: str
    """Without secrets."""


@dataclass(frozen=True)
class Rows:
    """Figures of rows, each a tensor or a group of them. NaN where nothing can be said."""

    elements: Counts
    """[rows]"""
    base_norm: Floats
    """[rows]: ‖Θ′_base‖."""
    distance: Floats
    """[points, rows, inputs]: ‖output − input‖; the first input is the base, so that this is the norm of what was added."""
    peak: Floats
    """[points, rows]: max |output − base|."""
    unchanged: Floats
    """[points, rows]: share of elements that are exactly those of the base."""

    @property
    def relative(self) -> Floats:
        """[points, rows, inputs]: distances as shares of the base's norm."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.distance / self.base_norm[None, :, None]
        return np.where(np.isinf(found), np.nan, found)


class Comparison:
    """All figures of the points that were measured."""

    def __init__(self, inputs: Sequence[Input], points: Mapping[Point, Collected] | Sequence[tuple[Point, Collected]]) -> None:
        """`points` have the same tensors, each measured as by `output_vectors`."""
        pairs = list(points.items() if isinstance(points, Mapping) else points)
        self.inputs = list(inputs)
        self.points = [point for point, _ in pairs]
        self.tensors: list[TensorPlan] = pairs[0][1].tensors
        self.places: list[Place] = [locate(tensor.name) for tensor in self.tensors]
        self.elements: Counts = np.array([tensor.elements for tensor in self.tensors], np.int64)
        sums = np.stack([found.measured.sums for _, found in pairs])
        self.finite: NDArray[np.bool_] = np.asarray(np.isfinite(sums).all(axis=(0, 2)))
        """[tensors]: those that hold NaN or infinity at some point or in some input are counted in no group."""
        self._squares = sums[:, :, : len(inputs)]
        self._base = sums[0, :, len(inputs)]
        self._peaks = np.stack([found.measured.peaks[:, 0] for _, found in pairs])
        self._zeros = np.stack([found.measured.zeros[:, 0] for _, found in pairs])
        self._sketches = np.stack([found.sketch for _, found in pairs])

    @cached_property
    def of_tensors(self) -> Rows:
        return _rows(self.elements, self._base, self._squares, self._peaks, self._zeros)

    @cached_property
    def of_groups(self) -> Rows:
        """Rows in the order of `groups`."""
        members = list(self._members.values())
        return _rows(
            np.array([self.elements[each].sum() for each in members], np.int64),
            np.array([self._base[each].sum() for each in members]),
            np.stack([self._squares[:, each].sum(axis=1) for each in members], axis=1),
            np.stack([self._peaks[:, each].max(axis=1, initial=0) for each in members], axis=1),
            np.stack([self._zeros[:, each].sum(axis=1) for each in members], axis=1),
        )

    @cached_property
    def apart(self) -> Floats:
        """[points, points]: ‖output − output‖ over the whole model, from sketches."""
        differences = self._sketches[:, None] - self._sketches[None]
        return np.asarray(np.sqrt(np.square(differences).sum(axis=-1)))

    @property
    def groups(self) -> list[Group]:
        """The whole, each component, each layer, each component of each layer; those that have tensors."""
        return list(self._members)

    @cached_property
    def rows(self) -> dict[Group, int]:
        return {group: row for row, group in enumerate(self.groups)}

    @property
    def whole(self) -> int:
        return self.rows[WHOLE]

    @property
    def layers(self) -> list[int]:
        return sorted({group.layer for group in self.groups if group.layer is not None})

    @property
    def components(self) -> list[Component]:
        present = {group.component for group in self.groups}
        return [component for component in Component if component in present]

    @cached_property
    def _members(self) -> dict[Group, list[int]]:
        return members_of(self.places, self.finite)


def compared_models(sweep: SweepPlan) -> list[int]:
    """Positions in the sweep's models of those that outputs are compared with: the base, and every model that a point adds."""
    posts = [plan.models[term.post] for plan in sweep.points.values() for term in plan.terms]
    return [sweep.models.index(url) for url in dict.fromkeys([sweep.models[0], *posts])]


def compared_inputs(sweep: SweepPlan) -> list[Input]:
    urls = [sweep.models[model] for model in compared_models(sweep)]
    names = short_names(urls)
    return [Input(names[url], redact(url)) for url in urls]


def output_watchers(sweep: SweepPlan) -> dict[str, OutputWatcher]:
    """Who measures what each point writes, by its name."""
    models, made = compared_models(sweep), len(sweep.models)
    vectors = Vectors(made + 1, tuple((made, model) for model in models), 1, (models[0],), crossed=False)
    inputs = [redact(sweep.models[model]) for model in models]
    return {name: OutputWatcher(vectors, {"fingerprint": plan.fingerprint, "inputs": inputs}) for name, plan in sweep.points.items()}


def _rows(elements: Counts, base: Floats, squares: Floats, peaks: Floats, zeros: Counts) -> Rows:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Rows(elements, np.sqrt(base), np.sqrt(squares), peaks, zeros / elements)
