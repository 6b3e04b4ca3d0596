"""Arguments of a command as values: the recipe that flags stand for, sizes, durations, consent."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from paramdelta_dist.errors import UsageError

if TYPE_CHECKING:
    from paramdelta_dist.driver.consent import Confirm
    from paramdelta_dist.recipe.model import Recipe
    from paramdelta_dist.storage import StorageConfig
from paramdelta_dist.cli.answers import printable


def recipe_of(source: str | None, base: str | None, deltas: list[str] | None, output: str | None, *, output_needed: bool = True) -> Recipe:
    flags = [name for name, value in (("--base", base), ("--delta", deltas), ("--output", output)) if value]
    if source is not None and flags:
        raise UsageError(f"give a recipe file or flags, not both (recipe {source}, {', '.join(flags)})")
    if source is not None:
        from paramdelta_dist.api import load_recipe

        return load_recipe(source)
    if not flags:
        raise UsageError("name a recipe file, or give --base, --delta and --output")
    if base is None or not deltas or (output is None and output_needed):
        raise UsageError(f"--base, --delta and --output are needed together (given: {', '.join(flags)})")
    from paramdelta_dist.recipe.flags import recipe_from_flags

    return recipe_from_flags(base=base, deltas=deltas, output=output or "memory://unused-by-check")


def asked_consent(yes: bool) -> Confirm | None:
    """Who says whether files that are not ours may go: --yes, whoever sits at the terminal, or nobody."""
    if yes:
        return lambda _: True
    return _ask if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() else None


def _ask(foreign: Mapping[str, Sequence[str]]) -> bool:
    from paramdelta_dist.driver.consent import listing

    print(f"--overwrite deletes what no merge of ours has made:\n{printable(listing(foreign), keep=chr(10))}", file=sys.stderr)
    try:
        return typer.confirm("Delete these files?", err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None


def storage_of(recipe: str | None) -> StorageConfig | None:
    """The storage settings of a recipe file, where one is given."""
    if recipe is None:
        return None
    from paramdelta_dist.api import load_recipe

    return load_recipe(recipe).storage_config


def parse_bytes(text: str | None, flag: str) -> int | None:
    if text is None:
        return None
    from paramdelta_dist.sizes import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None
    if size <= 0:
        raise UsageError(f"{flag}: {text} is nothing")
    return size


def parse_duration(text: str | None, flag: str) -> float | None:
    if text is None:
        return None
    from paramdelta_dist.sizes import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None
