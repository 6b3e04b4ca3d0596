"""The outputs of one template, such as `nightly/{date}`: which of them is made next, and which is the latest.

In the folder of the outputs lie two kinds of small documents. One record for each fingerprint of recipe and inputs,
`.paramdelta/latest/<fingerprint>.json`, tells on which day that merge was begun: by it an unchanged merge is found done on
any later day, and a stopped one is gone on with, whichever day it is by then. And one pointer, `latest.json`, tells
people and programs which output was finished last; nothing is decided by it. It is written after the commit, whole or not
at all, and a run that finds its merge done puts it right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from blake3 import blake3

from paramdelta_dist.errors import IntegrityError, NotFound, OutputOccupied, StorageError
from paramdelta_dist.output.claim import holds
from paramdelta_dist.output.edits import lost_or_changed
from paramdelta_dist.output.names import COMMIT, FOLDER, PLAN
from paramdelta_dist.output.remove import require_no_removal
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, is_of_somebody_else, parse_document, render_document
from paramdelta_dist.recipe.output_template import expand, folder_of, series_name
from paramdelta_dist.storage import NO_FILE, Identity, StorageConfig, Store, open_store, redact
from paramdelta_dist.threads import Threads

MAX_NOTE = 64 << 10
"""Longest pointer or record, in bytes; real ones have a few hundred."""
POINTER_KEYS = frozenset({"output", "fingerprint", "date", "committed", "commit"})


def utc_now() -> datetime:
    """The time by which days are told: UTC, the same for every machine."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Series:
    """All outputs of one template."""

    template: str
    storage: StorageConfig
    now: Callable[[], datetime] = utc_now

    def today(self) -> date:
        """The day that a merge which is begun now is named by."""
        return self.now().date()

    @property
    def pointer(self) -> str:
        """Name of the pointer in the folder of the outputs."""
        return f"{series_name(self.template)}.json"

    @property
    def folder(self) -> str:
        """URL of the folder in which the outputs lie."""
        return folder_of(self.template).rstrip("/")

    @property
    def pointer_url(self) -> str:
        return f"{self._store.url.rstrip('/')}/{self.pointer}"

    def output(self, day: date, fingerprint: str) -> str:
        return expand(self.template, day=day, fingerprint=fingerprint)

    def find(self, fingerprint: str) -> date:
        """The day of the output that this merge has, finished or not; today where it has none. Writes nothing."""
        return self._day(self.recorded(fingerprint), fingerprint)

    def begin(self, fingerprint: str, *, anew: bool) -> date:
        """The day of the output to make or go on with, on record from now on; with `anew`, today whatever there is.

        Two runs of one merge that begin on both sides of midnight may each make an output; both are whole.
        Raises OutputOccupied where the pointer's name belongs to a file of somebody else: before the work, not after it;
        StorageError where the output is being removed at this moment.
        """
        self._pointed()
        recorded = self.recorded(fingerprint)
        day = self.today() if anew else self._day(recorded, fingerprint)
        require_no_removal(open_store(self.output(day, fingerprint), self.storage), self.now())
        if day != recorded:
            self._store.write(self.record(fingerprint), render_document({"fingerprint": fingerprint, "date": day.isoformat()}))
        return day

    def point_to(self, day: date, fingerprint: str) -> None:
        """Let the pointer name the finished output of `day`; written only where it says something else.

        Raises StorageError where the output is removed at this moment, by `prune` or by somebody else.
        """
        url = self.output(day, fingerprint)
        output = open_store(url, self.storage)
        try:
            data = output.read(COMMIT, limit=MAX_DOCUMENT)
        except NotFound:
            raise _removed(url) from None
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
            try:  # whoever removes it takes the commit first and looks at the pointer then: one of us two sees the other
                output.identify(COMMIT)
            except NotFound:
                raise _removed(url) from None

    def recorded(self, fingerprint: str) -> date | None:
        """The day on record; None where there is no record that can be relied on."""
        record = _note(self._store, self.record(fingerprint)) or {}
        try:
            return date.fromisoformat(record["date"]) if record.get("fingerprint") == fingerprint else None
        except (KeyError, TypeError, ValueError):
            return None

    def record(self, fingerprint: str) -> str:
        """Name, in the folder of the outputs, of what tells on which day a merge was begun."""
        return f"{FOLDER}/{series_name(self.template)}/{fingerprint}.json"

    @property
    def _store(self) -> Store:
        return open_store(folder_of(self.template), self.storage)

    def _day(self, recorded: date | None, fingerprint: str) -> date:
        return recorded if recorded is not None and self._holds(recorded, fingerprint) else self.today()

    def _holds(self, day: date, fingerprint: str) -> bool:
        """Whether the output of that day is this merge's, or what is left of it. It may have been deleted since, as old outputs are."""
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


def _removed(url: str) -> StorageError:
    return StorageError(f"{redact(url)} was removed while this run found it finished; the same command makes it again")


def series_status(store: Store) -> dict[str, Any] | None:
    """What lies in a folder of outputs: its pointers and those that name no whole output, and which outputs are complete, which
    lost files since, which are unfinished; None where there is nothing of that."""
    present = store.list() or {}
    names = _outputs(present)
    latest = read_pointers(store, present)
    if not names and not latest:
        return None
    with Threads(16) as pool:
        states = dict(zip(names, pool.map(lambda name: _state(store, name, present), names), strict=True))
    dangling = {}
    for pointer, content in latest.items():
        named = max((name for name in names if names_output(content, name)), key=len, default=None)
        if named is None or states[named] != "complete":
            dangling[pointer] = "absent" if named is None else states[named]
    return {
        "output": store.url,
        "state": "series",
        "latest": latest,
        "dangling": dangling,
        **{state: [name for name in names if states[name] == state] for state in ("complete", "damaged", "unfinished")},
    }


def read_pointers(store: Store, present: Mapping[str, Identity]) -> dict[str, Mapping[str, Any]]:
    """The pointers in a folder of outputs, by name."""
    names = sorted(name for name, found in present.items() if _may_be_pointer(name) and found != NO_FILE and found.size <= MAX_NOTE)
    with Threads(16) as pool:
        found = list(pool.map(lambda name: read_pointer(store, name), names))
    return {name: pointer for name, pointer in zip(names, found, strict=True) if pointer is not None}


def read_pointer(store: Store, name: str) -> Mapping[str, Any] | None:
    """A pointer; None where there is none, or a file that is something else."""
    try:
        return _pointer(store, name)
    except NotFound:
        return None


def names_output(pointer: Mapping[str, Any], name: str) -> bool:
    """Whether a pointer names the output that lies at `name` in its folder. Where the folder was when the pointer was written,
    under another mount perhaps, makes no difference."""
    return bool(pointer["output"].endswith(f"/{name}"))


def _outputs(present: Mapping[str, Identity]) -> list[str]:
    return sorted({name.removesuffix(f"/{end}") for end in (PLAN, COMMIT) for name in present if name.endswith(f"/{end}")})


def _state(store: Store, name: str, present: Mapping[str, Identity]) -> str:
    if f"{name}/{COMMIT}" not in present:
        return "unfinished"
    commit = _note(store, f"{name}/{COMMIT}", limit=MAX_DOCUMENT)
    if commit is None or f"{name}/{PLAN}" not in present or lost_or_changed(commit, present, f"{name}/"):
        return "damaged"
    return "complete"


def _may_be_pointer(name: str) -> bool:
    return "/" not in name and "latest" in name and name.endswith(".json")


def _pointer(store: Store, name: str) -> Mapping[str, Any] | None:
    """A pointer; None for a file that is something else. Raises NotFound."""
    return _parsed_pointer(store.read(name, limit=MAX_NOTE))


def _parsed_pointer(data: bytes) -> Mapping[str, Any] | None:
    pointer = parse_document(data)
    return pointer if pointer is not None and pointer.keys() == POINTER_KEYS else None


def _note(store: Store, name: str, *, limit: int = MAX_NOTE) -> dict[str, Any] | None:
    try:
        return parse_document(store.read(name, limit=limit))
    except NotFound:
        return None
