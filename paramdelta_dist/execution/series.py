"""The outputs of one template, such as `nightly/{date}`: which of them is made next, and which is the latest.

In the folder of the outputs lie two kinds of small documents. One record for each fingerprint of recipe and inputs,
`.paramdelta/latest/<fingerprint>.json`, tells on which day that merge was begun: by it an unchanged merge is found done on
any later day, and a stopped one is gone on with, whichever day it is by then. And one pointer, `latest.json`, tells
people and programs which output was finished last; nothing is decided by it. It is written after the commit, whole or not
at all, and a run that finds its merge done puts it right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any

from blake3 import blake3

from paramdelta_dist.errors import IntegrityError, NotFound, OutputOccupied
from paramdelta_dist.execution.documents import MAX_DOCUMENT, is_of_somebody_else, parse_document, render_document
from paramdelta_dist.execution.holding import COMMIT, PLAN
from paramdelta_dist.execution.output import holds
from paramdelta_dist.execution.receipts import FOLDER
from paramdelta_dist.storage import NO_FILE, StorageConfig, Store, open_store, redact
from paramdelta_dist.template import expand, folder_of, series_name
from paramdelta_dist.threads import Threads

MAX_NOTE = 64 << 10
"""Longest pointer or record, in bytes; real ones have a few hundred."""
POINTER_KEYS = frozenset({"output", "fingerprint", "date", "committed", "commit"})


def today() -> date:
    """The day a merge that is begun now is named by: UTC, the same for every machine."""
    return datetime.now(timezone.utc).date()


@dataclass(frozen=True)
class Series:
    """All outputs of one template."""

    template: str
    storage: StorageConfig

    @property
    def pointer(self) -> str:
        """Name of the pointer in the folder of the outputs."""
        return f"{series_name(self.template)}.json"

    @property
    def pointer_url(self) -> str:
        return f"{self._store.url.rstrip('/')}/{self.pointer}"

    def output(self, day: date, fingerprint: str) -> str:
        return expand(self.template, day=day, fingerprint=fingerprint)

    def find(self, fingerprint: str) -> date:
        """The day of the output that this merge has, finished or not; today where it has none. Writes nothing."""
        return self._day(self._recorded(fingerprint), fingerprint)

    def begin(self, fingerprint: str, *, anew: bool) -> date:
        """The day of the output to make or go on with, on record from now on; with `anew`, today whatever there is.

        Two runs of one merge that begin on both sides of midnight may each make an output; both are whole.
        Raises OutputOccupied where the pointer's name belongs to a file of somebody else: before the work, not after it.
        """
        self._pointed()
        recorded = self._recorded(fingerprint)
        day = today() if anew else self._day(recorded, fingerprint)
        if day != recorded:
            self._store.write(self._record(fingerprint), render_document({"fingerprint": fingerprint, "date": day.isoformat()}))
        return day

    def point(self, day: date, fingerprint: str) -> None:
        """Let the pointer name the finished output of `day`; written only where it says something else."""
        url = self.output(day, fingerprint)
        data = open_store(url, self.storage).read(COMMIT, limit=MAX_DOCUMENT)
        commit = parse_document(data)
        if commit is None:
            raise IntegrityError(f"{redact(url)}/{COMMIT} is not as it was written; run the same merge again")
        pointer = {
            "output": redact(url),
            "fingerprint": commit["fingerprint"],
            "date": day.isoformat(),
            "committed": commit["committed"],
            "commit": blake3(data).hexdigest(),
        }
        if self._pointed() != pointer:
            self._store.write(self.pointer, render_document(pointer))

    @property
    def _store(self) -> Store:
        return open_store(folder_of(self.template), self.storage)

    def _record(self, fingerprint: str) -> str:
        return f"{FOLDER}/{series_name(self.template)}/{fingerprint}.json"

    def _recorded(self, fingerprint: str) -> date | None:
        """The day on record; None where there is no record that can be relied on."""
        record = _note(self._store, self._record(fingerprint)) or {}
        try:
            return date.fromisoformat(record["date"]) if record.get("fingerprint") == fingerprint else None
        except (KeyError, TypeError, ValueError):
            return None

    def _day(self, recorded: date | None, fingerprint: str) -> date:
        return recorded if recorded is not None and self._holds(recorded, fingerprint) else today()

    def _holds(self, day: date, fingerprint: str) -> bool:
        """Whether the output of that day is this merge's. It may have been deleted since, as old outputs are."""
        return holds(open_store(self.output(day, fingerprint), self.storage), fingerprint)

    def _pointed(self) -> Mapping[str, Any] | None:
        """What the pointer says; None where there is none, or what a power cut has left of one."""
        try:
            data = self._store.read(self.pointer, limit=MAX_NOTE)
        except NotFound:
            return None
        pointer = _parsed_pointer(data)
        if pointer is None and is_of_somebody_else(data, "output"):
            raise OutputOccupied(
                f"{self.pointer_url} is no pointer to an output, though it has the name of one; move it away, or choose another output"
            )
        return pointer


def series_status(store: Store) -> dict[str, Any] | None:
    """What lies in a folder of outputs: its pointers, which outputs are complete and which not; None where there are neither."""
    present = store.list() or {}
    outputs = sorted(name.removesuffix(f"/{PLAN}") for name in present if name.endswith(f"/{PLAN}"))
    complete = [name for name in outputs if f"{name}/{COMMIT}" in present]
    names = sorted(name for name, found in present.items() if _may_be_pointer(name) and found != NO_FILE and found.size <= MAX_NOTE)
    with Threads(16) as pool:
        found = list(pool.map(lambda name: _pointer(store, name), names))
    latest = {name: pointer for name, pointer in zip(names, found, strict=True) if pointer is not None}
    if not outputs and not latest:
        return None
    return {
        "output": store.url,
        "state": "series",
        "latest": latest,
        "complete": complete,
        "unfinished": [name for name in outputs if name not in set(complete)],
    }


def _may_be_pointer(name: str) -> bool:
    return "/" not in name and "latest" in name and name.endswith(".json")


def _pointer(store: Store, name: str) -> Mapping[str, Any] | None:
    """A pointer; None for a file that is something else. Raises NotFound."""
    return _parsed_pointer(store.read(name, limit=MAX_NOTE))


def _parsed_pointer(data: bytes) -> Mapping[str, Any] | None:
    pointer = parse_document(data)
    return pointer if pointer is not None and pointer.keys() == POINTER_KEYS else None


def _note(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return parse_document(store.read(name, limit=MAX_NOTE))
    except NotFound:
        return None
