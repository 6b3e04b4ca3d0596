"""Recipes and mergekit configs by their path or URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paramdelta_dist.errors import InputError, NotFound, UsageError
from paramdelta_dist.methods import all_methods
from paramdelta_dist.recipe import mergekit
from paramdelta_dist.recipe.mergekit import Imported
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.schema import recipe_schema
from paramdelta_dist.recipe.yaml_text import MAX_RECIPE, parse_recipe
from paramdelta_dist.storage import StorageConfig, normalize, open_store, read_named_file, redact, scheme_of


def load_recipe(source: str) -> Recipe:
    """The recipe in a local file or at a URL. Raises RecipeError, or NotFound where there is none."""
    return parse_recipe(_read_text(source, "recipe"), where=redact(source))


def schema() -> dict[str, Any]:
    """A JSON Schema of the recipe, with all methods there are."""
    return recipe_schema(all_methods())


def import_mergekit(source: str, *, output: str) -> tuple[Imported, ...]:
    """The recipes that the mergekit configs in a local file or at a URL mean, and in what each merge differs from mergekit's: mostly one,
    else in the order in which they are to be merged, each writing to a folder below `output`.

    Raises RecipeError listing all that cannot be mapped.
    """
    return mergekit.import_mergekit(_read_text(source, "mergekit config"), where=redact(source), output=output)


def _read_text(source: str, what: str) -> str:
    url = normalize(source)
    folder, _, name = url.rpartition("/")
    if not scheme_of(url) and Path(url).is_dir():
        raise UsageError(f"{source} is a folder; name the {what}'s YAML file")
    try:
        if scheme_of(url):
            data = open_store(folder, StorageConfig()).read(name, limit=MAX_RECIPE)
        else:  # the user's own words may come by a link or a pipe, as config maps and shells give them
            data = read_named_file(url, limit=MAX_RECIPE)
    except NotFound:
        raise UsageError(f"there is no {what} at {redact(source)}") from None
    except InputError as error:
        raise UsageError(str(error)) from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{redact(source)} is not a text file") from None
