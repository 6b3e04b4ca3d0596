"""The grid of `sweep:`: every combination of the values to try, each a recipe with a name of its own."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

MOST_POINTS = 64
"""A sweep writes so many outputs at most."""


def checked_sweep(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("should be lines of `parameter: [value, value, …]`")
    for key, values in value.items():
        if not isinstance(key, str) or not re.fullmatch(r"((deltas|models)\.\d+\.)?\w+", key):
            raise ValueError(f"{str(key)[:60]!r} should be a parameter of the method, or deltas.0.weight for that of one delta")
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"{key} should be a list of values")
        texts = [text_of(each) for each in values]
        for text, each in zip(texts, values, strict=True):
            if not isinstance(each, (bool, int, float, str)) or not re.fullmatch(r"[\w.+-]+", text, re.ASCII):
                raise ValueError(f"{key}: {text[:60]!r} is not a number or a word")
            if texts.count(text) > 1:
                raise ValueError(f"{key}: {text} is there twice")
    if (count := math.prod(len(values) for values in value.values())) > MOST_POINTS:
        raise ValueError(f"these are {count} points; a sweep has at most {MOST_POINTS}, because all of them are written at the same time")
    return {key: tuple(values) for key, values in value.items()}


def text_of(value: Any) -> str:
    """A value as it is written in the name of an output."""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


_SWEPT = {"anyOf": [{"type": ["number", "boolean"]}, {"type": "string", "pattern": r"^[A-Za-z0-9_.+-]+$"}]}

SWEEP = {
    "type": "object",
    "propertyNames": {"pattern": r"^((deltas|models)\.\d+\.)?\w+$"},
    "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True, "items": _SWEPT},
}


def at_point(document: Mapping[Any, Any], point: Mapping[str, Any]) -> dict[Any, Any]:
    """A recipe, as it is written, with values of parameters set. Raises ValueError where there is no place for one."""
    changed = copy.deepcopy(dict(document))
    for key, value in point.items():
        section, _, rest = key.partition(".")
        if rest:
            number, _, name = rest.partition(".")
            entries = changed.get(section)
            if not isinstance(entries, (list, tuple)) or int(number) >= len(entries) or not isinstance(entries[int(number)], dict):
                raise ValueError(f"sweep: {key}: there is no {section}.{number}, counted from 0")
            entries[int(number)][name] = value
            continue
        for role in ("deltas", "models"):
            entries = changed.get(role)
            for place, entry in enumerate(entries if isinstance(entries, (list, tuple)) else ()):
                if isinstance(entry, dict) and key in entry:
                    raise ValueError(f"sweep: {role}.{place} has a {key} of its own; leave it out there, or sweep {role}.{place}.{key}")
        parameters = changed.setdefault("parameters", {})
        if isinstance(parameters, dict):
            parameters[key] = value
    return changed
