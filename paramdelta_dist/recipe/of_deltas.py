"""A recipe reduced to its deltas, as `analyze` reads it."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.recipe.fit import is_number
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.sections import VocabularySection


def of_deltas(recipe: Recipe) -> Recipe:
    """The recipe that adds every delta of `recipe` whole, whatever its method does with them: for who wants to read all of them.

    Models that are merged as they are count as deltas of the recipe's base, or where there is none of the first of them.
    """
    deltas = [{"adapter" if delta.adapter else "post": delta.source, "base": delta.base or recipe.base} for delta in recipe.deltas]
    deltas += [{"post": entry.model} for entry in recipe.entries if entry.model != recipe.base]
    if not deltas:
        raise RecipeError("the recipe has no model besides its base")
    rest: dict[str, Any] = {"shard_size": recipe.shard_size, "storage": recipe.storage, "tokenizer_from": "base", "missing": recipe.missing}
    if recipe.accept:
        rest["accept"] = recipe.accept
    if recipe.vocabulary != VocabularySection():
        rest["vocabulary"] = recipe.vocabulary.model_dump(exclude_defaults=True)
    return Recipe.model_validate({"base": recipe.base, "deltas": deltas, "output": "memory://nothing-is-written", **rest})


def weights_of(recipe: Recipe) -> list[float | None]:
    """The weight of each delta of `of_deltas(recipe)`, 1 where none is given; None where rules choose it tensor by tensor."""
    entries = [*recipe.deltas, *(entry for entry in recipe.entries if entry.model != recipe.base)]
    general = recipe.parameters.get("weight", 1.0)
    given = [entry.given.get("weight", general) for entry in entries]
    return [float(weight) if is_number(weight) else None for weight in given]
