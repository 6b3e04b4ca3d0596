"""The output folder over its life: empty, claimed by a plan, filling with shards, committed. And who may touch it when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from paramdelta_dist.errors import (
    IntegrityError,
    OutputOccupied,
    OutputTaken,
    ParamDeltaError,
    UsageError,
)
from paramdelta_dist.output.edits import edited, lost_or_changed
from paramdelta_dist.output.hold import REPLACES, RUN, Hold, find_document, mark_of, new_mark, write_plan
from paramdelta_dist.output.kept_shards import read_receipts
from paramdelta_dist.output.names import COMMIT, FOLDER, PLAN, RECEIPTS, REPORT
from paramdelta_dist.output.receipts import MAX_RECEIPT, Receipt, parse_receipt
from paramdelta_dist.output.replace import Replacement, remains_of, some, take_over
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.storage import Identity, Store


@dataclass(frozen=True)
class Claim:
    """The right to fill an output folder, and what is in it already."""

    committed: Mapping[str, Any] | None
    """The commit, when the merge was finished before: there is nothing left to do."""
    receipts: Mapping[str, Receipt]
    """Shards of this very plan that are in place, by file."""
    hold: Hold
    """The hold that each write has to ask for."""
    bytes_read: int = 0
    """Bytes of shards that had to be read to know that they are ours."""
    edited: tuple[str, ...] = ()
    """Files of a finished merge that people may edit, and did."""


def claim(store: Store, plan: MergePlan, replacement: Replacement | None = None) -> Claim:
    """Take the output folder for `plan`, or find it done, or go on where an earlier run of the same plan stopped.

    With a `replacement` it is taken from whom it belongs to, and what that lists is deleted. Raises OutputOccupied when the
    folder holds anything else and there is none, OutputTaken when another run takes it at this moment, IntegrityError when it
    was committed and its files are no longer those.
    """
    present = _listed(store)
    if replacement is not None and present:
        return Claim(None, {}, take_over(store, plan, replacement))
    if PLAN not in present:
        _require_empty(store, present)
        try:
            return Claim(None, {}, _begin(store, plan, None))
        except OutputTaken:  # another run was a moment earlier; whether it is the same merge is seen below
            present = _listed(store)
    found = _found(store, plan, present)
    if found is None:  # unreadable, and receipts show that it is ours
        hold = _begin(store, plan, present.get(PLAN))
    elif REPLACES in found:
        return Claim(None, {}, take_over(store, plan, remains_of(found, present[PLAN], store.url)))
    else:
        hold = Hold(mark_of(found), present[PLAN])
        committed = _commit_of(store, plan, hold.run, present)
        if committed is not None:
            _unchanged(store, committed, present)
            return Claim(committed, {}, hold, edited=tuple(edited(committed, present)))
    receipts, bytes_read = read_receipts(store, hold, plan, present)
    return Claim(None, receipts, hold, bytes_read)


def output_state(store: Store, plan: MergePlan) -> Literal["free", "begun", "finished"]:
    """The state of this very plan in the output. Writes nothing. Raises what `claim` would raise without a replacement."""
    present = _listed(store)
    if PLAN not in present:
        _require_empty(store, present)
        return "free"
    found = _found(store, plan, present)
    committed = None if found is None or REPLACES in found else _commit_of(store, plan, mark_of(found), present)
    if committed is None:
        return "begun"
    _unchanged(store, committed, present)
    return "finished"


def holds(store: Store, fingerprint: str) -> bool:
    """Whether there is an output of the plan with this fingerprint, finished or not, or what is left of one."""
    plan = find_document(store, PLAN)
    if plan is not None:
        return plan.get("fingerprint") == fingerprint
    return _proves(store, fingerprint, store.list() or {})


def _listed(store: Store) -> Mapping[str, Identity]:
    present = store.list()
    if present is None:
        raise UsageError(f"{store.url}: cannot be written to; use a local path or an object store")
    return present


def _begin(store: Store, plan: MergePlan, replacing: Identity | None) -> Hold:
    return write_plan(store, {**plan.as_document(), RUN: new_mark()}, replacing)


def _found(store: Store, plan: MergePlan, present: Mapping[str, Identity]) -> dict[str, Any] | None:
    """The plan in the output, which is this one's; None where it cannot be read, as after a power cut, and what lies beside it
    is this plan's or nothing. Raises OutputOccupied where the output is another merge's, or may be."""
    found = find_document(store, PLAN)
    if found is not None:
        _same_plan(store, found, plan)
        return found
    others = [name for name in present if not name.startswith(f"{FOLDER}/")]
    if others and not _proves(store, plan.fingerprint, present):
        raise OutputOccupied(
            f"{store.url}: {PLAN} cannot be read, as after a power cut, and no receipt shows that {some(others)} are this merge's; "
            "choose another output, or --overwrite to replace what is there"
        )
    return None


def _proves(store: Store, fingerprint: str, present: Mapping[str, Identity]) -> bool:
    """Whether a commit or receipts say that the output is that of the plan with this fingerprint."""
    commit = find_document(store, COMMIT) if COMMIT in present else None
    if commit is not None:
        return commit.get("fingerprint") == fingerprint
    receipts = (parse_receipt(store.read(name, limit=MAX_RECEIPT)) for name in present if name.startswith(f"{RECEIPTS}/"))
    return next((receipt.fingerprint == fingerprint for receipt in receipts if receipt is not None), False)


def _commit_of(store: Store, plan: MergePlan, run: str, present: Mapping[str, Identity]) -> dict[str, Any] | None:
    """The commit, if it is of this claim and all that it needs beside it can be read: else publishing is done once more."""
    commit = find_document(store, COMMIT) if COMMIT in present else None
    if commit is None or (commit.get("fingerprint"), mark_of(commit)) != (plan.fingerprint, run):
        return None
    return commit if find_document(store, REPORT) is not None else None


def as_begun(store: Store, plan: MergePlan) -> MergePlan:
    """The plan, by the fingerprint that its output has of it: one that was begun when it did not count where inputs live is
    still the output of this merge. Writes nothing."""
    if plan.fingerprint == plan.unlocated:
        return plan
    try:
        found = find_document(store, PLAN) or {}
    except ParamDeltaError:  # whoever claims the output comes by it again
        return plan
    ours = plan.as_document()["locations"]
    known = found.get("fingerprint") == plan.unlocated and found.get("locations", ours) == ours
    return replace(plan, fingerprint=plan.unlocated) if known else plan


def _require_empty(store: Store, present: Mapping[str, Identity]) -> None:
    if present:
        raise OutputOccupied(
            f"{store.url} is not empty and holds no merge of ours ({some(sorted(present))}); choose another output, or "
            "--overwrite to replace the checkpoint in it"
        )


def _same_plan(store: Store, found: Mapping[str, Any], plan: MergePlan) -> None:
    if found.get("fingerprint") == plan.fingerprint:
        return
    differing = _differences(found, plan.as_document())
    raise OutputOccupied(
        f"{store.url} belongs to another merge ({differing}); choose another output, or --overwrite to replace what is there"
    )


def _differences(found: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The differences of two plans, in words."""
    theirs, mine = found.get("inputs", {}), json.loads(json.dumps(ours["inputs"]))
    changed = sorted(f"{url}/{name}" for url in mine for name in mine[url] if url in theirs and theirs[url].get(name) != mine[url][name])
    before, now = ({(url, name): rest for url, name, *rest in plan.get("side_files", ())} for plan in (found, ours))
    changed += sorted(
        f"{url}/{name}" for url, name in now if before.get((url, name), []) not in ([], now[url, name])
    )  # older plans have none
    if changed:
        return f"the inputs changed since: {some(changed)}"
    places = _elsewhere(found.get("locations", {}), ours["locations"])
    if places and found.get("recipe") == ours["recipe"]:
        return f"by the recipe's `storage:` its inputs live elsewhere: {places}; with the settings as they were it goes on"
    return "another recipe" if found.get("recipe") != ours["recipe"] else "other side files or another version of the format"


def _elsewhere(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what the storage settings of two plans differ, in words; empty where they do not."""
    texts = []
    for url in sorted({*theirs, *ours}):
        then, now = theirs.get(url, {}), ours.get(url, {})
        differing = [name for name in ("endpoint", "region", "profile") if then.get(name) != now.get(name)]
        texts += [f"{name} of {url} was {then.get(name, 'not set')}, is {now.get(name, 'not set')}" for name in differing]
    return some(texts) if texts else ""


def _unchanged(store: Store, commit: Mapping[str, Any], present: Mapping[str, Identity]) -> None:
    for name in lost_or_changed(commit, present)[:1]:
        size = commit["files"][name]["size"]
        problem = "is missing" if name not in present else f"has {present[name].size} bytes instead of {size}"
        raise IntegrityError(f"{store.url} was finished, but {name} {problem} now; --overwrite makes it again")
