"""The files of cluster/ and deploy/, and the commands in them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER, DEPLOY = ROOT / "cluster", ROOT / "deploy"
IMAGE = "ghcr.io/example/paramdelta-dist"
"""The placeholder that users replace."""

_FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def all_files() -> list[Path]:
    """Every file but those of dashboards."""
    found = [path for folder in (CLUSTER, DEPLOY) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if "grafana" not in path.parts and "__pycache__" not in path.parts]


def scripts() -> list[Path]:
    return [path for path in all_files() if path.suffix == ".sh"]


def load(path: Path) -> Any:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def shell_lines(text: str) -> Iterator[str]:
    """Lines of a script without comments, continued ones joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def readme_commands(path: Path) -> list[str]:
    """What a page tells its reader to run."""
    return [line for block in _FENCE.findall(path.read_text()) for line in shell_lines(block)]


def _leaves(value: Any) -> Iterator[str | list[str]]:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(each, str) for each in value)):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)


def _ours(words: list[str]) -> list[str] | None:
    """The arguments of paramdelta-dist in a command line, up to what a shell makes of the rest."""
    if "paramdelta-dist" not in words:
        return None
    arguments = []
    for word in words[words.index("paramdelta-dist") + 1 :]:
        if word.startswith(("#", "|", "&", ";", ">")):
            break
        if not word.startswith("${@"):  # what the user adds
            arguments.append(word)
    return arguments


def our_commands(path: Path) -> list[list[str]]:
    """Arguments of every paramdelta-dist that a file runs or tells to run."""
    lines: list[str | list[str]]
    if path.suffix in (".yaml", ".json"):
        lines = [line for leaf in _leaves(load(path)) for line in ([leaf] if isinstance(leaf, list) else shell_lines(leaf))]
    elif path.suffix == ".md":
        lines = list(readme_commands(path))
    elif path.suffix == ".sh":
        lines = list(shell_lines(path.read_text()))
    elif path.name == "Dockerfile":
        lines = [json.loads(line.removeprefix("CMD ")) for line in path.read_text().splitlines() if line.startswith("CMD ")]
    else:
        return []
    found = []
    for line in lines:
        if isinstance(line, list) or "paramdelta-dist " in line:
            arguments = _ours(line if isinstance(line, list) else shlex.split(line, comments=True))
            if arguments:
                found.append(arguments)
    return found
