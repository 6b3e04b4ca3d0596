"""Committing an output: from then on it is a model and does not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from paramdelta_dist.errors import (
    AlreadyExists,
    InputChanged,
    NotFound,
    OutputOccupied,
)
from paramdelta_dist.output.hold import RUN, Hold, find_document, find_identity, mark_of, require_hold, settle, write_held
from paramdelta_dist.output.names import COMMIT
from paramdelta_dist.output.replace import some
from paramdelta_dist.output.sealed_json import render_document
from paramdelta_dist.storage import Store, stream_object

CHECKS = 10
"""At a file that other runs of the same merge write again, before it counts as changed."""


def commit(store: Store, hold: Hold, document: Mapping[str, Any]) -> None:
    """The last write: from here on the output is a model and does not change.

    A second run of the same plan that was slower finds the commit and is content. Raises OutputTaken where the output was lost,
    and OutputOccupied where a file is not what was written; then there is no commit, or the winner's.
    """
    require_hold(store, hold)
    data = render_document({**document, RUN: hold.run})
    try:
        identity = store.write(COMMIT, data, exclusive=True)
    except (AlreadyExists, NotFound):
        if committed_meanwhile(store, hold, document["fingerprint"]):
            return
        identity = write_held(store, hold, COMMIT, data)  # in place of one that cannot be read, or of a run that has lost
    settle(store, hold, COMMIT, identity)
    changed = _changed(store, document["files"])
    if changed:
        require_hold(store, hold)
        if store.identify(COMMIT) == identity:
            store.delete(COMMIT)
        raise OutputOccupied(
            f"{store.url}: {some(changed)} changed while the merge was published: another process writes to this folder; run again when "
            "it is alone, which goes on from here"
        )


def _changed(store: Store, files: Mapping[str, Any]) -> list[str]:
    """The files that are not what was written: by their tags, or by their bytes where another run of this merge has written them
    again."""
    present = store.list() or {}

    def same(name: str) -> bool:
        there, entry = present.get(name), files[name]
        for _ in range(CHECKS):
            if there is None or there.size != entry["size"]:
                return False
            if there.tag == entry["tag"]:
                return True
            digest = blake3()
            try:
                for piece in stream_object(store, name, there):
                    digest.update(piece)
            except (InputChanged, NotFound):  # at this very moment
                there = find_identity(store, name)
            else:
                return bool(digest.hexdigest() == entry["digest"])
        return False

    return [name for name in files if not same(name)]


def committed_meanwhile(store: Store, hold: Hold, fingerprint: str) -> bool:
    """Whether another run of this claim has committed the output. Raises OutputTaken where it is another claim's by now."""
    found = find_document(store, COMMIT)
    if found is None:
        return False
    ours = (mark_of(found), found.get("fingerprint")) == (hold.run, fingerprint)
    if not ours:
        require_hold(store, hold)
    return bool(ours)
