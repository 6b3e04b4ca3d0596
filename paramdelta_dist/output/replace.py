"""`--overwrite`: what of a folder it takes away, whether that is ours, and the taking over itself."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint.beside import is_of_the_folder, why_left
from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME
from paramdelta_dist.checkpoint.sidefiles import is_side_file
from paramdelta_dist.errors import CredentialsError, OutputOccupied, StorageError, UsageError
from paramdelta_dist.output.hold import REPLACES, RUN, Hold, find_document, new_mark, require_hold, write_plan
from paramdelta_dist.output.names import CARD, COMMIT, COMPARED, FOLDER, PAGES, PLAN, RECEIPTS, REPORT, STATISTICS, WATCHED
from paramdelta_dist.output.receipts import MAX_RECEIPT, parse_receipt
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.storage import Identity, Store, find_leftovers, open_store, redact, remove_leftover, shared_files
from paramdelta_dist.threads import Threads

log = logging.getLogger(__name__)

_BOOKS = (RECEIPTS, STATISTICS, PAGES, WATCHED, COMPARED)
"""Folders below `.paramdelta/` that belong to the one output beside them. Records of series are there too, and do not."""


@dataclass(frozen=True)
class Replacement:
    """The files that `--overwrite` would take away from one folder."""

    output: str
    """Without secrets."""
    plan: Identity | None
    """The plan that is in it, of whatever content."""
    ours: frozenset[str]
    """Files that a plan, a commit or receipts of ours list, whether or not they are there."""
    foreign: tuple[str, ...]
    """Files of a checkpoint of somebody else's that would be deleted."""


def look_over(store: Store, plan: MergePlan) -> Replacement:
    """What would have to go for `plan`. Changes nothing. Raises OutputOccupied where an input of the plan would."""
    present = store.list()
    if present is None:
        raise UsageError(f"{store.url}: cannot be written to; use a local path or an object store")
    _require_apart(store, plan, present)
    ours, listed = _listed(store, present)
    written = _written(plan.as_document())
    if ours:
        listed |= {name for name in present if _is_of_the_books(name)}
        foreign = {name for name in written if name in present and name not in listed}
    else:
        weights = {name for name in present if "/" not in name and (name == CONFIG_NAME or is_weights(name))}
        foreign = weights | {name for name in present if name in written or _is_of_the_books(name)}
    identity = present.get(PLAN)
    return Replacement(store.url, identity, frozenset(listed), tuple(sorted(foreign)))


def take_over(store: Store, plan: MergePlan, replacement: Replacement) -> Hold:
    """Make the folder this run's, and empty but for what is no part of a checkpoint. Raises OutputTaken where another run is faster.

    What was a model there stops being one with the first file that goes, and stays whole until then. A run that ends in
    between leaves a plan that lists what is still to go.
    """
    doomed = {*replacement.ours, *replacement.foreign} - {PLAN}
    document = {**plan.as_document(), RUN: new_mark()}
    hold = write_plan(store, {**document, REPLACES: sorted(doomed)}, replacement.plan)
    if replacement.plan is not None:  # else no run of ours was there
        _end_writes(plan)
    there = store.list() or {}
    names = [name for name in there if (name in doomed or _is_of_the_books(name)) and name != PLAN]
    first = [name for name in (COMMIT, CONFIG_NAME, INDEX_NAME, SINGLE_NAME) if name in names]

    def remove(name: str) -> None:
        require_hold(store, hold)
        store.delete(name)

    for name in first:
        remove(name)
    with Threads(16) as pool:
        list(pool.map(remove, [name for name in names if name not in first]))
    return write_plan(store, document, hold.plan)


def remains_of(document: Mapping[str, Any], plan: Identity, url: str) -> Replacement:
    """What a run that had begun to take over, and ended, has left to go."""
    return Replacement(url, plan, frozenset(_names(document, {}) or ()), ())


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _require_apart(store: Store, plan: MergePlan, present: Mapping[str, Identity]) -> None:
    """Raise OutputOccupied where the folder is an input by another name, or shares files with one."""
    if not present:
        return
    recipe = plan.recipe
    for url in dict.fromkeys((*recipe.models, recipe.tokenizer_url)):
        known = {name: Identity(size, tag) for name, (size, tag) in plan.inputs.get(url, {}).items()}
        there = open_store(url, recipe.storage_config)
        shared = shared_files(store, there, compared=lambda name: name.endswith(".safetensors"), expected=known, mark=PLAN)
        if shared:
            raise OutputOccupied(
                f"{store.url} holds the files of the input {redact(url)} ({some(shared)}): it is the same place under another name, or a "
                "copy of it. Nothing was deleted; choose another output"
            )


def _listed(store: Store, present: Mapping[str, Identity]) -> tuple[bool, set[str]]:
    """Whether the folder is ours, and what documents of ours list that may be deleted."""
    found = [_names(document, present) for name in (PLAN, COMMIT) if name in present and (document := find_document(store, name))]
    listed = [names for names in found if names is not None]
    if listed:
        return True, set().union(*listed)
    receipts = [name for name in present if name.startswith(f"{RECEIPTS}/")]
    with Threads(16) as pool:
        proofs = list(pool.map(lambda name: parse_receipt(store.read(name, limit=MAX_RECEIPT)), receipts))
    files = {str(receipt.file) for receipt in proofs if receipt is not None}
    return bool(files), {name for name in files if _may_go(name)}


def _written(document: Mapping[str, Any]) -> set[str]:
    """The files that the merge with this plan writes."""
    names = {shard["file"] for shard in document["shards"]} | {entry[1] for entry in document["side_files"]}
    return names | {CARD, CONFIG_NAME, INDEX_NAME}


def _names(document: Mapping[str, Any], present: Mapping[str, Identity]) -> set[str] | None:
    """The files that a plan or a commit speaks of, those that may be deleted whatever it says: files of a checkpoint, in this
    very folder; and side files below, where a commit is right about what is there. None for a document that is neither."""
    try:
        files = {name: Identity(entry["size"], entry["tag"]) for name, entry in document.get("files", {}).items()}
        names = {*(_written(document) if "shards" in document else ()), *document.get(REPLACES, ()), *files}
        below = {name for name, identity in files.items() if _goes_along(name) and present.get(name) == identity}
        return {name for name in names if _may_go(name)} | below
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _goes_along(name: str) -> bool:
    return is_side_file(name) or (not is_of_the_folder(name) and why_left(name, 0) is None)


def _may_go(name: str) -> bool:
    return "/" not in name and (name == CARD or is_weights(name) or is_side_file(name))


def _is_of_the_books(name: str) -> bool:
    return name in (PLAN, COMMIT, REPORT) or name.startswith(tuple(f"{book}/" for book in _BOOKS))


def _end_writes(plan: MergePlan) -> None:
    """Remove the parts and abort the uploads of runs that have lost the folder, which could still take a name in it."""
    url, storage = plan.recipe.output, plan.recipe.storage_config
    try:
        for leftover in find_leftovers(url, storage):
            if posixpath.dirname(leftover.name) in ("", FOLDER, RECEIPTS):
                remove_leftover(url, storage, leftover)
    except (CredentialsError, StorageError) as error:
        log.warning("uploads of other runs cannot be ended (%s); `verify` afterwards tells whether one came late", error)


def some(names: Iterable[str]) -> str:
    """The first names and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:3])
    return shown if len(every) <= 3 else f"{shown} and {len(every) - 3} more"
