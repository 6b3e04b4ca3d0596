"""Outputs that lost files since they were finished, as those do that a lifecycle rule of the bucket expires one object at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from paramdelta_dist.errors import AlreadyExists
from paramdelta_dist.output.edits import lost_or_changed
from paramdelta_dist.output.hold import RUN, find_document, mark_of, new_mark
from paramdelta_dist.output.names import COMMIT, PLAN, RECEIPTS
from paramdelta_dist.output.receipts import MAX_RECEIPT, parse_receipt
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, parse_document, render_document
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.storage import Identity, Store


def lost_files(store: Store, plan: MergePlan) -> list[str]:
    """What an output of this very merge no longer has, where that is all that is wrong with it; else nothing.

    A file that changed is not lost: somebody may have meant it.
    """
    present = store.list() or {}
    found = {name: parse_document(store.read(name, limit=MAX_DOCUMENT)) for name in (PLAN, COMMIT) if name in present}
    fingerprints = {document.get("fingerprint") for document in found.values() if document is not None}
    if fingerprints - {plan.fingerprint} or not (fingerprints or _has_receipt(store, plan, present)):
        return []
    committed: Mapping[str, Any] = (found.get(COMMIT) or {}).get("files", {})
    if any(name in present for name in lost_or_changed({"files": committed}, present)):
        return []
    return [name for name in committed if name not in present] + ([] if PLAN in present else [PLAN])


def mend(store: Store, plan: MergePlan) -> list[str]:
    """Make of an output that lost files one that the merge goes on with: what is still there is kept, the rest is made again.
    Returns what was lost."""
    lost = lost_files(store, plan)
    run = mark_of(find_document(store, COMMIT) or {}) or new_mark()
    if set(lost) - {PLAN}:
        store.delete(COMMIT)
    if PLAN in lost:
        with suppress(AlreadyExists):
            store.write(PLAN, render_document({**plan.as_document(), RUN: run}), exclusive=True)
    return lost


def _has_receipt(store: Store, plan: MergePlan, present: Mapping[str, Identity]) -> bool:
    for name in present:
        if name.startswith(f"{RECEIPTS}/"):
            receipt = parse_receipt(store.read(name, limit=MAX_RECEIPT))
            if receipt is not None and receipt.fingerprint == plan.fingerprint:
                return True
    return False
