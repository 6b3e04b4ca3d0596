"""Progress of a run: a bar on a terminal, JSON lines in a log."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from paramdelta_dist.driver.observer import Details, uncounted
from paramdelta_dist.redaction import redacted_values
from paramdelta_dist.sizes import format_size

if TYPE_CHECKING:
    from paramdelta_dist.analysis.survey import ShardSurvey
    from paramdelta_dist.api import Observer
    from paramdelta_dist.engine.executor import Counts
    from paramdelta_dist.output.receipts import Receipt
    from paramdelta_dist.shards.verify_file import FileVerdict
from paramdelta_dist.cli.words import memory_line, plural

LINE_SECONDS = 10.0
"""Between two progress lines in a log."""

PACE_SECONDS = 60.0
"""Over how long a rate is taken, and"""

SHORTEST_PACE = 1.0
"""after how many seconds of work there is one."""


def columns() -> tuple[ProgressColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()


@contextmanager
def progress() -> Iterator[Observer]:
    """A bar where stderr is a terminal, JSON lines elsewhere.

    Whatever else prints meanwhile goes to stderr, a line of it: stdout is for the result alone, and Ray tells of dead nodes
    with the state of their raylet.
    """
    with redirect_stdout(_FirstLines()):
        if not sys.stderr.isatty():
            yield ProgressLines()
            return
        with Progress(*columns(), console=Console(stderr=True), redirect_stdout=False) as bar:
            yield ProgressBar(bar)


class _FirstLines(io.TextIOBase):
    """Passes the first line of each text on to stderr."""

    def write(self, text: str) -> int:
        sys.stderr.write(text if text == "\n" else text.partition("\n")[0])
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


class ProgressBar:
    """Bytes made, rate and time left, on the last line of the terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def started(self, what: str, total: int, *, done: int = 0, details: Details, counts: Callable[[], Counts | None] = uncounted) -> None:
        lines = []
        if details.bytes_to_read is not None and details.shards is not None:
            shards = plural(details.shards, "shard")
            lines.append(f"{format_size(details.bytes_to_read)} to read, {format_size(total)} to write in {shards}")
        if details.memory is not None:
            lines.append(memory_line(details.memory.as_document()))
        if done:
            lines.append(f"{format_size(done)} are in place from an earlier run")
        for line in lines:
            self._bar.console.print(line, highlight=False)
        self._task = self._bar.add_task(what, total=total, completed=done)

    def advanced(self, size: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, size)

    def reached(self, done: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None: ...


class _Mark(NamedTuple):
    """Where work was at some moment."""

    seconds: float
    """That it had taken, silences cut."""
    done: int
    """Bytes that were there."""


class Pace:
    """How fast bytes are made now: over the last minute in which some were.

    A silence counts as `LINE_SECONDS` at most. Before the first byte, and whenever a cluster gives no worker for a while, nothing is
    made, which says nothing of how fast it goes with the workers there are.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        """When it was heard of last, on the caller's clock."""
        self._worked = 0.0
        """Seconds since the first byte, silences cut."""
        self._now = _Mark(0.0, 0)
        self._marks: deque[_Mark] = deque()
        """Those of the last minute, the first of them a little before it."""

    def reached(self, done: int, now: float) -> None:
        """`done` bytes are there."""
        self._worked += 0.0 if self._last is None else min(now - self._last, LINE_SECONDS)
        self._last = now
        if not self._marks or self._worked - self._marks[-1].seconds >= PACE_SECONDS / 60:
            self._marks.append(_Mark(self._worked, done))
        while len(self._marks) > 2 and self._worked - self._marks[1].seconds >= PACE_SECONDS:
            self._marks.popleft()
        self._now = _Mark(self._worked, done)

    @property
    def rate(self) -> float | None:
        """Bytes a second; None where nothing can be said yet."""
        if not self._marks:
            return None
        first, now = self._marks[0], self._now
        seconds = now.seconds - first.seconds
        return max(0.0, (now.done - first.done) / seconds) if seconds >= SHORTEST_PACE else None


class ProgressLines:
    """One JSON object a line on stderr: at the start, every ten seconds, and for each finished shard."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, line_seconds: float = LINE_SECONDS) -> None:
        """`line_seconds` are between two lines of progress, by the `clock`."""
        self._lock, self._clock, self._line_seconds = threading.Lock(), clock, line_seconds
        self._total = self._done = 0
        self._counts: Callable[[], Counts | None] = uncounted
        self._told = clock()
        self._pace = Pace()

    def started(self, what: str, total: int, *, done: int = 0, details: Details, counts: Callable[[], Counts | None] = uncounted) -> None:
        self._counts = counts
        self._total, self._done = total, done
        self._told, self._pace = self._clock(), Pace()
        self._tell("started", what=what, bytes_total=total, bytes_done=done, **details.as_document())

    def advanced(self, size: int) -> None:
        with self._lock:
            self._done += size
            now, done = self._clock(), self._done
            if size:
                self._pace.reached(done, now)
            due = now - self._told >= self._line_seconds
            if due:
                self._told = now
            rate = self._pace.rate if due else None
        if due:
            counts = self._counts()
            if counts is not None and counts.workers == 0:  # how long that lasts is not known
                rate = None
            speed = None if rate is None else round(rate)
            left = round((self._total - done) / rate, 1) if rate else None
            told: dict[str, Any] = {"bytes_total": self._total, "bytes_done": done, "bytes_per_second": speed, "seconds_left": left}
            self._tell("progress", **told, **({} if counts is None else counts._asdict()))

    def finished(self, result: Receipt | FileVerdict | ShardSurvey) -> None:
        told = ("file", "size", "seconds", "worker", "problems")
        self._tell("finished", **{key: getattr(result, key) for key in told if hasattr(result, key)})

    @staticmethod
    def _tell(event: str, **fields: Any) -> None:
        told = {"event": event, "time": round(time.time(), 3), **redacted_values(fields)}
        print(json.dumps(told), file=sys.stderr, flush=True)
