"""Mistakes in a recipe, explained with the line they are in and the key that may have been meant."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.sections import Delta, Entry, StorageSection, VocabularySection


def validated(document: dict[Any, Any], *, where: str, lines: dict[tuple[Any, ...], int]) -> Recipe:
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        problems = [_explained(problem, lines) for problem in error.errors(include_url=False, include_input=False)]
        problems = list(dict.fromkeys(problem for problem in problems if problem))
        raise RecipeError(f"{where}:" + ("\n  ".join(["", *problems]) if len(problems) > 1 else f" {problems[0]}")) from None


_WORDS = {
    "string_type": "should be text",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "dict_type": "should be lines of `key: value`",
    "model_type": "should be lines of `key: value`",
}
"""What pydantic's kinds of error mean in a recipe."""


def _explained(problem: Any, lines: dict[tuple[Any, ...], int]) -> str:
    place = tuple(part for part in problem["loc"] if part != "[key]")
    key = ".".join(str(part) for part in place)
    line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
    prefix = f"line {line}: " if line else ""
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{prefix}unknown key {key!r}; {hint}"
    if problem["type"] == "unknown":
        return f"{prefix}unknown key {key!r}; {problem['msg']}"
    if problem["type"] == "missing":
        return f"{prefix}{key!r} is missing"
    if problem["type"] == "model_type" and len(place) == 2 and place[0] in ("deltas", "models"):
        return f"{prefix}{key}: {_WORDS['model_type']}, such as `{'post' if place[0] == 'deltas' else 'model'}: URL`"
    message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{prefix}{key}: {message}" if key else f"{prefix}{message}"


def _known_keys(parent: tuple[Any, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {"deltas": Delta, "models": Entry, "storage": StorageSection, "vocabulary": VocabularySection}
    section = sections.get(str(parent[0]), Recipe) if parent else Recipe
    return [field.alias or name for name, field in section.model_fields.items()]
