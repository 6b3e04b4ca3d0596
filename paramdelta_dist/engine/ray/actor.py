"""The actor that does a driver's units on the machine Ray placed it on."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, NamedTuple

import ray

from paramdelta_dist import stopping
from paramdelta_dist._version import __version__
from paramdelta_dist.engine.executor import Function, Unit
from paramdelta_dist.engine.metrics import METER, READ_BYTES, WRITTEN_BYTES, Count
from paramdelta_dist.engine.ray.metrics import Publisher
from paramdelta_dist.engine.worker_log import WorkerLog
from paramdelta_dist.errors import Interrupted, ParamDeltaError

log = logging.getLogger(__name__)


class AttemptProgress(NamedTuple):
    """The progress that a worker reports when it is asked."""

    ticket: int
    """Number of the attempt that was begun last."""
    done: int
    """Bytes of the unit's size that are done."""
    moved: int
    """Bytes that were read and written for it."""
    seconds: float
    """Seconds since it was begun."""
    read: int
    """Bytes of inputs that were read for it."""
    warnings: list[str]
    """Warnings that were logged since the last report."""


class ShardWorker:
    """Does units of one job, one at a time. Their tickets rise.

    It travels by name, so that a node runs what is installed there. A driver of another version can create it, ask for `hello`
    and see that it must not be used: this must stay so.
    """

    def __init__(self, version: str, work: bytes) -> None:
        """`work` is the pickled function and job, which are looked at only if the driver's `version` is ours."""
        self._node = ray.util.get_node_ip_address()
        self._work: tuple[Function[Any], Any] | None = ray.cloudpickle.loads(work) if version == __version__ else None
        self._stop, self._busy = threading.Event(), False
        self._begins = threading.Lock()
        self._ticket, self._began, self._bytes = 0, 0.0, 0
        self._before = METER.totals()
        """Totals of the meter when the last unit began."""
        self._unwanted: set[int] = set()
        self._metrics, self._log = Publisher(METER), WorkerLog(self._node)
        self._log.install()

    @ray.method(concurrency_group="control")
    def hello(self) -> tuple[str, str, str]:
        """The node it is on by id and address, and the version of this package there: plain, since whoever asks may be of another."""
        return str(ray.get_runtime_context().get_node_id()), self._node, __version__

    @ray.method(concurrency_group="control")
    def progress(self) -> AttemptProgress:
        self._metrics.publish()
        with self._begins:
            seconds = time.monotonic() - self._began
            totals = METER.totals()
            read, written = (round(totals[of] - self._before[of]) for of in (Count(READ_BYTES), Count(WRITTEN_BYTES)))
            return AttemptProgress(self._ticket, self._bytes, read + written, seconds, read, self._log.warnings())

    @ray.method(concurrency_group="control")
    def withdraw(self, ticket: int) -> bool:
        """Whether a unit has not begun, and now never will."""
        with self._begins:
            waits = ticket > self._ticket
            if waits:
                self._unwanted.add(ticket)
            return waits

    @ray.method(concurrency_group="control")
    def cancel(self, ticket: int) -> None:
        self._unwanted.add(ticket)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """End what is being made. Returns when nothing is under way, or nothing answers any more."""
        self._stop.set()
        stopping.stop()
        while self._busy and stopping.time_left():
            time.sleep(0.05)

    def run(self, ticket: int, attempt: int, unit: Unit) -> Any:
        """The result, or the error of ours that prevented it; a bug raises."""
        with self._begins:
            self._busy = True
            self._ticket, self._began, self._bytes, self._before = ticket, time.monotonic(), 0, METER.totals()
        self._log.doing(unit.file, attempt)

        def advance(size: int) -> None:
            self._bytes += size

        def cancelled() -> bool:
            return self._stop.is_set() or ticket in self._unwanted

        try:
            if cancelled():
                raise Interrupted("stopped")
            assert self._work is not None, "a driver of another version asks for nothing but hello"
            function, job = self._work
            result = function(job, unit, advance=advance, cancelled=cancelled)
            log.info("done, %d bytes in %.1f s", unit.size, time.monotonic() - self._began)
            return result
        except ParamDeltaError as error:
            log.info("ended: %s", error)
            return error
        finally:
            self._unwanted.discard(ticket)
            self._busy = False
            self._metrics.publish()
            self._log.doing()


ShardActor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})(ShardWorker)  # type: ignore[call-overload]
"""The class above as an actor, none of whose failures Ray makes up for."""
