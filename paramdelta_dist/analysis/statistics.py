"""From sums to figures: norms, cosines and shares of each tensor, and of every layer, component and the whole.

A group's figures are those of its tensors laid end to end: sums are added, in the order of the tensors, before anything is
divided. Cosines are given both ways, since they differ where norms do: of the group laid end to end, and as the mean of
its tensors' cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramdelta_dist.checkpoint.components import Component, Place, locate
from paramdelta_dist.kernels.measure import Counts, Floats, Measured, Vectors
from paramdelta_dist.planning.plan import MergePlan, TensorPlan
from paramdelta_dist.storage import redact


class MeasuredDelta(NamedTuple):
    """What is compared, and by what it is called."""

    label: str
    post: str
    base: str
    weight: float | None
    """None where it differs between tensors; sums of deltas take it as 1 then."""


@dataclass(frozen=True)
class SurveyedModels:
    """What a survey measures of a recipe: its deltas, and how far the new base is from each of their bases."""

    base: str
    """URL of the new base, without secrets, as all of them."""
    deltas: tuple[MeasuredDelta, ...]
    drifts: tuple[str, ...]
    """URLs of the deltas' bases other than the new one; vector `len(deltas) + n` is the new base minus the n-th."""
    vectors: Vectors
    points: Mapping[str, Sequence[float]] | None = None
    """Weights of the deltas at the points of a sweep, where outputs are sums with one weight for all tensors."""

    @property
    def labels(self) -> list[str]:
        """Of each vector."""
        names = [d.label for d in self.deltas]
        short = short_names(self.drifts)
        return names + ["new base − " + short[url] if len(self.drifts) > 1 else "new base − old" for url in self.drifts]

    def base_row(self, delta: int) -> int:
        """Position of a delta's base among `vectors.bases`."""
        return self.vectors.bases.index(self.vectors.pairs[delta][1])


class Group(NamedTuple):
    """Tensors that are looked at together; None stands for all components, or all layers and what is outside them."""

    component: Component | None
    layer: int | None


WHOLE = Group(None, None)


@dataclass(frozen=True)
class Figures:
    """Figures of rows, each a tensor or a group. Where nothing can be said (a norm of zero, no elements) they are NaN."""

    elements: Counts
    """[rows]"""
    norm: Floats
    """[rows, deltas]: ‖δ‖."""
    base_norm: Floats
    """[rows, deltas]: norm of what the delta was added to."""
    relative_norm: Floats
    """[rows, deltas]: ‖δ‖ / ‖base‖."""
    peak: Floats
    """[rows, deltas]: max |δ|."""
    mean: Floats
    """[rows, deltas]"""
    mean_magnitude: Floats
    """[rows, deltas]: mean |δ|."""
    zero_share: Floats
    """[rows, deltas]: share of elements that are exactly zero."""
    histograms: Counts
    """[rows, deltas, BINS]"""
    cosines: Floats
    """[rows, vectors, vectors]: of the row's elements laid end to end."""
    sign_agreement: Floats
    """[rows, couples of deltas]: where neither is zero, the share of elements in which both have the same sign."""


class Statistics:
    """All figures of a survey."""

    def __init__(self, subject: SurveyedModels, tensors: Sequence[TensorPlan], measured: Measured) -> None:
        """`measured` has a leading axis [tensors], in the order of `tensors`."""
        self.subject = subject
        self.tensors = tensors
        self.places: list[Place] = [locate(tensor.name) for tensor in tensors]
        self.elements: Counts = np.array([tensor.elements for tensor in tensors], np.int64)
        self.finite: NDArray[np.bool_] = np.asarray(np.isfinite(measured.sums).all(axis=-1))
        """[tensors]: whether figures can be had: not of tensors that hold NaN or infinity, which no group counts."""
        self._measured = measured

    @cached_property
    def of_tensors(self) -> Figures:
        return self._figures(self._measured, self.elements)

    @cached_property
    def mean_cosines(self) -> Mapping[Group, Floats]:
        """[vectors, vectors] of each group: the mean of its tensors' cosines, those with a delta of zero left out."""
        cosines = self.of_tensors.cosines
        found = {}
        for group, members in self._members.items():
            of_group = cosines[members]
            known = np.isfinite(of_group)
            with np.errstate(invalid="ignore"):
                found[group] = np.where(known, of_group, 0).sum(axis=0) / known.sum(axis=0)
        return found

    @cached_property
    def groups(self) -> list[Group]:
        """The whole, each component, each layer, each component of each layer; those that have tensors."""
        return list(self._members)

    @cached_property
    def of_groups(self) -> Figures:
        """Rows in the order of `groups`."""
        total = Measured.nothing(self.subject.vectors, (len(self.groups),))
        elements = np.zeros(len(self.groups), np.int64)
        for row, members in enumerate(self._members.values()):
            for field in fields(Measured):
                of_tensors, of_groups = getattr(self._measured, field.name), getattr(total, field.name)
                of_groups[row] = _peak(of_tensors[members]) if field.name == "peaks" else of_tensors[members].sum(axis=0)
            elements[row] = self.elements[members].sum()
        return self._figures(total, elements)

    @cached_property
    def gram(self) -> Floats:
        """[vectors, vectors]: dot products over the whole model."""
        return self._gram(self._total)

    @cached_property
    def base_squares(self) -> Floats:
        """[bases]: squared norm of each base, over the whole model."""
        first = len(self.subject.vectors.dots)
        return self._total[first : first + len(self.subject.vectors.bases)]

    @property
    def whole(self) -> int:
        """The row of all tensors in `of_groups`."""
        return self._rows[WHOLE]

    def row(self, group: Group) -> int | None:
        """The group's row in `of_groups`; None when it has no tensors."""
        return self._rows.get(group)

    @cached_property
    def layers(self) -> list[int]:
        return sorted({group.layer for group in self.groups if group.layer is not None})

    @cached_property
    def components(self) -> list[Component]:
        present = {group.component for group in self.groups}
        return [component for component in Component if component in present]

    @cached_property
    def _rows(self) -> dict[Group, int]:
        return {group: row for row, group in enumerate(self.groups)}

    @cached_property
    def _total(self) -> Floats:
        total: Floats = self._measured.sums[self._members[WHOLE]].sum(axis=0)
        return total

    @cached_property
    def _members(self) -> dict[Group, list[int]]:
        return members_of(self.places, self.finite)

    def _gram(self, sums: Floats) -> Floats:
        size = len(self.subject.vectors.pairs)
        gram = np.zeros((*sums.shape[:-1], size, size))
        for place, (one, other) in enumerate(self.subject.vectors.dots):
            gram[..., one, other] = gram[..., other, one] = sums[..., place]
        return gram

    def _figures(self, measured: Measured, elements: Counts) -> Figures:
        vectors = self.subject.vectors
        first = len(vectors.dots)
        gram = self._gram(measured.sums)
        norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
        base_norms = np.sqrt(measured.sums[:, first : first + len(vectors.bases)])
        base_norm = base_norms[:, [self.subject.base_row(delta) for delta in range(vectors.deltas)]]
        sums = measured.sums[:, first + len(vectors.bases) :].reshape(len(elements), vectors.deltas, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = gram / (norms[:, :, None] * norms[:, None, :])
            return Figures(
                elements=elements,
                norm=norms[:, : vectors.deltas],
                base_norm=base_norm,
                relative_norm=_nan_for_infinity(norms[:, : vectors.deltas] / base_norm),
                peak=measured.peaks,
                mean=sums[..., 0] / elements[:, None],
                mean_magnitude=sums[..., 1] / elements[:, None],
                zero_share=measured.zeros / elements[:, None],
                histograms=measured.histograms,
                cosines=np.clip(_nan_for_infinity(cosines), -1, 1),
                sign_agreement=measured.signs[..., 0] / measured.signs[..., 1],
            )


def describe(
    plan: MergePlan, weights: Sequence[float | None] | None = None, points: Mapping[str, Sequence[float]] | None = None
) -> SurveyedModels:
    """What to measure of a plan: its deltas, where models that are merged as they are count as deltas of the first.

    `weights` are those of the deltas, when not the plan's own; `points` as in `SurveyedModels`.
    """
    terms = [term for term in plan.terms if term.post != (term.base or 0)]
    pairs = [(term.post, term.base or 0) for term in terms]
    if weights is None:
        given = [term.values.get("weight", 1.0) for term in terms]
        weights = [None if plan.recipe.has_rules or not isinstance(weight, (int, float)) else float(weight) for weight in given]
    bases = tuple(sorted({0, *(base for _, base in pairs)}))
    drifts = [base for base in bases if base != 0]
    posts = short_names([plan.models[post] for post, _ in pairs])
    labels = [posts[plan.models[post]] for post, _ in pairs]
    repeated = {label for label in labels if labels.count(label) > 1}
    labels = [f"{label} ({number})" if label in repeated else label for number, label in enumerate(labels)]
    deltas = tuple(
        MeasuredDelta(label, redact(plan.models[post]), redact(plan.models[base]), weight)
        for label, (post, base), weight in zip(labels, pairs, weights, strict=True)
    )
    vectors = Vectors(len(plan.models), (*pairs, *((0, base) for base in drifts)), len(pairs), bases)
    return SurveyedModels(redact(plan.models[0]), deltas, tuple(redact(plan.models[base]) for base in drifts), vectors, points)


def short_names(urls: Sequence[str]) -> dict[str, str]:
    """For each URL as few of its last parts as tell them apart."""
    distinct = list(dict.fromkeys(urls))
    for parts in range(1, 1 + max((url.count("/") for url in distinct), default=0)):
        names = {url: "/".join(redact(url).rstrip("/").split("/")[-parts:]) for url in distinct}
        if len(set(names.values())) == len(distinct):
            return names
    return {url: redact(url) for url in distinct}


def members_of(places: Sequence[Place], counted: NDArray[np.bool_]) -> dict[Group, list[int]]:
    """Positions of the tensors of each group, in order, those left out that do not count: of the whole, each component, each
    layer, and each component of each layer."""
    members: dict[Group, list[int]] = {WHOLE: []}
    for position, place in enumerate(places):
        if counted[position]:
            for group in _groups_of(place):
                members.setdefault(group, []).append(position)
    order = {component: number for number, component in enumerate(Component)}
    return {
        group: members[group]
        for group in sorted(
            members,
            key=lambda g: (g.layer is not None, -1 if g.layer is None else g.layer, -1 if g.component is None else order[g.component]),
        )
    }


def _groups_of(place: Place) -> Iterator[Group]:
    yield WHOLE
    yield Group(place.component, None)
    if place.layer is not None:
        yield Group(None, place.layer)
        yield Group(place.component, place.layer)


def _peak(of_tensors: Floats) -> Floats:
    peak: Floats = of_tensors.max(axis=0, initial=0)
    return peak


def _nan_for_infinity(figures: Floats) -> Floats:
    return np.where(np.isinf(figures), np.nan, figures)
