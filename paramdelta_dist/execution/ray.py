"""The Ray executor: long-lived actors, one a slot, and a driver that owns every retry. The only module that names ray.

Shards and receipts are all that travels; weights go from storage to worker to storage. A lost worker or node costs the
shards it was making and nothing else: they are queued again, and a shard's bytes do not depend on who makes it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from paramdelta_dist.errors import EngineError, ParamDeltaError
from paramdelta_dist.execution.executor import Function, J, R, U, Unit
from paramdelta_dist.storage.retry import ATTEMPTS

log = logging.getLogger(__name__)

SHARDS_PER_WORKER = 2
"""Shards in flight per actor: one being made, one waiting so that the next starts at once."""
START_TIMEOUT_SECONDS = 900.0
"""How long the driver waits while it has no worker at all; a cluster may have to start machines first."""
CONNECT_SECONDS = 10.0
"""How long a cluster's address may take to answer; Ray itself would try for minutes and then end the process."""
POLL_SECONDS = 0.5
STOP_SECONDS = 15.0
"""What actors get to abandon their uploads before they are ended."""
EMBEDDED_OBJECT_STORE = 100 << 20
"""Bytes of an embedded Ray's object store: no weights pass through it."""


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2})  # type: ignore[call-overload]
class ShardWorker:
    """Does units of one job, one at a time, on the machine Ray placed it on."""

    def __init__(self, function: Function[Any], job: Any) -> None:
        self._function, self._job = function, job
        self._stop = threading.Event()
        self._bytes = 0

    @ray.method(concurrency_group="control")
    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """Output bytes made so far, those of abandoned attempts taken back."""
        return self._bytes

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._stop.set()

    def run(self, unit: Unit) -> Any:
        """The result, or the error of ours that prevented it; a bug raises."""
        before = self._bytes

        def advance(size: int) -> None:
            self._bytes += size

        try:
            return self._function(self._job, unit, advance=advance, cancelled=self._stop.is_set)
        except ParamDeltaError as error:
            self._bytes = before
            return error


@dataclass
class _Slot:
    """A worker as the driver sees it."""

    actor: Any
    ready: Any
    """Reference that resolves when the actor runs; None once it has."""
    units: dict[Any, Unit] = field(default_factory=dict)
    """What it is doing, by result reference."""
    question: Any = None
    """Reference of an unanswered question for progress."""
    asked: float = 0.0
    """When it was asked last, on the monotonic clock."""
    shown: int = 0
    """Bytes that the observer has been told of."""
    finished: int = 0
    """Bytes of finished units."""

    def show(self, total: int, advance: Callable[[int], None]) -> None:
        """Tell the observer that this worker stands at `total` bytes, which is never less than what is finished."""
        total = max(total, self.finished)
        advance(total - self.shown)
        self.shown = total


class RayExecutor:
    """Runs units on a Ray cluster: the one that is named in RAY_ADDRESS, else one started in this process's name."""

    def __init__(self, workers: int | None, *, memory: int, gpus: float = 0) -> None:
        """`memory` is what each worker asks Ray for, in bytes. Raises EngineError when no cluster can be had."""
        self._owned = not ray.is_initialized()
        self._memory, self._gpus = memory, gpus
        if self._owned:
            _connect(workers)
        self.workers = workers or max(1, int(_resources(ray.cluster_resources).get("CPU", 1)))
        self.retries = 0
        self.bytes_read_again = 0

    def close(self) -> None:
        """End the embedded cluster, or leave the one we joined."""
        if self._owned:
            ray.shutdown()

    def run(self, function: Function[R], job: J, units: Sequence[U], *, advance: Callable[[int], None]) -> Generator[R, None, None]:
        queue: deque[Unit] = deque(units)
        later: list[tuple[float, Unit]] = []
        attempts = {unit.file: 0 for unit in units}
        slots = [self._start(function, job) for _ in range(min(self.workers, len(units)))]
        finished, last_seen_alive = 0, time.monotonic()
        try:
            while finished < len(units):
                now = time.monotonic()
                queue += [unit for due, unit in later if due <= now]
                later = [(due, unit) for due, unit in later if due > now]
                self._assign(slots, queue)
                for slot, reference in _resolved(slots):
                    try:
                        result = ray.get(reference)
                    except RayActorError as error:
                        if slot in slots:
                            slots.remove(slot)
                            slot.show(0, advance)
                            self._requeue_lost(slot, queue, attempts, error)
                            slots.append(self._start(function, job))
                        continue
                    if reference == slot.ready:
                        slot.ready = None
                    elif reference == slot.question:
                        slot.question = None
                        slot.show(result, advance)
                    else:
                        unit = slot.units.pop(reference)
                        if isinstance(result, ParamDeltaError):
                            slot.show(0, advance)
                            later.append((self._next_attempt(unit, attempts, result), unit))
                        else:
                            finished += 1
                            slot.finished += unit.size
                            slot.show(max(slot.shown, slot.finished), advance)
                            yield result
                _ask_progress(slots)
                if any(slot.ready is None for slot in slots):
                    last_seen_alive = time.monotonic()
                elif time.monotonic() - last_seen_alive > START_TIMEOUT_SECONDS:
                    raise EngineError(self._no_workers())
        finally:
            _stop(slots)

    def _start(self, function: Function[Any], job: Any) -> _Slot:
        options: dict[str, Any] = {"num_cpus": 1, "memory": self._memory, "scheduling_strategy": "SPREAD"}
        if self._gpus:
            options["num_gpus"] = self._gpus
        actor = ShardWorker.options(**options).remote(function, job)  # type: ignore[attr-defined]
        return _Slot(actor, actor.ready.remote())

    def _assign(self, slots: list[_Slot], queue: deque[Unit]) -> None:
        """Give every running worker something to do, and a second unit while there are enough for all."""
        for depth in range(1, SHARDS_PER_WORKER + 1):
            for slot in slots:
                spare = depth == 1 or len(queue) > len(slots)
                if queue and spare and slot.ready is None and len(slot.units) < depth:
                    unit = queue.popleft()
                    slot.units[slot.actor.run.remote(unit)] = unit

    def _next_attempt(self, unit: Unit, attempts: dict[str, int], error: ParamDeltaError) -> float:
        """When a failed unit may start again, on the monotonic clock; raises the error when it must not."""
        self.bytes_read_again += error.bytes_read
        attempts[unit.file] += 1
        if not error.retryable or attempts[unit.file] >= ATTEMPTS:
            raise error
        self.retries += 1
        log.warning("%s failed (%s); attempt %d follows", unit.file, error, attempts[unit.file] + 1)
        return time.monotonic() + 2.0 ** attempts[unit.file]

    def _requeue_lost(self, slot: _Slot, queue: deque[Unit], attempts: dict[str, int], error: RayError) -> None:
        reason = str(error).partition("\n")[0]
        if slot.ready is not None:
            attempts[""] = attempts.get("", 0) + 1
            if attempts[""] >= ATTEMPTS:
                raise EngineError(f"workers end before they start ({str(error)[:1500]})") from error
        for unit in slot.units.values():
            attempts[unit.file] += 1
            self.retries += 1
            if attempts[unit.file] >= ATTEMPTS:
                raise EngineError(
                    f"{unit.file}: {attempts[unit.file]} workers were lost while at it, the last: {reason}. If they ran out of "
                    "memory, allow more (--memory) or fewer workers; run again to go on with what is done"
                ) from error
            queue.appendleft(unit)
        log.warning("a worker was lost (%s); its %d shards start again", reason, len(slot.units))

    def _no_workers(self) -> str:
        have = _resources(ray.available_resources)
        return (
            f"no worker could be started in {START_TIMEOUT_SECONDS:.0f} s: each needs 1 CPU{', a GPU' if self._gpus else ''} and "
            f"{self._memory >> 20} MiB of memory; free in the cluster are {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs and "
            f"{int(have.get('memory', 0)) >> 20} MiB. Free some, ask for less (--memory), or try again later"
        )


def _resources(ask: Callable[[], dict[str, float]]) -> dict[str, float]:
    return ask()


def _resolved(slots: list[_Slot]) -> list[tuple[_Slot, Any]]:
    """Answers of workers that are there, waiting a moment for the first."""
    owners = {reference: slot for slot in slots for reference in (*slot.units, slot.ready, slot.question) if reference is not None}
    for timeout, count in ((0, len(owners)), (POLL_SECONDS, 1)):
        ready, _ = ray.wait(list(owners), num_returns=count, timeout=timeout, fetch_local=False)
        if ready:
            break
    return [(owners[reference], reference) for reference in ready]


def _ask_progress(slots: list[_Slot]) -> None:
    for slot in slots:
        if slot.ready is None and slot.question is None and time.monotonic() - slot.asked >= POLL_SECONDS:
            slot.asked = time.monotonic()
            slot.question = slot.actor.progress.remote()


def _stop(slots: list[_Slot]) -> None:
    """Let workers abandon what they are making, then end them."""
    busy = [reference for slot in slots for reference in slot.units]
    for slot in slots:
        slot.actor.stop.remote()
    if busy:
        ray.wait(busy, num_returns=len(busy), timeout=STOP_SECONDS, fetch_local=False)
    for slot in slots:
        ray.kill(slot.actor)


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
