"""Where the package refuses an input: every place of its source that makes such an error, or names a way out of one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "paramdelta_dist"
ROOMS = ("checkpoint/", "planning/", "recipe/", "methods/__init__.py", "storage/", "driver/open_inputs.py",
         "driver/make_plan.py", "driver/consent.py", "api/recipes.py", "driver/sizing.py", "driver/executors.py", "shards/compute.py",
         "output/claim.py", "output/commit.py", "output/kept_shards.py", "output/replace.py", "output/sweep_index.py", "output/series.py",
         "output/hold.py")  # fmt: skip
"""What has to do with inputs, and with the output that a merge would fill."""
_ERRORS = {"InputError", "NotFound", "CheckpointError", "HomologyError", "InputChanged", "OutputOccupied", "OutputTaken", "NonFinite",
           "AlreadyExists", "UsageError", "RecipeError", "OverBudget", "Mismatch",
           "Difference", "damaged", "broken", "ValueError"}  # fmt: skip
_CHECKS = ("recipe/fields.py", "recipe/grid.py", "recipe/model.py", "recipe/sections.py", "recipe/mergekit")
"""Where a ValueError is what pydantic or the importer makes a mistake of the recipe of."""
_LONG = 25
"""Characters of a text that is more than a word."""


class Site(NamedTuple):
    module: str
    function: str
    text: str
    """What is said there, as far as it stands in the source; empty where it comes from elsewhere."""

    def __str__(self) -> str:
        return f"{self.module}, {self.function}: {self.text[:120] or '(what it was given)'}"


def _text(nodes: list[ast.expr]) -> str:
    return "".join(_literal(node) for node in nodes)


def _literal(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue):
        return "{}"
    return "".join(map(_literal, ast.iter_child_nodes(node)))


def sites() -> Iterator[Site]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = str(path.relative_to(PACKAGE))
        if module.startswith(ROOMS):
            yield from _of(ast.parse(path.read_text()), module, "")


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts in a value, each whole."""
    if isinstance(node, (ast.Constant, ast.JoinedStr)):
        yield _literal(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)


def _of(node: ast.AST, module: str, function: str) -> Iterator[Site]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        function = node.name
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        of_ours = name in _ERRORS and (name != "ValueError" or module.startswith(_CHECKS))
        listed = isinstance(node.func, ast.Attribute) and node.func.attr == "append" and ast.unparse(node.func.value).endswith("problems")
        if of_ours or listed:
            yield Site(module, function, _text(node.args))
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return)) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [] if isinstance(node, ast.Return) else [node.target]
        names = [ast.unparse(target) for target in targets] or [function]
        if any("remedy" in name or "treatment" in name or name in ("_PLACES", "_WAYS") for name in names):
            for text in _texts(node.value):
                if len(text) >= _LONG:
                    yield Site(module, function or names[0], text)
    for child in ast.iter_child_nodes(node):
        yield from _of(child, module, function)
