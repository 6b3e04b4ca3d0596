"""The Ray executor: long-lived actors, one a slot, and a driver that owns every retry.

Units and results are all that travels; weights go from storage to worker to storage. A lost worker or node costs the
unit it was making and nothing else: it is queued again, and a file's bytes do not depend on who makes it. Who does what
and when is decided by the schedule; here it is carried out.

As many workers are asked for as there are units left, and no more than the caller allows. Those that the cluster has no
room for wait, which tells its autoscaler how much to add; a node that joins is used at once.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from paramdelta_dist import stopping
from paramdelta_dist._version import __version__
from paramdelta_dist.engine.executor import Counts, Function, J, R, U
from paramdelta_dist.engine.metrics import RETRIES
from paramdelta_dist.engine.ray.actor import AttemptProgress, ShardActor
from paramdelta_dist.engine.ray.cluster import CONNECT_SECONDS, SHUTDOWN_SECONDS, Share, diagnose, join, leaving_nodes
from paramdelta_dist.engine.ray.metrics import Publisher
from paramdelta_dist.engine.run_stats import RunStats
from paramdelta_dist.engine.schedule import CHECK_INTERVAL_SECONDS, TIMES, Attempt, Order, Schedule, Times, Worker
from paramdelta_dist.errors import EngineError, ParamDeltaError, UsageError
from paramdelta_dist.sizes import format_seconds
from paramdelta_dist.storage.retry import DEFAULT_RETRIES

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 900.0
"""Seconds that the driver waits while it has no worker at all, if it is not told; a cluster may have to start machines first."""
WARN_SECONDS = 30.0
"""Seconds that it waits until it says what it waits for."""
POLL_SECONDS = 0.5
"""Seconds between two questions to a worker for its progress."""
POLLS_PER_SECOND = 200.0
"""Most questions for progress in a second, to all workers together."""
ASKED_AT_ONCE = 50
"""Workers asked for before events are looked at again: asking takes Ray a millisecond and a half."""
MOST_WAITING = 1000
"""Workers that may wait for room in the cluster: a hundred machines' worth, which costs Ray next to nothing."""


_MISSING = re.compile(r"No module named '(\w+)")


@dataclass(eq=False)
class _Slot(Worker):
    """A worker as the driver sees it: for the schedule, once it runs, and the actor behind it."""

    actor: Any = None
    gone: bool = False
    """Nothing it answers counts any more."""
    asking: bool = False
    """Whether a question for its progress is unanswered."""
    asked: float = 0.0
    """When it was asked last, on the monotonic clock."""


class _Event(NamedTuple):
    """An answer that has come, or the error in its place."""

    slot: _Slot
    handle: Callable[[Any], None]
    """Handles the answer."""
    answer: futures.Future[Any]


class _ActorPool:
    """The actors of one run. What they answer comes as events, each of which is handled by whoever asked."""

    def __init__(self, schedule: Schedule, start: Callable[[], Any], limit: int, python: str | None) -> None:
        self._python = python
        self.working: list[_Slot] = []
        self.waiting: list[_Slot] = []
        """Those that Ray has not placed yet, or that are starting."""
        self.largest = self.lost = 0
        """Workers that there were at the same time, and that ended by themselves."""
        self._schedule, self._start_actor, self._limit = schedule, start, limit
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._running: dict[Attempt, futures.Future[Any]] = {}
        self._failed_starts = 0

    def adjust(self) -> None:
        """Ask for workers that units are left for, and no longer for those that none are left for. Let leaving ones go when idle."""
        staying = 0
        for slot in self.working[:]:
            if slot.leaves is None:
                staying += 1
            elif not slot.attempts:
                self._schedule.lost(slot, "its node is about to go")
                self._dismiss(slot)
        wanted = min(self._limit, self._schedule.unfinished, staying + MOST_WAITING) - staying
        for _ in range(min(wanted - len(self.waiting), ASKED_AT_ONCE)):
            slot = _Slot(actor=self._start_actor())
            self.waiting.append(slot)
            self._expect(slot, slot.actor.hello.remote(), partial(self._came, slot))
        while len(self.waiting) > max(wanted, 0):
            self._dismiss(self.waiting[-1])

    def carry_out(self, order: Order, attempt: Attempt) -> None:
        slot = attempt.worker
        assert isinstance(slot, _Slot)
        match order:
            case Order.START:
                reference = slot.actor.run.remote(attempt.ticket, attempt.number, attempt.task.unit)
                self._running[attempt] = self._expect(slot, reference, partial(self._ended, attempt))
            case Order.WITHDRAW:
                self._expect(slot, slot.actor.withdraw.remote(attempt.ticket), partial(self._withdrawn, attempt))
            case Order.CANCEL:
                slot.actor.cancel.remote(attempt.ticket)
            case Order.KILL:
                ray.kill(slot.actor)

    def ask_progress(self) -> None:
        now = time.monotonic()
        interval = max(POLL_SECONDS, len(self.working) / POLLS_PER_SECOND)
        for slot in self.working:
            if slot.attempts and not slot.asking and now - slot.asked >= interval:
                slot.asked, slot.asking = now, True
                self._expect(slot, slot.actor.progress.remote(), partial(self._progressed, slot))

    def notice_leaving(self) -> None:
        """Tell the schedule which workers are on nodes that are about to go."""
        leaving = leaving_nodes()
        for slot in self.working:
            when = leaving.get(slot.node)
            if when is not None and slot.leaves is None:
                log.warning("node %s is about to go; its worker is given nothing more", slot.address)
            if when is not None:
                self._schedule.leaving(slot, when)

    def handle_events(self, timeout: float) -> None:
        """Handle what has come, waiting up to `timeout` seconds for the first."""
        for slot, handle, future in self._arrived(timeout):
            try:
                answer = future.result()
            except RayTaskError as error:  # a bug, unless our package is not there
                self._require_package(error)
                raise
            except RayError as error:
                self._lose(slot, error)
            else:
                if not slot.gone:
                    handle(answer)

    def end(self, seconds: float) -> None:
        """Let workers abandon what they are making, then end them; once this process is told to stop, whom nothing answers is ended
        at once, and `seconds` later at the latest."""
        stopped = [slot.actor.stop.remote().future() for slot in self.working]
        running, end = set(self._running.values()), time.monotonic() + seconds
        while running and time.monotonic() < end and not (stopping.requested() and all(each.done() for each in stopped)):
            stopping.alive()
            _, running = futures.wait(running, timeout=POLL_SECONDS)
        for slot in self.waiting + self.working:
            ray.kill(slot.actor)

    def _expect(self, slot: _Slot, reference: Any, handle: Callable[[Any], None]) -> futures.Future[Any]:
        future: futures.Future[Any] = reference.future()
        future.add_done_callback(lambda done: self._events.put(_Event(slot, handle, done)))
        return future

    def _arrived(self, timeout: float) -> Iterator[_Event]:
        with suppress(Empty):
            yield self._events.get(timeout=timeout)
            for _ in range(self._events.qsize()):
                yield self._events.get_nowait()

    def _came(self, slot: _Slot, answer: tuple[str, str, str]) -> None:
        slot.node, slot.address, version = answer
        if version != __version__:
            raise UsageError(
                f"paramdelta-dist on node {slot.address} is {version}, this driver's is {__version__}: install the same version on "
                "every node, or send this one along (submit --ship package)"
            )
        self._failed_starts = 0
        self.waiting.remove(slot)
        self.working.append(slot)
        self.largest = max(self.largest, len(self.working))
        log.info("a worker runs on %s; %d in all", slot.address, len(self.working))
        self._schedule.joined(slot)

    def _progressed(self, slot: _Slot, told: AttemptProgress) -> None:
        slot.asking = False
        for warning in told.warnings:
            log.warning("%s", warning)
        self._schedule.progressed(slot, told.ticket, told.done, told.moved, told.seconds, now=time.monotonic(), read=told.read)

    def _withdrawn(self, attempt: Attempt, taken_back: bool) -> None:
        if taken_back:
            self._running.pop(attempt, None)
            self._schedule.withdrawn(attempt)

    def _ended(self, attempt: Attempt, result: Any) -> None:
        self._running.pop(attempt, None)
        if isinstance(result, ParamDeltaError):
            self._schedule.failed(attempt, result, time.monotonic())
        else:
            self._schedule.finished(attempt, result, time.monotonic())

    def _dismiss(self, slot: _Slot) -> None:
        """End a worker that has nothing in hand."""
        slot.gone = True
        (self.waiting if slot in self.waiting else self.working).remove(slot)
        ray.kill(slot.actor)

    def _lose(self, slot: _Slot, error: RayError) -> None:
        if slot.gone:
            return
        for attempt in slot.attempts:
            self._running.pop(attempt, None)
        starting = slot in self.waiting
        self._dismiss(slot)  # it may only be out of reach
        reason, with_node = _reason(error)
        if starting:
            self._require_package(error)
            self._failed_starts += not with_node  # those that wait for room wait on some node
            if self._failed_starts >= DEFAULT_RETRIES.attempts:
                raise EngineError(f"workers end before they start ({str(error)[:1500]})") from error
            return
        self.lost += 1
        try:
            self._schedule.lost(slot, reason, with_node=with_node)
        except EngineError as told:
            raise told from error

    def _require_package(self, error: RayError) -> None:
        """Raises UsageError when a worker could not even load what it is."""
        found = _MISSING.search(str(error))
        if found is None:
            return
        python = self._python or "the Python that Ray runs with"
        if found[1] == "paramdelta_dist":
            raise UsageError(
                f"on a node of the cluster, {python} has no paramdelta-dist {__version__}: install it on every node, name the interpreter "
                "that has it there (submit --python PATH), or send this one along (submit --ship package)"
            ) from error
        raise UsageError(
            f"on a node of the cluster, {python} has no module {found[1]}: install paramdelta-dist {__version__} with all it depends on "
            "on every node, or name the interpreter that has it there (submit --python PATH)"
        ) from error


def _reason(error: RayError) -> tuple[str, bool]:
    """Why a worker was lost, in a line, and whether its whole node was, as far as can be told at once."""
    if isinstance(error, ActorUnavailableError):  # of a process that died on a living node, Ray would know
        return "it cannot be reached", True
    lines = str(error).strip().splitlines() or [type(error).__name__]
    preempted = isinstance(error, RayActorError) and error.preempted
    return lines[-1].strip(), preempted or "node has died" in str(error)


class RayExecutor:
    """Runs units on a Ray cluster: the one that is named in RAY_ADDRESS, else one started in this process's name."""

    def __init__(
        self,
        workers: int | None,
        *,
        memory: int,
        gpus: float = 0,
        patience: float | None = None,
        python: str | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        times: Times = TIMES,
    ) -> None:
        """`memory` is what each worker asks Ray for, in bytes, and `patience` the seconds to wait for the first of them.
        Without `workers`, there are as many as the cluster gives. They start with `python`, a path on every node, else with the
        interpreter that Ray runs with there. Raises what joining a cluster raises."""
        self._python, self._times = python, times
        self._owned = not ray.is_initialized()
        self._share = Share(memory, gpus)
        self._patience = PATIENCE_SECONDS if patience is None else patience
        cores = join(workers, connect_seconds) if self._owned else None
        self._limit = workers or cores or sys.maxsize
        self.stats = RunStats()
        self._live: tuple[_ActorPool, Schedule] | None = None
        """The run under way."""

    def counts(self) -> Counts:
        if self._live is None:
            return Counts(0, self.stats.retries)
        pool, schedule = self._live
        return Counts(len(pool.working), self.stats.retries + schedule.retries)

    def close(self) -> None:
        """End the embedded cluster, or leave the one we joined."""
        if self._owned:
            stopping.alive(SHUTDOWN_SECONDS)
            ray.shutdown()

    def run(self, function: Function[R], job: J, units: Sequence[U], *, advance: Callable[[int], None]) -> Generator[R, None, None]:
        schedule = Schedule(units, advance, self._times)
        work = ray.cloudpickle.dumps((function, job))
        pool = _ActorPool(schedule, partial(self._start, work), self._limit, self._python)
        metrics = Publisher(schedule.meter)
        self._live = pool, schedule
        last_seen_alive = looked = time.monotonic()
        warned = False
        try:
            while schedule.unfinished:
                pool.adjust()
                for order, attempt in schedule.orders(time.monotonic()):
                    pool.carry_out(order, attempt)
                pool.ask_progress()
                pool.handle_events(CHECK_INTERVAL_SECONDS)
                while schedule.results:
                    yield schedule.results.popleft()
                now = time.monotonic()
                if now - looked >= self._times.look:
                    looked = now
                    pool.notice_leaving()
                    metrics.publish()
                    advance(0)  # so that whoever watches hears what workers there are, also while none makes anything
                if pool.working:
                    last_seen_alive, warned = now, False
                elif now - last_seen_alive > self._patience:
                    told = f"no worker could be started in {format_seconds(self._patience)}. {self._diagnose()}"
                    raise EngineError(f"{told}. Then run again: what is done is kept")
                elif not warned and now - last_seen_alive > WARN_SECONDS:
                    warned = True
                    log.warning("no worker yet; waiting for %s in all. %s", format_seconds(self._patience), self._diagnose())
        finally:
            self._live = None
            self.stats += RunStats(
                workers=pool.largest,
                nodes=len(schedule.nodes),
                lost=pool.lost,
                retries=schedule.retries,
                copies=schedule.copies,
                restarts=schedule.restarts,
                bytes_read_again=schedule.bytes_read_again,
                causes=schedule.meter.total(RETRIES),
            )
            metrics.publish()
            pool.end(self._times.stop)

    def _diagnose(self) -> str:
        needed = f" Workers start with {self._python}, which every node must have." if self._python else ""
        return f"{diagnose(self._share)}{needed}"

    def _start(self, work: bytes) -> Any:
        share = self._share
        options: dict[str, Any] = {"num_cpus": share.cpus, "memory": share.memory, "scheduling_strategy": "SPREAD"}
        if share.gpus:
            options["num_gpus"] = share.gpus
        if self._python:
            options["runtime_env"] = {"py_executable": shlex.quote(self._python)}
        return ShardActor.options(**options).remote(__version__, work)
