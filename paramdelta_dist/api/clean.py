"""Clearing away what killed processes left unfinished in outputs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from paramdelta_dist.output.clean import LeftAlone, sort_leftovers
from paramdelta_dist.recipe.output_template import folder_of, is_template
from paramdelta_dist.storage import (
    StorageConfig,
    closed_folders,
    find_leftovers,
    normalize,
    open_store,
    redact,
    remove_leftover,
    scheme_of,
)


def clean(url: str, *, older_than: float = 86400.0, remove: bool = False, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What killed processes of ours left unfinished in the outputs below a folder, begun at least `older_than` seconds ago; with
    `remove` it is removed. What is younger, and what is not ours, is told and left alone; so are folders that may not be listed.

    A merge that runs at the moment looks the same as one that was killed: its age tells them apart.
    """
    url, storage = normalize(url), storage or StorageConfig()
    url = folder_of(url) if is_template(url) else url
    found, left = sort_leftovers(open_store(url, storage), find_leftovers(url, storage))
    old = [leftover for leftover in found if leftover.age_seconds >= older_than]
    young = [LeftAlone(leftover, "it is younger than that") for leftover in found if leftover.age_seconds < older_than]
    for leftover in old if remove else ():
        remove_leftover(url, storage, leftover)
    return {
        "output": redact(url),
        "removed": remove,
        "leftovers": [asdict(leftover) for leftover in old],
        "left_alone": [{**asdict(alone.leftover), "reason": alone.reason} for alone in (*young, *left)],
        "unlisted": [] if scheme_of(url) else list(closed_folders(url)),
    }
