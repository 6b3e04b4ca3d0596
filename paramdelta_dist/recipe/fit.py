"""Fit of a recipe and its method: roles, counts and parameters that the card does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.methods import METHODS, Method, Parameter, Roles, find_method
from paramdelta_dist.recipe.fields import MAX_FLOAT
from paramdelta_dist.recipe.rules import is_rules, parse_value
from paramdelta_dist.recipe.sections import Delta, Entry

_Misfit = tuple[str, tuple[str | int, ...], str]
"""Kind, place and description of what a recipe says that its method does not know."""


def find_misfits(document: dict[Any, Any]) -> Iterator[_Misfit]:
    """Where a recipe, as it was written, and its method's card differ. What has the wrong type is left to others to refuse."""
    name = document.get("method", "paramdelta")
    if not isinstance(name, str):
        return
    try:
        method = find_method(name)
    except ParamDeltaError:
        return
    yield from _wrong_roles(document, method)
    every = {parameter.name: parameter for parameter in method.parameters}
    own = {parameter.name: parameter for parameter in method.for_each}
    general = document.get("parameters", {})
    general = general if isinstance(general, dict) else {}
    for name, value in general.items():
        yield from _wrong_value(("parameters", name), value, every, f"parameters of {method.name}")
    section, keys = ("deltas", Delta) if method.roles is Roles.DELTAS else ("models", Entry)
    given = document.get(section)
    entries = [(n, entry) for n, entry in enumerate(given) if isinstance(entry, dict)] if isinstance(given, (list, tuple)) else []
    fixed = [key for key in keys.model_fields if key != "weight"]
    for number, entry in entries:
        if section == "deltas" and not {"post", "adapter"} & entry.keys():
            yield "missing", (section, number, "post"), ""
        if section == "deltas" and {"post", "adapter"} <= entry.keys():
            yield "role", (section, number, "adapter"), "excludes `post`: a delta is a model minus its base, or what an adapter holds"
        for name, value in entry.items():
            if name in fixed or (name == "weight" and not (is_number(value) or is_rules(value))):
                continue
            if name in every and name not in own:
                yield "of_all", (section, number, name), "is for all alike; write it under `parameters:`"
                continue
            yield from _wrong_value((section, number, name), value, own, f"keys here for {method.name}", fixed)
    for parameter in method.parameters:
        by_each = parameter.per_model and entries and all(parameter.name in entry for _, entry in entries)
        if parameter.default is None and parameter.name not in general and not by_each:
            yield "needed", ("parameters", parameter.name), f"is missing: {parameter.meaning}, {parameter.range}"


def _wrong_roles(document: dict[Any, Any], method: Method) -> Iterator[_Misfit]:
    """What is missing of, or too much for, what the method works on."""
    deltas = method.roles is Roles.DELTAS
    section, other = ("deltas", "models") if deltas else ("models", "deltas")
    if other in document:
        takers = ", ".join(each.name for each in METHODS if (each.roles is Roles.DELTAS) != deltas)
        takes = "`base:` and `deltas:`" if deltas else "`models:`"
        yield "role", (other,), f"{method.name} takes {takes}; `{other}:` is for {takers}"
    if deltas and "base" not in document:
        yield "missing", ("base",), ""
    if section not in document:
        if other not in document:
            yield "missing", (section,), ""
        return
    count, based = len(document[section]) if isinstance(document[section], (list, tuple)) else 0, "base" in document
    if count == 0:
        return
    if method.roles is Roles.PAIR:
        if count + based != 2 and not (method.accepts_base and based and count == 2):
            more = ", or `base:` and two entries, to merge what they add to it" if method.accepts_base else ""
            yield "role", (section,), f"{method.name} merges two models: give `base:` and one entry here, or two entries{more}"
        return
    if not deltas and based and not method.accepts_base:
        yield "role", ("base",), f"{method.name} has no base; a model that takes part belongs into `models:`"
    if count < method.min_models or (method.max_models is not None and count > method.max_models):
        number = f"exactly {method.min_models}" if method.min_models == method.max_models else f"{method.min_models} or more"
        yield "role", (section,), f"{method.name} takes {number}, {count} {'is' if count == 1 else 'are'} given"


def _wrong_value(
    place: tuple[str | int, ...], value: Any, known: dict[str, Parameter], what: str, fixed: Sequence[str] = ()
) -> Iterator[_Misfit]:
    name = place[-1]
    if not isinstance(name, str):
        return
    if name not in known:
        owners = [method.name for method in METHODS if any(parameter.name == name for parameter in method.parameters)]
        near = [] if owners else difflib.get_close_matches(name, [*fixed, *known], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join([*fixed, *known]) or 'none'}"
        hint += f" ({name} is of {', '.join(owners)})" if owners else ""
        yield "unknown", place, hint
        return
    try:
        parse_value(value, known[name].check)
    except ValueError as error:
        yield "parameter", place, str(error)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT
