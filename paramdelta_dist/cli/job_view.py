"""The view of a job while it is followed: its lines, its progress, and notes about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from paramdelta_dist.cli import process
from paramdelta_dist.cli.progress import ProgressBar, columns
from paramdelta_dist.cli.words import shown
from paramdelta_dist.driver.observer import Details
from paramdelta_dist.jobs.log_reader import JobEvent, JobProgress
from paramdelta_dist.planning import WorkerMemory


@contextmanager
def job_view(stream: TextIO) -> Iterator[JobView]:
    """A job's log on `stream` as it comes; its progress as a bar where that is a terminal, as its JSON lines elsewhere.

    The view raises NobodyReads when that is stdout and its reader has gone away.
    """

    def show(line: str) -> None:
        print(line, file=stream, flush=True)
        if stream is sys.stdout and (output := process.standard_output()) is not None and output.unread:
            raise NobodyReads

    if not (stream.isatty() and sys.stderr.isatty()):
        yield JobView(show, None)
        return
    with Progress(*columns(), console=Console(file=stream)) as bar:
        yield JobView(lambda line: bar.console.print(escape(line), highlight=False, soft_wrap=True), ProgressBar(bar))


class NobodyReads(Exception):
    """There is nobody left to tell, and telling was all there was to do."""


def notes() -> JobView:
    """What is said about a job, on stderr; for who shows its log in another way, or not at all."""
    return JobView(lambda line: print(line, file=sys.stderr, flush=True), None)


class JobView:
    """What a job writes, and what is said about it. Its text may come from a stranger, and is kept from the terminal's ears."""

    def __init__(self, show: Callable[[str], None], bar: ProgressBar | None) -> None:
        self._show, self._bar = show, bar
        self._progress = JobProgress()

    def line(self, text: str) -> None:
        self._show(shown(text))

    def event(self, event: JobEvent, text: str) -> None:
        if self._bar is None:
            self.line(text)
            return
        self._progress.take(event)
        if event.event == "started":
            memory = None if event.memory is None else _memory(event.memory)
            details = Details(shards=event.shards, bytes_to_read=event.bytes_to_read, memory=memory)
            self._bar.started(event.what or "merging", event.bytes_total or 0, done=event.bytes_done or 0, details=details)
        else:
            self._bar.reached(self._progress.bytes_done)

    def note(self, text: str) -> None:
        print(shown(text), file=sys.stderr, flush=True) if self._bar is None else self.line(text)


def _memory(told: Mapping[str, int]) -> WorkerMemory:
    """The plan that `WorkerMemory.as_document` gives as these values; those that nobody is shown may be missing."""
    tile_size, tiles = told.get("tile_size", 0), told.get("tiles_in_flight", 0)
    return WorkerMemory(told["budget"], told["workers"], told["threads"], tile_size, tiles, told["projected"])
