"""Resolves a recipe for one tensor: the models that take part, their roles, and the value of every parameter.

This is the one place where a recipe's parameters become values. Workers see the outcome alone, by its position in a shard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.errors import UsageError
from paramdelta_dist.methods import Parameter, Reduction, Roles, find_method
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.rules import Chooser, Selection, count_layers, parse_value


class Term(NamedTuple):
    """One delta or model that takes part; models by their position in `MergePlan.models`."""

    post: int
    """The post of a delta, or the model itself."""
    base: int | None
    """The model that the post grew from; None where the model is merged as it is."""
    position: int
    """Position of the delta or model in the recipe."""
    values: dict[str, Any]
    """Its parameters, `weight` among them."""


class MethodCall(NamedTuple):
    """A method with its parameters and terms, as it applies to some tensors."""

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
    def reductions(self) -> tuple[Reduction, ...]:
        """The reductions that come before the method is applied, over whole models before tensors."""
        return find_method(self.method).reductions(self.parameters, [term.values for term in self.terms])


class Resolver:
    """The method calls of every tensor of a merge."""

    def __init__(self, recipe: Recipe, names: Collection[str], models: Sequence[str] | None = None) -> None:
        """`names` are those of all tensors: they tell how many layers there are. `models` says which models there are and in
        which order; else they are those that a weight makes necessary."""
        self._given = models
        self._recipe, self._method, self._names = recipe, find_method(recipe.method), names
        self._selection = Selection(recipe.include, recipe.exclude)
        self._general = self._choosers(recipe.parameters, "parameters")
        self._entries = self._all_entries()
        choosers = [*self._general.values(), *(chooser for entry in self._entries for chooser in entry.own.values())]
        self._ruled = [chooser for chooser in choosers if chooser.constant is None]
        """What decides differently from tensor to tensor."""
        self._decided: dict[tuple[tuple[Any, bool], ...], MethodCall] = {}
        """Calls by what those decided."""
        self._known: dict[tuple[Any, ...], MethodCall] = {}
        """Calls by the value of every parameter, so that equal ones are the same object."""

    @cached_property
    def _layers(self) -> int:
        return count_layers(self._names)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """URLs of the models that are read for any tensor, the one whose structure the output has first."""
        if self._given is not None:
            return tuple(self._given)
        if self._recipe.vocab != "strict":  # rows may come from a model that no weight makes necessary
            return self._recipe.models
        urls = [self._recipe.base]
        for entry in self._entries:
            weight = (entry.own.get("weight") or self._general.get("weight") or Chooser((), "weight", 0)).constant
            if not self._idle({"weight": weight}):
                urls += [entry.post] if entry.base is None else [entry.post, entry.base]
        return tuple(dict.fromkeys(urls))

    def choose(self, names: Sequence[str], others: Collection[str] = ()) -> tuple[tuple[MethodCall, ...], dict[str, int]]:
        """Every call in which these tensors are merged, the first tensor's first, and which of them it is for each tensor that
        `include` and `exclude` leave to the method; the others are copied from the base. `others` are tensors of any model that
        are merged in no case: rules may match them.

        Raises UsageError naming every rule and glob that decides nothing about them, and where a parameter has no value.
        """
        left = [name for name in names if self._selection.has(name)] if self._recipe.include or self._recipe.exclude else names
        chosen = [self.call(name) for name in left] if self._ruled else [self.call("")] * len(left)
        calls = list({id(call): call for call in chosen}.values())
        places = {id(call): place for place, call in enumerate(calls)}
        self._require_used(names, left, others)
        return tuple(calls), {name: places[id(call)] for name, call in zip(left, chosen, strict=True)}

    def call(self, name: str) -> MethodCall:
        """Those of the tensor `name`; the same object for equal ones. Raises UsageError where a parameter has no value."""
        decided = tuple([chooser.value(name) for chooser in self._ruled])
        if decided not in self._decided:
            self._decided[decided] = self._call(name)
        return self._decided[decided]

    def _call(self, name: str) -> MethodCall:
        values = [{p.name: self._value(p, entry.own, name) for p in self._method.for_each} for entry in self._entries]
        parameters = {p.name: self._value(p, {}, name, needed=not p.per_model) for p in self._method.parameters}
        key = (*(tuple(value.values()) for value in values), *parameters.values())
        if key not in self._known:
            terms = tuple(
                Term(self.models.index(entry.post), None if entry.base is None else self.models.index(entry.base), number, value)
                for number, (entry, value) in enumerate(zip(self._entries, values, strict=True))
                if not self._idle(value)
            )
            if problem := self._method.check(parameters, [term.values for term in terms]):
                where = f" for tensor {shown(name)}" if self._ruled else ""
                raise UsageError(f"{self._method.name}{where}: {problem}")
            self._known[key] = MethodCall(self._method.name, self._based, parameters, terms)
        return self._known[key]

    def _require_used(self, names: Sequence[str], left: Sequence[str], others: Collection[str]) -> None:
        problems = [problem for chooser in self._ruled for problem in chooser.idle(left, others)]
        problems += self._selection.idle([*names, *others])
        if problems:
            raise UsageError("the recipe has rules without effect:" + "".join(f"\n  - {problem}" for problem in problems))

    @property
    def _based(self) -> bool:
        """Whether the terms are deltas to be added to the base."""
        pair = self._method.roles is Roles.PAIR and len(self._recipe.entries) == 1
        return self._recipe.given_base is not None and not pair

    def _all_entries(self) -> list[_Entry]:
        """Every delta or model, as the method will see them."""
        recipe = self._recipe
        entries = [
            _Entry(delta.source, delta.base or recipe.base, self._choosers(delta.given, f"deltas.{number}"))
            for number, delta in enumerate(recipe.deltas)
        ]
        if recipe.entries and recipe.given_base is not None and not self._based:
            entries.append(_Entry(recipe.base, None, {}))
        base = recipe.base if self._based else None
        entries += [
            _Entry(entry.model, base, self._choosers(entry.given, f"models.{number}")) for number, entry in enumerate(recipe.entries)
        ]
        return entries

    def _choosers(self, given: Mapping[str, Any], where: str) -> dict[str, Chooser]:
        """What chooses the value of each parameter that is given here."""
        known = {parameter.name: parameter for parameter in self._method.parameters}
        rules = {name: parse_value(value, known[name].check) for name, value in given.items() if name in known}
        return {
            name: Chooser(each, f"{where}.{name}", self._layers if any(rule.gradient for rule in each) else 0)
            for name, each in rules.items()
        }

    def _value(self, parameter: Parameter, own: Mapping[str, Chooser], name: str, *, needed: bool = True) -> Any:
        """Of a parameter, for the tensor `name`: what the entry says, else the recipe, else the card."""
        for chooser in (own.get(parameter.name), self._general.get(parameter.name)):
            if chooser is not None:
                value, found = chooser.value(name)
                if found:
                    return value
        if parameter.default is not None:
            return parameter.check(parameter.default)
        if needed:
            raise UsageError(
                f"{parameter.name} has no value for tensor {shown(name)}; end its rules with one without conditions: {{value: …}}"
            )
        return None

    def _idle(self, values: Mapping[str, Any]) -> bool:
        return self._method.skip_zero_weight and values.get("weight") == 0


class _Entry(NamedTuple):
    """A delta or model of the recipe."""

    post: str
    base: str | None
    own: dict[str, Chooser]
    """What chooses the values of its own parameters."""
