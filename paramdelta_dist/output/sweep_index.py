"""The folder of a sweep's points, and the small file in it that says which they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paramdelta_dist.errors import IntegrityError, NotFound, OutputOccupied
from paramdelta_dist.output.names import SWEEP
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, is_of_somebody_else, read_document, render_document
from paramdelta_dist.storage import Store


def write_sweep(store: Store, fingerprint: str, points: Sequence[Mapping[str, Any]], *, report: str | None = None) -> None:
    """Write down, in the folder that the points are in, what they are, and the name of the page that compares them, or of the
    one that an earlier run of this very sweep made; the last write of a sweep."""
    document = {
        "fingerprint": fingerprint,
        "points": [{key: point[key] for key in ("name", "output", "fingerprint", "values")} for point in points],
    }
    report = report or (_written_down(store, fingerprint) or {}).get("report")
    store.write(SWEEP, render_document(document | ({"report": report} if report else {})))


def require_own_sweep(store: Store) -> None:
    """Raise OutputOccupied where the file that says which points there are is somebody else's: before the work, not after it."""
    try:
        data = store.read(SWEEP, limit=MAX_DOCUMENT)
    except NotFound:
        return
    if is_of_somebody_else(data, "fingerprint"):
        raise OutputOccupied(
            f"{store.url}/{SWEEP} is no sweep of ours, though it has the name of one; move it away, or choose another output"
        )


def is_written_down(store: Store, fingerprint: str) -> bool:
    """Whether the folder says that its points are those of the sweep with this fingerprint, and that they are complete."""
    return _written_down(store, fingerprint) is not None


def _written_down(store: Store, fingerprint: str) -> dict[str, Any] | None:
    try:
        found = read_document(store, SWEEP)
    except (NotFound, IntegrityError):
        return None
    return found if found.get("fingerprint") == fingerprint else None
