"""The text of a recipe: YAML that can run nothing, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.recipe.explain import validated
from paramdelta_dist.recipe.model import Recipe

MAX_RECIPE = 1 << 20
"""Longest recipe that is read, in bytes."""


class Loader(yaml.SafeLoader):
    """Plain YAML values only; a key given twice, an alias and a tag are errors rather than surprises."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        for kind, found in (("aliases (*name)", isinstance(event, yaml.AliasEvent)), ("tags (!name)", getattr(event, "tag", None))):
            if found:
                raise RecipeError(f"line {event.start_mark.line + 1}: {kind} are not allowed in a recipe")
        return super().compose_node(parent, index)


Loader.add_implicit_resolver(  # 1e-3 and -.5 are numbers, as in YAML 1.2; to PyYAML they are text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+[eE][-+]?\d+|(\d+\.\d*|\.\d+)([eE][-+]?\d+)?)$"),
    list("-+.0123456789"),
)


def parse_recipe(text: str, *, where: str) -> Recipe:
    """The recipe in `text`; `where` names its file in messages.

    Raises RecipeError with every problem, each with its line, key and, for an unknown key, the nearest known one.
    """
    if len(text) > MAX_RECIPE:
        raise RecipeError(f"{where}: {len(text)} characters; a recipe has at most {MAX_RECIPE}")
    try:
        loader = Loader(text)
        try:
            root = loader.get_single_node()
            _refuse_duplicate_keys(root)
            document = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {_yaml_problem(error)}") from None
    except RecursionError:
        raise RecipeError(f"{where}: nested too deeply; a recipe has a handful of levels") from None
    except (ValueError, ArithmeticError) as error:  # such as the 99th of a month, or an endless number
        raise RecipeError(f"{where}: not valid YAML: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{where}: a recipe is a list of `key: value` lines, starting with `base:`, `deltas:` and `output:`")
    return validated(document, where=where, lines=_lines(root))


def _refuse_duplicate_keys(node: Any) -> None:
    for mapping in _nodes(node):
        if isinstance(mapping, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in mapping.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise RecipeError(f"line {key.start_mark.line + 1}: a key should be a word, not a list or mapping")
                if key.value in seen:
                    raise RecipeError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
                seen.add(key.value)


def _nodes(node: Any) -> Iterator[Any]:
    stack = [node] if node is not None else []
    while stack:
        current = stack.pop()
        yield current
        if isinstance(current, yaml.MappingNode):
            stack += [part for pair in current.value for part in pair]
        elif isinstance(current, yaml.SequenceNode):
            stack += current.value


def _lines(root: Any) -> dict[tuple[Any, ...], int]:
    """Line of each key, by its path."""
    found: dict[tuple[Any, ...], int] = {}
    stack: list[tuple[tuple[Any, ...], Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key.value, str):
                    here = (*path, key.value)
                    found[here] = key.start_mark.line + 1
                    stack.append((here, value))
        elif isinstance(node, yaml.SequenceNode):
            for position, value in enumerate(node.value):
                here = (*path, position)
                found[here] = value.start_mark.line + 1
                stack.append((here, value))
    return found


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
