"""Removing an output so that at no moment what is left of it looks like a model, or like a merge to go on with.

First a mark is written that lists what goes, then the commit goes, the plan, what loaders open, all else, and the mark at last. A
removal that was killed is therefore known by its mark, and ended by the next `prune`, or by the next run of the same merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME
from paramdelta_dist.errors import NotFound, StorageError
from paramdelta_dist.output.names import COMMIT, FOLDER, PLAN, PRUNING
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, parse_document, render_document
from paramdelta_dist.storage import Store
from paramdelta_dist.threads import Threads

PATIENCE = timedelta(hours=1)
"""After this long, whoever wrote a mark is not at work any more."""
AT_A_TIME = 32
"""Requests to delete that are under way together."""


def remove(store: Store, fingerprint: str, files: Iterable[str], *, now: datetime, needed: Callable[[], bool]) -> bool:
    """Remove these files of an output and all that lies in its `.paramdelta`; False, and the output is as it was, where it is
    `needed` after all. That is asked once more when no run can find the output finished any longer, and none has to begin it."""
    mark = {"output": store.url, "fingerprint": fingerprint, "files": sorted(files), "begun": now.isoformat(timespec="seconds")}
    store.write(PRUNING, render_document(mark))
    try:
        commit = store.read(COMMIT, limit=MAX_DOCUMENT)
    except NotFound:
        commit = None
    store.delete(COMMIT)
    if needed():
        if commit is not None:
            store.write(COMMIT, commit)
        store.delete(PRUNING)
        return False
    finish(store, mark)
    return True


def finish(store: Store, mark: Mapping[str, Any]) -> None:
    """The rest of a removal that was begun. Of what the mark lists, only what lies in this folder goes."""
    going = {name for name in store.list() or {} if name in mark["files"] or name.startswith(f"{FOLDER}/")} - {PRUNING}
    first = [name for name in (COMMIT, PLAN, CONFIG_NAME, INDEX_NAME, SINGLE_NAME) if name in going]
    for name in first:
        store.delete(name)
    with Threads(AT_A_TIME) as pool:
        list(pool.map(store.delete, sorted(going.difference(first))))
    store.delete(PRUNING)


def read_mark(store: Store) -> dict[str, Any] | None:
    """The mark of a removal that is under way, or was when it was killed."""
    try:
        mark = parse_document(store.read(PRUNING, limit=MAX_DOCUMENT))
    except NotFound:
        return None
    return mark if is_mark(mark) else None


def is_mark(mark: Mapping[str, Any] | None) -> bool:
    return mark is not None and mark.keys() == {"output", "fingerprint", "files", "begun"}


def require_no_removal(store: Store, now: datetime) -> None:
    """End a removal that was killed here. Raises StorageError while one may be at work: it would take what a merge writes."""
    mark = read_mark(store)
    if mark is None:
        return
    if now - datetime.fromisoformat(mark["begun"]) < PATIENCE:
        raise StorageError(f"{store.url} is being removed by `prune`, since {mark['begun']}; run again when that has ended")
    try:
        store.identify(PLAN)
    except NotFound:
        finish(store, mark)
    else:  # nothing but the commit can be gone yet
        store.delete(PRUNING)
