"""A driver's log, understood: lines for people, JSON lines of progress, and the document at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

LONGEST_DOCUMENT = 1 << 22
"""Characters of a result that are held back while it comes; what is longer is none."""


class Listener(Protocol):
    def line(self, text: str) -> None:
        """A line that is not ours, without its end."""
        ...

    def event(self, fields: dict[str, Any], text: str) -> None:
        """A JSON line of ours."""
        ...

    def note(self, text: str) -> None:
        """Something about the job, or the way to it, that is not in its log."""
        ...


class Silent:
    """Listens to nothing."""

    def line(self, text: str) -> None: ...

    def event(self, fields: dict[str, Any], text: str) -> None: ...

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

    def take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.told = event.get("time", self.told)
        if kind == "started":
            self.what, self.shards_total = event.get("what"), event.get("shards")
            self.shards_done, self.retries, self.workers = 0, None, None
            self._finished = event.get("bytes_done", 0)
        for name in ("bytes_done", "bytes_total", "bytes_per_second", "seconds_left", "retries", "workers"):
            if name in event:
                setattr(self, name, event[name])
        if kind == "finished":  # between two lines of progress
            self.shards_done += 1
            self._seen.add(str(event.get("worker")))
            self._finished += event.get("size", 0)
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


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"event": "'):
        return None
    fields = _json(line)
    return fields if fields is not None and isinstance(fields.get("event"), str) else None


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
