"""The state of an output folder, or of the outputs of a template."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.output.inspect import output_status
from paramdelta_dist.output.series import series_status
from paramdelta_dist.recipe.output_template import folder_of, is_template
from paramdelta_dist.storage import (
    StorageConfig,
    normalize,
    open_store,
)


def status(url: str, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What is in an output folder, and how far a merge into it has come; of a template, or the folder where its outputs
    lie, which of them is the latest and which are unfinished."""
    url = normalize(url)
    store = open_store(folder_of(url) if is_template(url) else url, storage or StorageConfig())
    found = output_status(store)
    return (series_status(store) if found["state"] == "foreign" else None) or found
