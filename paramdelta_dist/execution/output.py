"""The output folder over its life: empty, claimed by a plan, filling with shards, committed. And who may touch it when."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from blake3 import blake3

from paramdelta_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME
from paramdelta_dist.checkpoint.sidefiles import is_side_file
from paramdelta_dist.errors import AlreadyExists, InputChanged, IntegrityError, NotFound, OutputOccupied, ParamDeltaError, UsageError
from paramdelta_dist.execution.documents import read_document, render_document
from paramdelta_dist.execution.pieces import read_pieces
from paramdelta_dist.execution.receipts import FOLDER, MAX_RECEIPT, Receipt, parse_receipt, receipt_name
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.storage import Identity, Store

PLAN = f"{FOLDER}/plan.json"
COMMIT = f"{FOLDER}/commit.json"
REPORT = f"{FOLDER}/report.json"
CARD = "README.md"


@dataclass(frozen=True)
class Claim:
    """The right to fill an output folder, and what is in it already."""

    committed: Mapping[str, Any] | None
    """The commit, when the merge was finished before: there is nothing left to do."""
    receipts: Mapping[str, Receipt]
    """Shards of this very plan that are in place, by file."""
    bytes_read: int = 0
    """Bytes of shards that had to be read to know that they are ours."""


def claim(store: Store, plan: MergePlan, *, overwrite: bool) -> Claim:
    """Take the output folder for `plan`, or find it done, or go on where an earlier run of the same plan stopped.

    Raises OutputOccupied when the folder holds anything else and `overwrite` is not given, IntegrityError when it was
    committed and its files are no longer those.
    """
    present = store.list()
    if present is None:
        raise UsageError(f"{store.url}: cannot be written to; use a local path or an object store")
    if overwrite and present:
        _clear(store, present)
        present = {}
    if PLAN not in present:
        _require_empty(store, present)
        try:
            store.write(PLAN, render_document(plan.as_document()), exclusive=True)
            return Claim(None, {})
        except AlreadyExists:  # another run was a moment earlier; whether it is the same merge is seen below
            present = store.list() or {}
    _same_plan(store, plan)
    if COMMIT in present:
        commit = read_document(store, COMMIT)
        _unchanged(store, commit, present)
        return Claim(commit, {})
    receipts, bytes_read = _receipts(store, plan, present)
    return Claim(None, receipts, bytes_read)


def look(store: Store, plan: MergePlan) -> Literal["free", "begun", "finished"]:
    """What of this very plan is in the output. Writes nothing. Raises what `claim` would raise without `overwrite`."""
    present = store.list()
    if present is None:
        raise UsageError(f"{store.url}: cannot be written to; use a local path or an object store")
    if PLAN not in present:
        _require_empty(store, present)
        return "free"
    _same_plan(store, plan)
    if COMMIT not in present:
        return "begun"
    _unchanged(store, read_document(store, COMMIT), present)
    return "finished"


def as_begun(store: Store, plan: MergePlan) -> MergePlan:
    """The plan, by the fingerprint that its output has of it: one that was begun when it did not count where inputs live is
    still the output of this merge. Writes nothing."""
    if plan.fingerprint == plan.unlocated:
        return plan
    try:
        found = read_document(store, PLAN)
    except ParamDeltaError:  # whoever claims the output comes by it again
        return plan
    ours = plan.as_document()["locations"]
    known = found.get("fingerprint") == plan.unlocated and found.get("locations", ours) == ours
    return replace(plan, fingerprint=plan.unlocated) if known else plan


def _require_empty(store: Store, present: Mapping[str, Identity]) -> None:
    if present:
        raise OutputOccupied(
            f"{store.url} is not empty and holds no merge of ours ({_some(sorted(present))}); choose another output, or "
            "--overwrite to replace the checkpoint in it"
        )


def _same_plan(store: Store, plan: MergePlan) -> None:
    found = read_document(store, PLAN)
    if found.get("fingerprint") == plan.fingerprint:
        return
    differing = _differences(found, plan.as_document())
    raise OutputOccupied(
        f"{store.url} belongs to another merge ({differing}); choose another output, or --overwrite to replace what is there"
    )


def _differences(found: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What tells two plans apart, in words."""
    theirs, mine = found.get("inputs", {}), json.loads(json.dumps(ours["inputs"]))
    changed = sorted(f"{url}/{name}" for url in mine for name in mine[url] if url in theirs and theirs[url].get(name) != mine[url][name])
    if changed:
        return f"the inputs changed since: {_some(changed)}"
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
    return _some(texts) if texts else ""


def _unchanged(store: Store, commit: Mapping[str, Any], present: Mapping[str, Identity]) -> None:
    for name, entry in commit.get("files", {}).items():
        if name not in present or present[name].size != entry["size"]:
            problem = "is missing" if name not in present else f"has {present[name].size} bytes instead of {entry['size']}"
            raise IntegrityError(f"{store.url} was finished, but {name} {problem} now; --overwrite makes it again")


def _receipts(store: Store, plan: MergePlan, present: Mapping[str, Identity]) -> tuple[dict[str, Receipt], int]:
    """Receipts that still hold, of this plan and of the object that is there, and the bytes read to find out."""

    def kept(file: str) -> tuple[Receipt | None, int]:
        if receipt_name(file) not in present:
            return None, 0
        receipt = parse_receipt(store.read(receipt_name(file), limit=MAX_RECEIPT))
        if receipt is None or receipt.fingerprint != plan.fingerprint:
            return None, 0
        return _holding(store, receipt, present)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(kept, [shard.file for shard in plan.shards]))
    return {receipt.file: receipt for receipt, _ in found if receipt is not None}, sum(size for _, size in found)


def _holding(store: Store, receipt: Receipt, present: Mapping[str, Identity]) -> tuple[Receipt | None, int]:
    """The receipt, if the object that is there is the one it proves, and the bytes read to find out.

    An object of the same size that was written again, by another run of this merge or by a copy, is judged by its bytes.
    """
    there = present.get(receipt.file)
    if there is None or there.size != receipt.size:
        return None, 0
    if receipt.identity == there:
        return receipt, 0
    digest = blake3()
    try:
        for piece in read_pieces(store, receipt.file, there):
            digest.update(piece)
    except (InputChanged, NotFound):  # a run that goes on at the same time writes it once more
        return None, there.size
    if digest.hexdigest() != receipt.digest:
        return None, there.size
    receipt = replace(receipt, tag=there.tag)
    store.write(receipt_name(receipt.file), receipt.to_json())
    return receipt, there.size


def require_claim(store: Store, fingerprint: str) -> None:
    """Raise OutputOccupied unless the output still belongs to the plan with this fingerprint.

    Asked before each shard is published: `--overwrite` may have given the folder to another merge meanwhile.
    """
    try:
        if read_document(store, PLAN).get("fingerprint") == fingerprint:
            return
    except NotFound:
        pass
    raise OutputOccupied(f"{store.url} was taken over by another merge (--overwrite) while this one ran")


def require_shards(store: Store, receipts: Mapping[str, Receipt]) -> dict[str, Receipt]:
    """The receipts, once more held against what is there now, before it is called a model. Raises OutputOccupied when a
    shard is no longer what was made."""
    present = store.list() or {}
    with ThreadPoolExecutor(16) as pool:
        held = {
            file: receipt
            for file, (receipt, _) in zip(receipts, pool.map(lambda r: _holding(store, r, present), receipts.values()), strict=True)
        }
    lost = sorted(file for file, receipt in held.items() if receipt is None)
    if lost:
        raise OutputOccupied(
            f"{store.url}: {_some(lost)} changed while the merge ran: another process writes to this folder; run again when it is alone"
        )
    return {file: receipt for file, receipt in held.items() if receipt is not None}


def _clear(store: Store, present: Mapping[str, Identity]) -> None:
    """Remove a checkpoint so that it stops being one at the first step; files that belong to no checkpoint stay."""
    ours = [name for name in present if _belongs_to_a_checkpoint(name)]
    first = [name for name in (COMMIT, "config.json", INDEX_NAME, SINGLE_NAME, PLAN) if name in present]
    for name in first:
        store.delete(name)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.delete, [name for name in ours if name not in first]))


def _belongs_to_a_checkpoint(name: str) -> bool:
    return name.startswith(f"{FOLDER}/") or name == CARD or name.endswith((".safetensors", ".safetensors.index.json")) or is_side_file(name)


def commit(store: Store, document: Mapping[str, Any]) -> None:
    """The last write: from here on the output is a model and does not change.

    A second run of the same plan that was slower finds the commit and is content. Raises OutputOccupied if it is
    another plan's.
    """
    try:
        store.write(COMMIT, render_document(document), exclusive=True)
    except AlreadyExists:
        committed_meanwhile(store, document["fingerprint"])


def committed_meanwhile(store: Store, fingerprint: str) -> bool:
    """Whether another run of this plan has committed the output since it was claimed. Raises OutputOccupied if another plan's has."""
    try:
        found = read_document(store, COMMIT)
    except NotFound:
        return False
    if found.get("fingerprint") != fingerprint:
        raise OutputOccupied(f"{store.url} was committed by another merge while this one ran")
    return True


def output_status(store: Store) -> dict[str, Any]:
    """What is in an output folder: `state` is absent, foreign, unfinished or complete. Reads no weights."""
    present = store.list() or {}
    if not present:
        return {"output": store.url, "state": "absent"}
    if PLAN not in present:
        return {"output": store.url, "state": "foreign", "files": len(present)}
    plan = read_document(store, PLAN)
    shards = plan.get("shards", [])
    done = [s for s in shards if s["file"] in present and receipt_name(s["file"]) in present and present[s["file"]].size == s["size"]]
    status: dict[str, Any] = {
        "output": store.url,
        "state": "unfinished",
        "fingerprint": plan.get("fingerprint"),
        "shards": {"done": len(done), "total": len(shards)},
        "bytes": {"done": sum(s["size"] for s in done), "total": sum(s["size"] for s in shards)},
        "recipe": plan.get("recipe"),
    }
    if COMMIT in present:
        document = read_document(store, COMMIT)
        status |= {"state": "complete", "committed": document.get("committed")}
        damaged = [name for name, e in document.get("files", {}).items() if name not in present or present[name].size != e["size"]]
        if damaged:
            status |= {"state": "damaged", "damaged": damaged}
        with suppress(NotFound):
            status["report"] = read_document(store, REPORT)
    return status


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
