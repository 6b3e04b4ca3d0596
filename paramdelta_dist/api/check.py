"""Checking whether the models of a recipe fit together, before anything is planned."""

from __future__ import annotations

from paramdelta_dist.checkpoint import HomologyReport
from paramdelta_dist.driver.open_inputs import Models, check_models, open_models
from paramdelta_dist.recipe.model import Recipe


def check(recipe: Recipe, models: Models | None = None) -> HomologyReport:
    """Whether the models of a recipe fit together. Reads headers, configs, tokenizers and small tensors of integers."""
    return check_models(recipe, models or open_models(recipe)).report
