"""Values by tensor: rules that choose tensors by name, layer or component, of which the first that matches decides.

A rule is a mapping: `match` (a glob on the full name, or several), `layers` (7, "0-15", "16-" or several) and `component` (a name
from components.py, or several) are its conditions, which must all hold; `value` is what it gives. A rule without conditions matches
all that is left and comes last. Where the value is a list of numbers it is a gradient: see `Rule.value_for`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from paramdelta_dist.checkpoint.components import Component, locate

KEYS = ("match", "layers", "component", "value")
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d*))?$")


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for the tensors that it matches."""

    match: re.Pattern[str] | None
    """What names it matches, where it says."""
    layers: tuple[tuple[int, int | None], ...]
    """First and last layer of each range; None is the model's last."""
    components: tuple[Component, ...]
    value: Any
    """A number, true or false, a word; or a tuple of numbers, a gradient."""
    text: str
    """The rule as messages show it."""

    @property
    def general(self) -> bool:
        """Whether it has no conditions."""
        return not (self.match or self.layers or self.components)

    @property
    def gradient(self) -> bool:
        return isinstance(self.value, tuple)

    def matches(self, name: str) -> bool:
        if self.match and not self.match.match(name):
            return False
        if not (self.layers or self.components):
            return True
        place = locate(name)
        if self.components and place.component not in self.components:
            return False
        return not self.layers or (place.layer is not None and self._span(place.layer) is not None)

    def _span(self, layer: int) -> tuple[int, int | None] | None:
        """The first of its ranges that a layer is in."""
        for first, last in self.layers:
            if first <= layer and (last is None or layer <= last):
                return first, last
        return None

    def value_for(self, name: str, layers: int) -> Any:
        """Its value for a tensor that it matches, of a model with this many layers.

        A gradient is a line through its numbers, which are spread evenly from the first layer to the last: of the model, or of
        the range that the rule names. A single layer has its last number, and what is outside the layers its first.
        """
        if not isinstance(self.value, tuple):
            return self.value
        layer = locate(name).layer
        if layer is None:
            return self.value[0]
        first, last = self._span(layer) or (0, None)
        steps = (layers - 1 if last is None else last) - first
        position = (min((layer - first) / steps, 1.0) if steps > 0 else 1.0) * (len(self.value) - 1)
        before = min(int(position), len(self.value) - 2)
        share = position - before
        return self.value[before] * (1 - share) + self.value[before + 1] * share


def parse_rules(given: Sequence[Any], check: Callable[[Any], Any]) -> tuple[Rule, ...]:
    """The rules of a list as it stands in a recipe; `check` returns one value as it will be used, or raises ValueError.

    Raises ValueError saying which rule is wrong, and how.
    """
    if not given:
        raise ValueError("should be a value or a list of rules, each with `value:`; it is empty")
    rules = []
    for number, entry in enumerate(given, start=1):
        try:
            rules.append(_rule(entry, check))
        except ValueError as error:
            raise ValueError(f"rule {number}: {error}") from None
        if rules[-1].general and number < len(given):
            raise ValueError(f"rule {number}: has no condition, so the rules behind it would never be reached; put it last")
    return tuple(rules)


def is_rules(given: Any) -> bool:
    """Whether a value in a recipe is meant as rules: a list, of mappings or (a gradient over all layers) of numbers."""
    return isinstance(given, (list, tuple))


def parse_value(given: Any, check: Callable[[Any], Any]) -> tuple[Rule, ...]:
    """Rules, or a plain value or gradient as the one rule that matches everything. Raises ValueError."""
    if is_rules(given) and any(isinstance(entry, Mapping) for entry in given):
        return parse_rules(given, check)
    return (_rule({"value": given}, check),)


def _rule(entry: Any, check: Callable[[Any], Any]) -> Rule:
    if not isinstance(entry, Mapping):
        raise ValueError('should be a mapping such as {match: "*.mlp.*", value: 0.5}')
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known keys: {', '.join(KEYS)}")
    if "value" not in entry:
        raise ValueError("'value' is missing")
    match = _globs(_words(entry.get("match", ()), "match", "a glob on the names of tensors"))
    layers = tuple(_span(text) for text in _listed(entry.get("layers", ())))
    components = tuple(_component(word) for word in _words(entry.get("component", ()), "component", "a component"))
    text = ", ".join(f"{key}: {entry[key]}" for key in KEYS if key in entry)
    return Rule(match, layers, components, _value(entry["value"], check), f"{{{text}}}")


def _value(given: Any, check: Callable[[Any], Any]) -> Any:
    if not isinstance(given, (list, tuple)):
        return check(given)
    values = [check(value) for value in given]
    if len(values) >= 2 and all(isinstance(value, float) for value in values):
        return tuple(values)
    try:
        return check(given)  # which says what one value should be
    except ValueError as error:
        raise ValueError(f"{error}; a list is a gradient, of two or more numbers where any in between is allowed") from None


def _globs(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """What matches the names that any of the globs does; None where there is none."""
    return re.compile("|".join(map(translate, patterns))) if patterns else None


def _listed(given: Any) -> Iterable[Any]:
    return given if isinstance(given, (list, tuple)) else (given,)


def _words(given: Any, key: str, what: str) -> list[str]:
    words = list(_listed(given))
    if not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{key}: should be {what}, or a list of them")
    return words


def _component(word: str) -> Component:
    try:
        return Component(word)
    except ValueError:
        raise ValueError(f"component: {word!r} is none; they are {', '.join(c.value for c in Component)}") from None


def _span(given: Any) -> tuple[int, int | None]:
    found = _RANGE.match(str(given).strip()) if isinstance(given, (str, int)) and not isinstance(given, bool) else None
    if found is None:
        raise ValueError(f'layers: {given!r} should be a layer counted from 0, such as 7, or a range such as "0-15" or "16-"')
    first = int(found[1])
    last = first if found[2] is None else int(found[2]) if found[2] else None
    if last is not None and last < first:
        raise ValueError(f"layers: {given!r} ends before it begins")
    return first, last


class Chooser:
    """The values of one parameter, tensor by tensor; remembers which of its rules decided something."""

    def __init__(self, rules: Sequence[Rule], where: str, layers: int) -> None:
        """`where` names the parameter in messages; `layers` is how many the model has, which gradients need."""
        self._rules, self._where, self._layers = rules, where, layers
        self._decided: set[int] = set()

    @property
    def constant(self) -> Any:
        """The value, where it is the same for every tensor; else None."""
        only = self._rules[0] if len(self._rules) == 1 else None
        return only.value if only is not None and only.general and not only.gradient else None

    def value(self, name: str) -> tuple[Any, bool]:
        """The value for a tensor, and whether there is one."""
        for number, rule in enumerate(self._rules):
            if rule.matches(name):
                self._decided.add(number)
                return rule.value_for(name, self._layers), True
        return None, False

    def idle(self, names: Sequence[str], others: Collection[str] = ()) -> list[str]:
        """The rules that decided nothing, with the reason; a rule without conditions may, and one that matches a tensor among the
        `others`, which would not be merged whatever it says. `names` are those of all tensors that were asked about."""
        problems = []
        for number, rule in enumerate(self._rules):
            if number in self._decided or rule.general or any(map(rule.matches, others)):
                continue
            hidden = any(map(rule.matches, names))
            reason = "only matches tensors that a rule before it decides" if hidden else "matches no tensor that is merged"
            problems.append(f"{self._where}: {rule.text} {reason}")
        return problems


class Selection:
    """The tensors that globs on their names leave to the method."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Without `include`, all are included."""
        self._patterns = {"include": include, "exclude": exclude}
        self._include, self._exclude = _globs(include), _globs(exclude)

    @property
    def is_all(self) -> bool:
        """Whether it was given no glob."""
        return self._include is None and self._exclude is None

    def has(self, name: str) -> bool:
        """Whether it is included, where anything is, and not excluded."""
        return not (self._include and not self._include.match(name)) and not (self._exclude and self._exclude.match(name))

    def idle(self, names: Collection[str]) -> list[str]:
        """The globs that match none of these names."""
        return [
            f"{where}: {pattern!r} matches no tensor of any model"
            for where, patterns in self._patterns.items()
            for pattern in patterns
            if not any(map(re.compile(translate(pattern)).match, names))
        ]


def count_layers(names: Iterable[str]) -> int:
    """How many layers a model has, by the names of its tensors."""
    return 1 + max((layer for name in names if (layer := locate(name).layer) is not None), default=-1)
