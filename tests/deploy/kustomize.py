"""What `kubectl kustomize` makes of a folder, for the parts of kustomize that deploy/kubernetes uses.

For machines without kubectl; where there is one, a test compares the two.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

KNOWN = {
    "apiVersion", "kind", "resources", "components", "namespace", "images", "configMapGenerator", "generatorOptions", "patches",
}  # fmt: skip
CLUSTER_WIDE = {"Namespace", "PriorityClass"}


def build(folder: Path) -> list[dict[str, Any]]:
    return _apply(folder, [])


def _apply(folder: Path, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what a folder brings, then change everything there is by its rules."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(rules) <= KNOWN, f"{folder}: {set(rules) - KNOWN} is not known here"
    for name in rules.get("resources", ()):
        path = folder / name
        made += build(path) if path.is_dir() else [copy.deepcopy(each) for each in yaml.safe_load_all(path.read_text())]
    for name in rules.get("components", ()):
        made = _apply(folder / name, made)
    made += [_config_map(folder, each) for each in rules.get("configMapGenerator", ())]
    for patch in rules.get("patches", ()):
        target = patch["target"]
        for each in made:
            if each["kind"] == target["kind"] and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]:
                for operation in yaml.safe_load(patch["patch"]):
                    _add(each, **operation)
    for each in made:
        if "namespace" in rules and each["kind"] not in CLUSTER_WIDE:
            each["metadata"]["namespace"] = rules["namespace"]
        if "namespace" in rules and each["kind"] == "Namespace":
            each["metadata"]["name"] = rules["namespace"]
        _name_images(each, {image["name"]: f"{image['newName']}:{image['newTag']}" for image in rules.get("images", ())})
    return made


def _config_map(folder: Path, rule: dict[str, Any]) -> dict[str, Any]:
    data = {Path(name).name: (folder / name).read_text() for name in rule["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": rule["name"]}, "data": data}


def _add(document: dict[str, Any], *, op: str, path: str, value: Any) -> None:
    assert op == "add", op
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in path.strip("/").split("/"))
    at: Any = document
    for part in way:
        at = at[int(part) if isinstance(at, list) else part]
    at[last] = value


def _name_images(value: Any, names: dict[str, str]) -> None:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _name_images(each, names)
    if isinstance(value, dict) and value.get("image") in names:
        value["image"] = names[value["image"]]
