"""The state of an output folder, read from its documents alone."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.output.edits import edited, lost_or_changed
from paramdelta_dist.output.hold import find_document, mark_of
from paramdelta_dist.output.names import COMMIT, PLAN, REPORT
from paramdelta_dist.output.receipts import receipt_name
from paramdelta_dist.storage import Store


def output_status(store: Store) -> dict[str, Any]:
    """The state of an output folder: `state` is absent, foreign, unfinished, complete or damaged. Reads no weights.

    `unreadable` names documents that are not as they were written, as a power cut leaves them: the same merge goes on all the same.
    """
    present = store.list() or {}
    if not present:
        return {"output": store.url, "state": "absent"}
    if PLAN not in present:
        return {"output": store.url, "state": "foreign", "files": len(present)}
    found = {name: find_document(store, name) for name in (PLAN, COMMIT, REPORT) if name in present}
    unreadable = [name for name, document in found.items() if document is None]
    status: dict[str, Any] = {"output": store.url, "state": "unfinished"} | ({"unreadable": unreadable} if unreadable else {})
    plan, commit, report = (found.get(name) for name in (PLAN, COMMIT, REPORT))
    if plan is None:
        return status
    shards = plan.get("shards", [])
    done = [s for s in shards if s["file"] in present and receipt_name(s["file"]) in present and present[s["file"]].size == s["size"]]
    status |= {
        "fingerprint": plan.get("fingerprint"),
        "shards": {"done": len(done), "total": len(shards)},
        "bytes": {"done": sum(s["size"] for s in done), "total": sum(s["size"] for s in shards)},
        "recipe": plan.get("recipe"),
    }
    if commit is not None and mark_of(commit) == mark_of(plan):
        status |= {"state": "complete", "committed": commit.get("committed")}
        if damaged := lost_or_changed(commit, present):
            status |= {"state": "damaged", "damaged": damaged}
        if changed := edited(commit, present):
            status["edited"] = changed
        if report is not None:
            status["report"] = report
    return status
