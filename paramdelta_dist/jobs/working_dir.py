"""The working directory that travels to the cluster: the recipe as a file, this package where it is wanted, and the command to run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from paramdelta_dist._version import __version__
from paramdelta_dist.errors import UsageError
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.yaml_text import parse_recipe

RECIPE_FILE = "recipe.yaml"
MERGE = ("merge", RECIPE_FILE)
PACKAGE = Path(__file__).parent.parent
_VERSION = re.compile(r"""^__version__ = ["']([^"']+)["']""", re.MULTILINE)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a recipe may not contain any


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML that reads back as the same: what was written in it, with local paths made absolute."""
    values = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)  # a weight may be a list of rules
    text = yaml.dump(values, Dumper=_Plain, sort_keys=False, allow_unicode=True)
    if parse_recipe(text, where="recipe") != recipe:
        raise AssertionError("a recipe changed while it was written down")
    return text


def pack(folder: Path, text: str, ship: str) -> None:
    """Fill `folder`, which becomes the job's working directory and comes first where its processes look for modules.

    `ship` is image (the cluster has the package), package (the code that runs here), wheel (one built from this
    checkout), or the path of a wheel. Only the package itself is sent: what it depends on is the cluster's.
    Raises UsageError for a wheel that is missing or another version's.
    """
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    if ship == "package":
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"))
    elif ship == "wheel":
        with tempfile.TemporaryDirectory() as built:
            _unpack(_build(Path(built)), folder)
    elif ship != "image":
        _unpack(Path(ship), folder)


def command(python: str, options: Sequence[str], task: Sequence[str] = MERGE) -> str:
    """For the shell that starts the job: one of our commands, with what it is about."""
    return shlex.join([python, "-m", PACKAGE.name, *task, "--engine", "ray", "--json", *options])


def check_ship(ship: str) -> None:
    if ship not in ("image", "package", "wheel") and not ship.endswith(".whl"):
        raise UsageError(f"--ship {ship}: should be image, package, wheel, or the path of a wheel (.whl)")


def _build(folder: Path) -> Path:
    root = PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        raise UsageError("--ship wheel: this package was not installed from a checkout; name a wheel file, or use --ship package")
    offline = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *offline, "--wheel-dir", str(folder), str(root)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"--ship wheel: pip could not build one: {done.stderr.strip()[-500:]}")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith((f"{PACKAGE.name}/", f"{PACKAGE.name}-"))]
            archive.extractall(folder, names)
        found = _VERSION.search((folder / PACKAGE.name / "_version.py").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"--ship {wheel}: {'no such file' if not wheel.exists() else 'not a wheel of paramdelta-dist'}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"--ship {wheel}: cannot be read as a wheel: {error}") from error
    if found is None or found[1] != __version__:
        version = found[1] if found else "unknown"
        raise UsageError(f"--ship {wheel}: is version {version}, and this is {__version__}; submit with the version that is to run")
