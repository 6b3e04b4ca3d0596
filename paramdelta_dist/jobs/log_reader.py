"""A driver's log, understood: lines for people, JSON lines of progress, and the document at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

LONGEST_DOCUMENT = 1 << 22
"""Characters of a result that are held back while it comes; what is longer is none."""


@dataclass(frozen=True)
class JobEvent:
    """A JSON line of a driver's progress: its fields, as far as they are known here. Those that it lacks are None."""

    event: str
    """Its kind: started, progress, finished."""
    time: float | None = None
    """When it was written, in seconds since 1970."""
    what: str | None = None
    bytes_total: int | None = None
    bytes_done: int | None = None
    bytes_per_second: int | None = None
    seconds_left: float | None = None
    workers: int | None = None
    retries: int | None = None
    shards: int | None = None
    bytes_to_read: int | None = None
    memory: Mapping[str, int] | None = None
    """The plan of a worker's memory, as a document."""
    size: int | None = None
    """Bytes of a finished file."""
    worker: str | None = None
    """The worker that made it."""


_FIELDS = frozenset(field.name for field in fields(JobEvent))


class Listener(Protocol):
    def line(self, text: str) -> None:
        """A line that is not ours, without its end."""
        ...

    def event(self, event: JobEvent, text: str) -> None:
        """A JSON line of ours."""
        ...

    def note(self, text: str) -> None:
        """Something about the job, or the way to it, that is not in its log."""
        ...


class Silent:
    """Listens to nothing."""

    def line(self, text: str) -> None: ...

    def event(self, event: JobEvent, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class JobProgress:
    """The progress of a driver, by its own lines."""

    what: str | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    bytes_per_second: int | None = None
    seconds_left: float | None = None
    shards_done: int = 0
    shards_total: int | None = None
    retries: int | None = None
    workers: int | None = None
    told: float | None = None
    """When the last line was written, in seconds since 1970."""
    _seen: set[str] = field(default_factory=set)
    _finished: int = 0
    """Bytes of finished shards and of those that were there before."""

    def take(self, event: JobEvent) -> None:
        self.told = self.told if event.time is None else event.time
        if event.event == "started":
            self.what, self.shards_total = event.what, event.shards
            self.shards_done, self.retries, self.workers = 0, None, None
            self._finished = event.bytes_done or 0
        self.bytes_done = self.bytes_done if event.bytes_done is None else event.bytes_done
        self.bytes_total = self.bytes_total if event.bytes_total is None else event.bytes_total
        self.retries = self.retries if event.retries is None else event.retries
        self.workers = self.workers if event.workers is None else event.workers
        if event.event == "progress":  # where nothing can be said of them, it says so
            self.bytes_per_second, self.seconds_left = event.bytes_per_second, event.seconds_left
        if event.event == "finished":  # between two lines of progress
            self.shards_done += 1
            self._seen.add(str(event.worker))
            self._finished += event.size or 0
            self.bytes_done = max(self.bytes_done, self._finished)

    def as_document(self) -> dict[str, Any]:
        return {
            "bytes": {"done": self.bytes_done, "total": self.bytes_total},
            "shards": {"finished": self.shards_done, "total": self.shards_total},
            "bytes_per_second": self.bytes_per_second,
            "seconds_left": self.seconds_left,
            "workers": len(self._seen) or None if self.workers is None else self.workers,
            "retries": self.retries,
        }


class LogReader:
    """Takes a log in pieces, cut anywhere."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.progress = JobProgress()
        self.document: dict[str, Any] | None = None
        """The document that `merge`, `verify` or `analyze --json` printed at its end: the result, or `{"error": …}`."""
        self._listener = listener or Silent()
        self._rest = ""
        self._held: list[str] = []
        self._length = 0

    def feed(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)

    def close(self) -> None:
        """There is no more."""
        if self._rest:
            self._take(self._rest)
            self._rest = ""
        self._give_up()

    def _take(self, line: str) -> None:
        if line == "{" and not self._held:
            self._held, self._length = [line], 1
        elif self._held:
            self._held.append(line)
            self._length += len(line)
            if line == "}":
                self._end_document()
            elif self._length > LONGEST_DOCUMENT:
                self._give_up()
        elif (event := _event(line)) is not None:
            self.progress.take(event)
            self._listener.event(event, line)
        else:
            self._listener.line(line)

    def _end_document(self) -> None:
        document = _json("\n".join(self._held))
        if document is None or not {"state", "error", "ok", "deltas"} & set(document):
            self._give_up()
            return
        self.document, self._held = document, []

    def _give_up(self) -> None:
        """Pass on the lines that were held back: they are no document."""
        held, self._held = self._held, []
        for line in held:
            self._listener.line(line)


def _event(line: str) -> JobEvent | None:
    if not line.startswith('{"event": "'):
        return None
    found = _json(line)
    if found is None or not isinstance(found.get("event"), str):
        return None
    return JobEvent(**{name: value for name, value in found.items() if name in _FIELDS})


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
