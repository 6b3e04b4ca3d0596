"""Which outputs of a template may go: old ones of ours that nothing names. Everything else stays, whatever its name is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.index import INDEX_NAME
from paramdelta_dist.errors import NotFound, OutputOccupied
from paramdelta_dist.output.edits import lost_or_changed
from paramdelta_dist.output.names import CARD, COMMIT, FOLDER, PLAN, PRUNING
from paramdelta_dist.output.remove import is_mark, remove
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, parse_document
from paramdelta_dist.output.series import Series, names_output, read_pointer, read_pointers
from paramdelta_dist.recipe.output_template import INPUTS_DIGITS, depth_of, fields_of
from paramdelta_dist.storage import Identity, Store, open_store
from paramdelta_dist.storage.folders import remove_empty
from paramdelta_dist.threads import Threads

State = Literal["complete", "damaged", "unfinished", "half removed"]
WORK = timedelta(days=1)
"""An unfinished output may still be at work for this long after the day it was begun."""


@dataclass(frozen=True)
class Output:
    """An output of ours, in the folder of a template."""

    name: str
    """Its path in that folder."""
    fingerprint: str
    state: State
    day: date | None
    """It was begun on; None where nothing tells."""
    committed: str
    """When, as the commit says it; empty where there is none."""
    files: tuple[str, ...]
    """Its own files that are there."""
    strangers: tuple[str, ...]
    """Other files in the folder, which stay."""
    size: int
    """Bytes that go with it."""


@dataclass(frozen=True)
class Choice:
    """What becomes of each output, and of what only has the name of one."""

    keep: Mapping[Output, str]
    """And why."""
    prune: tuple[Output, ...]
    pointers: tuple[str, ...]
    """Their names."""
    foreign: tuple[str, ...]
    """Folders with a name that the template makes, in which no merge into this place has left its plan."""


def choose(series: Series, store: Store, *, keep: int) -> Choice:
    """What is kept of the outputs of a template: the `keep` newest whole ones, those that pointers name, and what may still be
    at work. `store` is their folder. Removes nothing. Raises OutputOccupied where a pointer cannot be read."""
    present = store.list() or {}
    pointers = read_pointers(store, present)
    if series.pointer in present and series.pointer not in pointers:
        raise OutputOccupied(
            f"{series.pointer_url} is no pointer to an output, so that nobody knows which one is served, and none is removed; move it "
            "away, and the next merge writes it"
        )
    folders = _folders(series, present)
    with Threads(16) as pool:
        found = list(pool.map(lambda name: _output(series, store, name, folders[name]), folders))
    ours = [output for output in found if output is not None]
    whole = sorted((output for output in ours if output.state == "complete"), key=_age, reverse=True)
    kept: dict[Output, str] = {}
    for output in sorted(ours, key=_age):
        names = [name for name, pointer in pointers.items() if names_output(pointer, output.name)]
        why = f"{names[0]} names it" if names else _reason(output, whole[:keep], keep, series.today())
        if why:
            kept[output] = why
    foreign = tuple(name for name, output in zip(folders, found, strict=True) if output is None)
    return Choice(kept, tuple(output for output in sorted(ours, key=_age) if output not in kept), tuple(pointers), foreign)


def prune(series: Series, store: Store, output: Output, pointers: Collection[str]) -> bool:
    """Remove an output; False where one of the pointers names it by now, and it stays."""

    def needed() -> bool:
        now = [read_pointer(store, name) for name in {*pointers, series.pointer}]
        return any(pointer is not None and names_output(pointer, output.name) for pointer in now)

    url = f"{series.folder}/{output.name}"
    if not remove(open_store(url, series.storage), output.fingerprint, output.files, now=series.now(), needed=needed):
        return False
    recorded = series.recorded(output.fingerprint)
    if recorded is not None and series.output(recorded, output.fingerprint) == url:
        store.delete(series.record(output.fingerprint))
    remove_empty(series.folder, output.name)
    return True


def _age(output: Output) -> tuple[date, str]:
    return output.day or date.max, output.committed


def _reason(output: Output, newest: list[Output], keep: int, today: date) -> str | None:
    """Why an output that no pointer names is kept; None where it is not."""
    if output.state == "half removed":
        return None
    if output.state == "complete":
        return f"one of the {keep} newest" if output in newest else None
    if output.state == "damaged":
        return None if len(newest) == keep and _age(output) < _age(newest[-1]) else "damaged, but newer than some that are kept"
    if output.day is None:
        return "unfinished, and nothing tells since when"
    if today - output.day <= WORK:
        return f"unfinished since {output.day}: a run may be at work on it"
    return None


def _folders(series: Series, present: Mapping[str, Identity]) -> dict[str, dict[str, Identity]]:
    """What lies in each folder that has a name the template makes."""
    depth = depth_of(series.template)
    found: dict[str, dict[str, Identity]] = {}
    for name, identity in present.items():
        parts = name.split("/")
        if len(parts) > depth:
            found.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = identity
    return {name: found[name] for name in sorted(found) if fields_of(series.template, name) is not None}


def _output(series: Series, store: Store, name: str, present: Mapping[str, Identity]) -> Output | None:
    """The output in a folder; None where no merge of ours into this very place is there."""
    plan, commit, mark = (_document(store, f"{name}/{document}") if document in present else None for document in (PLAN, COMMIT, PRUNING))
    mark = mark if is_mark(mark) else None
    try:
        places = {document["recipe"]["output"] for document in (plan, commit) if document is not None}
        places |= {mark["output"]} if mark is not None else set()
        fingerprints = {document["fingerprint"] for document in (plan, commit, mark) if document is not None}
        listed = _listed(plan, commit, mark)
        lost = commit is not None and bool(lost_or_changed(commit, present))
    except (AttributeError, KeyError, TypeError, ValueError):  # documents of ours, they say, that we do not write
        return None
    if places != {f"{store.url.rstrip('/')}/{name}"} or len(fingerprints) != 1:
        return None
    [fingerprint] = fingerprints
    fields = fields_of(series.template, name) or {}
    if fields.get("inputs", fingerprint[:INPUTS_DIGITS]) != fingerprint[:INPUTS_DIGITS]:
        return None
    state: State = "half removed"
    if mark is None:
        state = "unfinished" if commit is None else "damaged" if plan is None or lost else "complete"
    committed = str((commit or {}).get("committed", ""))
    files = tuple(file for file in present if file in listed or file.startswith(f"{FOLDER}/"))
    return Output(
        name,
        fingerprint,
        state,
        _day(fields.get("date", "")) or series.recorded(fingerprint) or _day(committed[:10]),
        committed,
        files,
        tuple(sorted(set(present).difference(files))),
        sum(present[file].size for file in files),
    )


def _listed(plan: Mapping[str, Any] | None, commit: Mapping[str, Any] | None, mark: Mapping[str, Any] | None) -> set[str]:
    """Names of the files that an output of ours says are its own."""
    listed = {*(commit or {}).get("files", ()), *(mark or {}).get("files", ())}
    if plan is not None:
        listed |= {shard["file"] for shard in plan["shards"]} | {entry[1] for entry in plan["side_files"]}
        listed |= set() if commit is not None else {CONFIG_NAME, INDEX_NAME, CARD}
    return listed


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _document(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return parse_document(store.read(name, limit=MAX_DOCUMENT))
    except NotFound:
        return None
