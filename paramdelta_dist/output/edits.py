"""Changes to the files of a commit, told apart: damage, or the edit of a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paramdelta_dist.checkpoint.sidefiles import is_for_people
from paramdelta_dist.storage import Identity


def lost_or_changed(commit: Mapping[str, Any], present: Mapping[str, Identity], prefix: str = "") -> list[str]:
    """Files of a commit that are not there, or not of the size it tells, those aside that people may edit."""
    return [name for name in _differing(commit, present, prefix) if not is_for_people(name)]


def edited(commit: Mapping[str, Any], present: Mapping[str, Identity]) -> list[str]:
    """Files that people may edit (the card, licences, `.gitattributes`) and that are gone, or not of the size the commit tells."""
    return [name for name in _differing(commit, present, "") if is_for_people(name)]


def _differing(commit: Mapping[str, Any], present: Mapping[str, Identity], prefix: str) -> list[str]:
    files: Mapping[str, Any] = commit.get("files", {})
    return [name for name, entry in files.items() if prefix + name not in present or present[prefix + name].size != entry["size"]]
