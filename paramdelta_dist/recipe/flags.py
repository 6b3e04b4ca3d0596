"""A recipe from the flags of a command line."""

from __future__ import annotations

import re
from typing import Any

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.recipe.explain import validated
from paramdelta_dist.recipe.model import Recipe


def recipe_from_flags(*, base: str, deltas: list[str], output: str) -> Recipe:
    """The recipe that `--base`, `--delta POST[:BASE][:WEIGHT]` and `--output` mean."""
    document = {"base": base, "deltas": [_delta_flag(text) for text in deltas], "output": output}
    return validated(document, where="command line", lines={})


_COLON = re.compile(r":(?!//)")

_BEFORE_PORT = re.compile(r"(?!(s3a?|gs|gcs|az|azure|abfss?|hf):)[^:]*://[^/:]*$", re.IGNORECASE)

_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")

_WEIGHT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _delta_flag(text: str) -> dict[str, Any]:
    """Split at the colons that separate, not those of `scheme://` or of a port."""
    if _PASSWORD.search(text):
        raise RecipeError("--delta: credentials do not belong in a URL; put them in the environment or a profile")
    parts: list[str] = []
    for piece in _COLON.split(text):
        if parts and _BEFORE_PORT.match(parts[-1]) and re.match(r"\d+(/|$)", piece):
            parts[-1] += ":" + piece
        else:
            parts.append(piece)
    delta: dict[str, Any] = {"weight": float(parts.pop())} if len(parts) > 1 and _WEIGHT.fullmatch(parts[-1]) else {}
    if len(parts) > 2 or not all(parts):
        raise RecipeError(f"--delta {text}: write POST, POST:BASE or POST:BASE:WEIGHT; for paths that contain colons use a recipe file")
    return {"post": parts[0], **({"base": parts[1]} if len(parts) == 2 else {}), **delta}
