"""What the points of a sweep made of the same inputs: how far each output is from every input, and from the other outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.analysis.probes import Collected, OutputProbe
from paramdelta_dist.analysis.statistics import WHOLE, Group, members_of, short_names
from paramdelta_dist.checkpoint.components import Component, Place, locate
from paramdelta_dist.kernels.measure import Counts, Floats, Vectors
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.planning.plan import TensorPlan
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


class _Seen(NamedTuple):
    """What is kept of a point's measurements."""

    sums: Floats
    peaks: Floats
    zeros: Counts
    sketch: Floats


class Comparison:
    """All figures of the points that were measured."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = list(inputs)
        self.points: list[Point] = []
        self.tensors: list[TensorPlan] = []
        self._seen: list[_Seen] = []

    def add(self, point: Point, found: Collected) -> None:
        """One more point, before any figure is asked for; all of them have the same tensors."""
        self.points.append(point)
        self.tensors = self.tensors or found.tensors
        self._seen.append(_Seen(found.measured.sums, found.measured.peaks[:, 0], found.measured.zeros[:, 0], found.sketch))

    @cached_property
    def places(self) -> list[Place]:
        return [locate(tensor.name) for tensor in self.tensors]

    @cached_property
    def elements(self) -> Counts:
        return np.array([tensor.elements for tensor in self.tensors], np.int64)

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """[tensors]: those that hold NaN or infinity at some point or in some input are counted in no group."""
        return np.asarray(np.isfinite(self._sums).all(axis=(0, 2)))

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
        sketches = [seen.sketch for seen in self._seen]
        return np.array([[np.linalg.norm(one - other) for other in sketches] for one in sketches])

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
    def _sums(self) -> Floats:
        """[points, tensors, inputs and more]: squared distances, then the squared norm of the base."""
        return np.stack([seen.sums for seen in self._seen])

    @property
    def _squares(self) -> Floats:
        return self._sums[:, :, : len(self.inputs)]

    @property
    def _base(self) -> Floats:
        return self._sums[0, :, len(self.inputs)]

    @cached_property
    def _peaks(self) -> Floats:
        return np.stack([seen.peaks for seen in self._seen])

    @cached_property
    def _zeros(self) -> Counts:
        return np.stack([seen.zeros for seen in self._seen])

    @cached_property
    def _members(self) -> dict[Group, list[int]]:
        return members_of(self.places, self.finite)


def compared_models(sweep: MergeSet) -> list[int]:
    """Positions in the sweep's models of those that outputs are compared with: the base, and every model that a point adds."""
    posts = [plan.models[term.post] for plan in sweep.points.values() for term in plan.terms]
    return [sweep.models.index(url) for url in dict.fromkeys([sweep.models[0], *posts])]


def compared_inputs(sweep: MergeSet) -> list[Input]:
    urls = [sweep.models[model] for model in compared_models(sweep)]
    names = short_names(urls)
    return [Input(names[url], redact(url)) for url in urls]


def output_probes(sweep: MergeSet) -> dict[str, OutputProbe]:
    """Who measures what each point writes, by its name."""
    models, made = compared_models(sweep), len(sweep.models)
    vectors = Vectors(made + 1, tuple((made, model) for model in models), 1, (models[0],), full=False)
    inputs = [redact(sweep.models[model]) for model in models]
    return {name: OutputProbe(vectors, {"fingerprint": plan.fingerprint, "inputs": inputs}) for name, plan in sweep.points.items()}


def _rows(elements: Counts, base: Floats, squares: Floats, peaks: Floats, zeros: Counts) -> Rows:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Rows(elements, np.sqrt(base), np.sqrt(squares), peaks, zeros / elements)
