"""What a recipe means for one tensor: which models take part in which role, and the value of every parameter.

This is the one place where a recipe's parameters become values. Workers see the outcome alone, by its position in a shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from paramdelta_dist.errors import UsageError
from paramdelta_dist.methods import Parameter, Roles, Sweep, find_method
from paramdelta_dist.recipe import Recipe


class Term(NamedTuple):
    """One delta or model that takes part; models by their position in `MergePlan.models`."""

    post: int
    """The post of a delta, or the model itself."""
    base: int | None
    """What the post grew from; None where the model is merged as it is."""
    number: int
    """Position of the delta or model in the recipe."""
    values: dict[str, Any]
    """Its parameters, `weight` among them."""


class Settings(NamedTuple):
    """All that a method is told about how to merge a tensor."""

    method: str
    based: bool
    """Whether the first model receives deltas, and so is read; else the first model is one of the terms, or none."""
    parameters: dict[str, Any]
    terms: tuple[Term, ...]

    @property
    def models(self) -> frozenset[int]:
        """The models that are read."""
        used = {0} if self.based else set()
        for term in self.terms:
            used |= {term.post} if term.base is None else {term.post, term.base}
        return frozenset(used)

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """What has to be found out first, whole models before tensors."""
        return find_method(self.method).sweeps(self.parameters, [term.values for term in self.terms])


class Resolver:
    """The settings of every tensor of a merge."""

    def __init__(self, recipe: Recipe, models: Sequence[str] | None = None) -> None:
        """`models` says which models there are and in which order; else those that a weight makes necessary."""
        self._given = models
        self._recipe, self._method = recipe, find_method(recipe.method)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """URLs of the models that are read for any tensor, the one whose structure the output has first."""
        if self._given is not None:
            return tuple(self._given)
        if self._recipe.vocab != "strict":  # rows may come from a model that no weight makes necessary
            return self._recipe.models
        urls = [self._recipe.base]
        for post, base, values in self._entries:
            if not self._idle(values):
                urls += [post] if base is None else [post, base]
        return tuple(dict.fromkeys(urls))

    def settings(self, name: str) -> Settings:
        """Those of the tensor `name`. The same for every tensor, as long as recipes have no rules."""
        return self._all

    @cached_property
    def _all(self) -> Settings:
        terms = []
        for number, (post, base, values) in enumerate(self._entries):
            if not self._idle(values):
                terms.append(Term(self.models.index(post), None if base is None else self.models.index(base), number, values))
        parameters = {parameter.name: self._value(parameter, {}) for parameter in self._method.parameters}
        if problem := self._method.check(parameters, [term.values for term in terms]):
            raise UsageError(f"{self._method.name}: {problem}")
        return Settings(self._method.name, self._based, parameters, tuple(terms))

    @property
    def _based(self) -> bool:
        """Whether the terms are deltas to be added to the base."""
        pair = self._method.roles is Roles.PAIR and len(self._recipe.entries) == 1
        return self._recipe.given_base is not None and not pair

    @cached_property
    def _entries(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """(post, base, values) of every delta or model, as the method will see them."""
        recipe = self._recipe
        entries: list[tuple[str, str | None, Mapping[str, Any]]] = [(d.post, d.base or recipe.base, d.given) for d in recipe.deltas]
        if recipe.entries and recipe.given_base is not None and not self._based:
            entries.append((recipe.base, None, {}))
        entries += [(entry.model, recipe.base if self._based else None, entry.given) for entry in recipe.entries]
        return [(post, base, {p.name: self._value(p, given) for p in self._method.for_each}) for post, base, given in entries]

    def _value(self, parameter: Parameter, given: Mapping[str, Any]) -> Any:
        """Of a parameter: what the entry says, else the recipe, else the card; None where only entries say it."""
        value = given.get(parameter.name, self._recipe.parameters.get(parameter.name, parameter.default))
        return None if value is None else parameter.check(value)

    def _idle(self, values: Mapping[str, Any]) -> bool:
        return self._method.weightless and values.get("weight") == 0
