"""Following a job to its end, over connections that break: no line twice, none lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

from paramdelta_dist.errors import EngineError, NotFound
from paramdelta_dist.jobs.job import Cluster, Job, Unreachable

SILENT_PIECES = 4
"""After so many a connection is given up for a new one: it may be open on this side only."""
LOG_ATTEMPTS = 5
"""Times that the last part of the log of a job that is over is asked for: the node that has it may be gone for good."""


@dataclass(frozen=True)
class Patience:
    """The seconds that are waited for a cluster which does not answer."""

    give_up: float = 300.0
    """After so many, following it ends; the job runs on."""
    first_pause: float = 0.5
    """Between the first two attempts to connect again; between further ones it is twice as much each time."""
    longest_pause: float = 10.0


PATIENCE = Patience()


def follow(cluster: Cluster, job_id: str, show: Callable[[str], None], note: Callable[[str], None], patience: Patience = PATIENCE) -> Job:
    """Show the job's log from its beginning, as it is written, and return the job when it is over.

    A log's connection can end at any time, as if the log had ended, and each new one starts from the beginning: what was
    shown is counted, and skipped. Raises EngineError when the cluster does not answer for long or no longer knows the job.
    """
    log = _Log(show)
    lost: float | None = None
    """Since when nothing has answered, on the monotonic clock."""
    pause = patience.first_pause
    while True:
        try:
            silent = 0
            for text in log.replay(cluster.tail(job_id)):
                silent = 0 if text else silent + 1
                job = None if text else cluster.job(job_id)
                if job is not None and job.state == "pending" and silent == 1:
                    note(f"the cluster has not started job {job_id} yet")
                if lost is not None:
                    note("connected again")
                    lost = None
                pause = patience.first_pause
                if (job is not None and job.over) or silent == SILENT_PIECES:
                    break
            job = cluster.job(job_id)
            lost = None
            if job.over:
                _show_rest(cluster, job_id, log, note, patience.first_pause)
                return job
        except Unreachable as error:
            if lost is None:
                lost = time.monotonic()
                note(f"{error}; trying again")
            if time.monotonic() - lost > patience.give_up:
                raise EngineError(
                    f"{error} for {patience.give_up:.0f} s; the job {job_id} was left as it is. Follow it again when the cluster answers"
                ) from error
        except NotFound as error:
            raise EngineError(
                f"the cluster at {cluster.url} no longer knows job {job_id}: it was started anew. Submit again; what is finished is kept"
            ) from error
        time.sleep(pause)
        pause = min(2 * pause, patience.longest_pause)


class _Log:
    """Shows what is new of a log that is given from its beginning again and again."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown = 0
        """Characters."""

    def replay(self, pieces: Generator[str, None, None]) -> Generator[str, None, None]:
        end = 0
        with closing(pieces):
            for text in pieces:
                self.take(text, end)
                end += len(text)
                yield text

    def take(self, text: str, start: int) -> None:
        """`text` is in the log from `start` on."""
        new = text[max(0, self._shown - start) :]
        if new:
            self._show(new)
            self._shown = start + len(text)


def _show_rest(cluster: Cluster, job_id: str, log: _Log, note: Callable[[str], None], pause: float) -> None:
    for attempt in range(LOG_ATTEMPTS):
        time.sleep(pause * attempt)
        try:
            log.take(cluster.log(job_id), 0)
            return
        except (Unreachable, NotFound) as error:
            last = error
    note(f"the job is over, and the end of its log cannot be read ({last})")
