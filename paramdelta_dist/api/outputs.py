"""Folders of outputs, by hand: what is in one, and what can be cleared away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from paramdelta_dist.execution.output import output_status
from paramdelta_dist.execution.series import series_status
from paramdelta_dist.storage import StorageConfig, find_leftovers, normalize, open_store, redact, remove_leftover
from paramdelta_dist.template import folder_of, is_template


def status(url: str, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What is in an output folder, and how far a merge into it has come; of a template, or the folder where its outputs
    lie, which of them is the latest and which are unfinished."""
    url = normalize(url)
    store = open_store(folder_of(url) if is_template(url) else url, storage or StorageConfig())
    found = output_status(store)
    return (series_status(store) if found["state"] == "foreign" else None) or found


def clean(url: str, *, older_than: float = 86400.0, remove: bool = False, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What killed processes left unfinished below a folder, begun at least `older_than` seconds ago; with `remove` it is removed.

    A merge that runs at the moment looks the same as one that was killed: its age tells them apart.
    """
    url, storage = normalize(url), storage or StorageConfig()
    found = [leftover for leftover in find_leftovers(url, storage) if leftover.age_seconds >= older_than]
    for leftover in found if remove else ():
        remove_leftover(url, storage, leftover)
    return {"output": redact(url), "removed": remove, "leftovers": [asdict(leftover) for leftover in found]}
