"""The Ray executor: long-lived actors, one a slot, and a driver that owns every retry. The only module that names ray.

Units and results are all that travels; weights go from storage to worker to storage. A lost worker or node costs the
unit it was making and nothing else: it is queued again, and a file's bytes do not depend on who makes it. Who does what
and when is decided by the schedule; here it is carried out.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from paramdelta_dist.errors import EngineError, Interrupted, ParamDeltaError
from paramdelta_dist.execution.executor import Function, J, R, U, Unit
from paramdelta_dist.execution.scheduling import LOOK_SECONDS, STOP_SECONDS, Attempt, Order, Schedule, Worker
from paramdelta_dist.storage.retry import ATTEMPTS

log = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 900.0
"""How long the driver waits while it has no worker at all; a cluster may have to start machines first."""
CONNECT_SECONDS = 10.0
"""How long a cluster's address may take to answer; Ray itself would try for minutes and then end the process."""
POLL_SECONDS = 0.5
"""How often a worker is asked for its progress,"""
POLLS_PER_SECOND = 200.0
"""and how often all of them together at most."""
EMBEDDED_OBJECT_STORE = 100 << 20
"""Bytes of an embedded Ray's object store: no weights pass through it."""


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})  # type: ignore[call-overload]
class ShardWorker:
    """Does units of one job, one at a time, on the machine Ray placed it on. Their tickets rise."""

    def __init__(self, function: Function[Any], job: Any) -> None:
        self._function, self._job = function, job
        self._stop = threading.Event()
        self._begins = threading.Lock()
        self._ticket, self._began, self._bytes = 0, 0.0, 0
        self._unwanted: set[int] = set()

    @ray.method(concurrency_group="control")
    def ready(self) -> str:
        """The node it is on."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int, float]:
        """The ticket that was begun last, the bytes of it that are done, and in how many seconds."""
        with self._begins:
            return self._ticket, self._bytes, time.monotonic() - self._began

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
        self._stop.set()

    def run(self, ticket: int, unit: Unit) -> Any:
        """The result, or the error of ours that prevented it; a bug raises."""
        with self._begins:
            self._ticket, self._began, self._bytes = ticket, time.monotonic(), 0

        def advance(size: int) -> None:
            self._bytes += size

        def cancelled() -> bool:
            return self._stop.is_set() or ticket in self._unwanted

        try:
            if cancelled():
                raise Interrupted("stopped")
            return self._function(self._job, unit, advance=advance, cancelled=cancelled)
        except ParamDeltaError as error:
            return error
        finally:
            self._unwanted.discard(ticket)


@dataclass(eq=False)
class _Slot(Worker):
    """A worker as the driver sees it: for the schedule, once it runs, and the actor behind it."""

    actor: Any = None
    ready: bool = False
    lost: bool = False
    asking: bool = False
    """Whether a question for its progress is unanswered."""
    asked: float = 0.0
    """When it was asked last, on the monotonic clock."""


class _Crew:
    """The actors of one run. What they answer comes as events, each of which is handled by whoever asked."""

    def __init__(self, schedule: Schedule, start: Callable[[], Any], count: int) -> None:
        self.slots: list[_Slot] = []
        self._schedule, self._start_actor = schedule, start
        self._events: SimpleQueue[tuple[_Slot, Callable[[Any], None], futures.Future[Any]]] = SimpleQueue()
        self._running: dict[Attempt, futures.Future[Any]] = {}
        self._failed_starts = 0
        for _ in range(count):
            self._start()

    def carry_out(self, order: Order, attempt: Attempt) -> None:
        slot = attempt.worker
        assert isinstance(slot, _Slot)
        match order:
            case Order.START:
                reference = slot.actor.run.remote(attempt.ticket, attempt.task.unit)
                self._running[attempt] = self._expect(slot, reference, partial(self._ended, attempt))
            case Order.WITHDRAW:
                self._expect(slot, slot.actor.withdraw.remote(attempt.ticket), partial(self._withdrawn, attempt))
            case Order.CANCEL:
                slot.actor.cancel.remote(attempt.ticket)
            case Order.KILL:
                ray.kill(slot.actor)

    def ask_progress(self) -> None:
        now = time.monotonic()
        interval = max(POLL_SECONDS, len(self.slots) / POLLS_PER_SECOND)
        for slot in self.slots:
            if slot.attempts and not slot.asking and now - slot.asked >= interval:
                slot.asked, slot.asking = now, True
                self._expect(slot, slot.actor.progress.remote(), partial(self._progressed, slot))

    def handle_events(self, timeout: float) -> None:
        """Handle what has come, waiting up to `timeout` seconds for the first."""
        for slot, handle, future in self._arrived(timeout):
            try:
                answer = future.result()
            except RayTaskError:  # a bug
                raise
            except RayError as error:
                self._lose(slot, error)
            else:
                handle(answer)

    def end(self) -> None:
        """Let workers abandon what they are making, then end them."""
        for slot in self.slots:
            slot.actor.stop.remote()
        futures.wait(self._running.values(), timeout=STOP_SECONDS)
        for slot in self.slots:
            ray.kill(slot.actor)

    def _start(self) -> None:
        slot = _Slot(actor=self._start_actor())
        self.slots.append(slot)
        self._expect(slot, slot.actor.ready.remote(), partial(self._came, slot))

    def _expect(self, slot: _Slot, reference: Any, handle: Callable[[Any], None]) -> futures.Future[Any]:
        future: futures.Future[Any] = reference.future()
        future.add_done_callback(lambda done: self._events.put((slot, handle, done)))
        return future

    def _arrived(self, timeout: float) -> Iterator[tuple[_Slot, Callable[[Any], None], futures.Future[Any]]]:
        with suppress(Empty):
            yield self._events.get(timeout=timeout)
            for _ in range(self._events.qsize()):
                yield self._events.get_nowait()

    def _came(self, slot: _Slot, node: str) -> None:
        slot.node, slot.ready = node, True
        self._failed_starts = 0
        self._schedule.joined(slot)

    def _progressed(self, slot: _Slot, answer: tuple[int, int, float]) -> None:
        slot.asking = False
        self._schedule.progressed(slot, *answer, now=time.monotonic())

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

    def _lose(self, slot: _Slot, error: RayError) -> None:
        if slot.lost:
            return
        slot.lost = True
        self.slots.remove(slot)
        ray.kill(slot.actor)  # it may only be out of reach
        for attempt in slot.attempts:
            self._running.pop(attempt, None)
        if not slot.ready:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS:
                raise EngineError(f"workers end before they start ({str(error)[:1500]})") from error
        try:
            self._schedule.lost(slot, str(error).partition("\n")[0])
        except EngineError as told:
            raise told from error
        if self._schedule.unfinished > len(self.slots):
            self._start()


class RayExecutor:
    """Runs units on a Ray cluster: the one that is named in RAY_ADDRESS, else one started in this process's name."""

    def __init__(self, workers: int | None, *, memory: int, gpus: float = 0) -> None:
        """`memory` is what each worker asks Ray for, in bytes. Raises EngineError when no cluster can be had."""
        self._owned = not ray.is_initialized()
        self._memory, self._gpus = memory, gpus
        if self._owned:
            _connect(workers)
        self.workers = workers or max(1, int(_resources(ray.cluster_resources).get("CPU", 1)))
        self.retries = self.copies = self.restarts = 0
        self.bytes_read_again = 0

    def close(self) -> None:
        """End the embedded cluster, or leave the one we joined."""
        if self._owned:
            ray.shutdown()

    def run(self, function: Function[R], job: J, units: Sequence[U], *, advance: Callable[[int], None]) -> Generator[R, None, None]:
        schedule = Schedule(units, advance)
        crew = _Crew(schedule, partial(self._start, function, job), min(self.workers, len(units)))
        last_seen_alive = time.monotonic()
        try:
            while schedule.unfinished:
                for order, attempt in schedule.orders(time.monotonic()):
                    crew.carry_out(order, attempt)
                crew.ask_progress()
                crew.handle_events(LOOK_SECONDS)
                while schedule.results:
                    yield schedule.results.popleft()
                if any(slot.ready for slot in crew.slots):
                    last_seen_alive = time.monotonic()
                elif time.monotonic() - last_seen_alive > START_TIMEOUT_SECONDS:
                    raise EngineError(self._no_workers())
        finally:
            self.retries += schedule.retries
            self.copies += schedule.copies
            self.restarts += schedule.restarts
            self.bytes_read_again += schedule.bytes_read_again
            crew.end()

    def _start(self, function: Function[Any], job: Any) -> Any:
        options: dict[str, Any] = {"num_cpus": 1, "memory": self._memory, "scheduling_strategy": "SPREAD"}
        if self._gpus:
            options["num_gpus"] = self._gpus
        return ShardWorker.options(**options).remote(function, job)  # type: ignore[attr-defined]

    def _no_workers(self) -> str:
        have = _resources(ray.available_resources)
        return (
            f"no worker could be started in {START_TIMEOUT_SECONDS:.0f} s: each needs 1 CPU{', a GPU' if self._gpus else ''} and "
            f"{self._memory >> 20} MiB of memory; free in the cluster are {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs and "
            f"{int(have.get('memory', 0)) >> 20} MiB. Free some, ask for less (--memory), or try again later"
        )


def _resources(ask: Callable[[], dict[str, float]]) -> dict[str, float]:
    return ask()


def _connect(workers: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    arguments: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        arguments |= {"address": "local", "num_cpus": workers or os.cpu_count()}  # else Ray joins what runs on this machine
        arguments |= {"include_dashboard": False, "object_store_memory": EMBEDDED_OBJECT_STORE}
    address = os.environ.get("RAY_ADDRESS", "")
    if address and not _answers(address):
        raise EngineError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start one, correct the address, or unset it for an embedded one"
        )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**arguments)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise EngineError(
            f"no Ray cluster could be joined or started ({address or 'embedded'}): {str(error).partition(chr(10))[0]}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own, which ends the process without a word


def _answers(address: str) -> bool:
    """Whether something listens at host:port, asked for some seconds; other forms (auto, local) are left to Ray."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return True
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
