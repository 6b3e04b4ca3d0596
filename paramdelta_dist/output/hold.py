"""Whose an output is while it fills: the plan in it carries a mark, and who finds another mark there has lost it.

A claim is `.paramdelta/plan.json` with a mark that no other claim has. Runs of one merge share it; `--overwrite` writes the plan
anew, with a mark of its own, and from that moment on every other run has lost, whatever it was about to do:

- Before and after each write of a run the mark is looked at. A write that turns out to have come too late is taken back.
- A small file is written where none is, or in place of exactly what was seen there, so that one which comes late, however late,
  replaces nothing of the winner's.
- A shard is a part or an upload until it has arrived. It asks for the mark in between, and who takes over first writes the mark, then
  removes parts and aborts uploads, and then deletes: what has asked before is either removed, or there to be deleted.

So nothing of a loser stays among the winner's files, except where a store cannot abort uploads (Azure), or a process is
stopped between two requests, asking and deleting, for as long as the other takes to write that file: then `verify` says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.index import INDEX_NAME
from paramdelta_dist.errors import AlreadyExists, InputChanged, InputError, NotFound, OutputTaken
from paramdelta_dist.output.names import COMMIT, PLAN
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, parse_document, render_document
from paramdelta_dist.storage import Identity, Store

RUN = "run"
"""Key of the mark, in plan and commit."""
REPLACES = "replaces"
"""Key of the names that a plan that has taken over is about to delete; gone when they are."""
ATTEMPTS = 20
"""Writes of one small file while runs of the same merge write it too."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A run's right to write to an output."""

    run: str
    """The mark; empty in outputs of versions that knew none."""
    plan: Identity
    """Of the plan that carries it: as long as it is this one, it need not be read."""


def new_mark() -> str:
    return secrets.token_hex(16)


def find_document(store: Store, name: str) -> dict[str, Any] | None:
    """A document of an output; None where there is none, or one that is not as it was written."""
    try:
        return parse_document(store.read(name, limit=MAX_DOCUMENT))
    except NotFound:
        return None


def write_plan(store: Store, document: Mapping[str, Any], replacing: Identity | None) -> Hold:
    """Write a plan that carries a mark, where none is or in place of one. Raises OutputTaken where somebody else has done so."""
    try:
        identity = store.write(PLAN, render_document(document), exclusive=replacing is None, replacing=replacing)
        if not _is_marked(store, document[RUN]):  # a store that looks afterwards what it has written may have seen another's
            raise AlreadyExists(f"{store.url}/{PLAN}")
    except (AlreadyExists, InputChanged):
        found = find_identity(store, PLAN)
        if found is None or not _is_marked(store, document[RUN]):  # else it is this write, whose reply was lost
            raise OutputTaken(
                f"{store.url}: another run has begun there a moment ago; run again to go on with it if it is the same merge, "
                "or with --overwrite to replace it"
            ) from None
        identity = found
    return Hold(document[RUN], identity)


def require_hold(store: Store, hold: Hold) -> None:
    """Raise OutputTaken unless the output still is this run's. Asked before and after each step of filling and publishing it."""
    identity = find_identity(store, PLAN)
    if identity is not None and (identity == hold.plan or _is_marked(store, hold.run)):
        return
    winner = find_document(store, PLAN)
    if winner is None:
        raise OutputTaken(f"{store.url} was taken away from this run: its {PLAN} is gone; run again to begin anew")
    raise OutputTaken(
        f"{store.url} was taken over by another merge (--overwrite) while this one ran: it belongs to {_named(winner)} now, and nothing of "
        "this one is left in it. Let that one finish; or choose another output; or --overwrite to replace it in its turn"
    )


def write_held(store: Store, hold: Hold, name: str, data: bytes) -> Identity:
    """Write a small file of an output that this run holds. Raises OutputTaken, and then has left nothing under that name."""
    require_hold(store, hold)
    identity = _written(store, hold, name, data)
    settle(store, hold, name, identity)
    return identity


def _written(store: Store, hold: Hold, name: str, data: bytes) -> Identity:
    for _ in range(ATTEMPTS):
        with suppress(AlreadyExists, NotFound):  # NotFound: its part was removed by who takes over
            return store.write(name, data, exclusive=True)
        try:
            there = find_identity(store, name)
        except InputError:  # a link, or another thing that is no file: it gives way, and what it leads to stays as it is
            require_hold(store, hold)
            store.delete(name)
            continue
        require_hold(store, hold)  # then what is there is ours to replace, or another run of this merge has written it
        with suppress(InputChanged, NotFound):
            if there is not None:
                return store.write(name, data, replacing=there)
    raise OutputTaken(f"{store.url}/{name} is written again and again by something else; run again when this is the only one")


def settle(store: Store, hold: Hold, name: str, identity: Identity) -> None:
    """After a write: raise OutputTaken where the output was lost meanwhile, and take back what was written, if it still is that."""
    try:
        require_hold(store, hold)
    except OutputTaken:
        if name not in _of_the_winner(store) and find_identity(store, name) == identity:
            store.delete(name)
        raise


def _of_the_winner(store: Store) -> set[str]:
    """Names under which a loser deletes nothing. A file with the winner's very bytes cannot be told from the winner's own: so
    what it copies it finds or replaces, and once it is finished all is its own. Only config.json goes before, which opens a model."""
    plan, commit = find_document(store, PLAN), find_document(store, COMMIT)
    if plan is None:
        return set()
    finished = commit is not None and mark_of(commit) == mark_of(plan)
    committed = {COMMIT, *commit["files"]} if finished and commit is not None else set()
    return committed | ({INDEX_NAME, *(entry[1] for entry in plan["side_files"])} - {CONFIG_NAME})


def mark_of(document: Mapping[str, Any]) -> str:
    return str(document.get(RUN, ""))


def _is_marked(store: Store, run: str) -> bool:
    plan = find_document(store, PLAN)
    return plan is not None and mark_of(plan) == run


def find_identity(store: Store, name: str) -> Identity | None:
    try:
        return store.identify(name)
    except NotFound:
        return None


def _named(plan: Mapping[str, Any]) -> str:
    recipe = plan.get("recipe") or {}
    return f"a merge by {recipe.get('method', 'another recipe')}, fingerprint {str(plan.get('fingerprint'))[:12]}, run {mark_of(plan)[:8]}"
