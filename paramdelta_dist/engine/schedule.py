"""The schedule: decides which worker does which unit when, stragglers included. Pure: no Ray and no clock, so that it is tested alone.

The rules, where a unit is expected to take as long as recent ones of its size did, or as those did that read and wrote as much,
whichever is longer (the first holds where arithmetic takes the time, the second where storage does):

- Units that take the most bytes_moved come first, so that the last ones to be done are short.
- A worker has one unit in hand and, while the queue is long, one waiting behind it. Once the queue is empty, a waiting unit is
  withdrawn and given to an idle worker that will be done with it earlier.
- An attempt is late when it will take LATE times the expected time, as its progress tells.
- Late, while others wait in the queue: it is stopped and its unit made anew, if that costs less than going on. Once a unit, and
  not when many attempts are late: then the world is slow, not they. A worker that is slow as a rule is measured by its own pace.
- Late, with idle workers and an empty queue: one of them makes a copy, on another node if there is one.
- On a node that is about to go, nothing begins any more. What waits there is withdrawn, and what is under way is stopped and made
  anew elsewhere once it is seen that it will not be done in time.

Whoever finishes first wins, and the others are told to stop. A unit counts as done only when none of its attempts is under way
any more, so that nobody writes to its file after its result is known; if two finished, the result of the later one counts, since
it is what replaced the other. (Which of the two files is there in the end is not certain if both were published in the same
moment. Their bytes are equal, and the commit holds results against what is there.)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Any, NamedTuple

from paramdelta_dist.engine.executor import Unit
from paramdelta_dist.engine.metrics import RETRIES, SHARDS, Meter
from paramdelta_dist.engine.worker_log import place
from paramdelta_dist.errors import EngineError, Interrupted, ParamDeltaError
from paramdelta_dist.storage.retry import DEFAULT_RETRIES

log = logging.getLogger(__name__)

AHEAD = 2
"""Units a worker is given at most: one being made, one waiting so that the next starts at once."""
LATE = 2.0
"""Multiple of the expected time after which an attempt is late."""
JUDGED_AFTER = 0.5
"""Part of the expected time after which progress tells how long an attempt will take."""
JUDGED_FROM = 0.05
"""Part of a unit that must be done for its progress to tell anything."""
HUNG = 3.0
"""Multiple of the expected time after which an attempt is taken to hang, whatever its progress was."""
LEAST_SECONDS = 0.5
"""Age of an attempt below which nothing is done about it."""
CHECK_INTERVAL_SECONDS = 0.25
"""Seconds between two looks for stragglers."""
COPIES = 2
"""Copies of a unit that there may be at a time besides the first attempt; the second if the first copy is late too."""
STOP_SECONDS = 15.0
"""Seconds that an attempt has to abandon its upload before its worker is ended."""
KNOWN_UNITS = 2
"""Units that must have finished for a typical time to be known."""
LEAVE_SECONDS = 10.0
"""Seconds before a node goes in which its last unit must be done: an attempt that is stopped then still takes back its upload."""
NODE_LOSSES = 20
"""Nodes that may be lost while at one unit: losing nodes is routine, but a unit that ends every node must end the run."""


@dataclass(frozen=True)
class Times:
    """The seconds after which the schedule, or whoever carries it out, does something. Other numbers are for tests."""

    stop: float = STOP_SECONDS
    leave: float = LEAVE_SECONDS
    look: float = 2.0
    """Between two looks for nodes that are about to go."""


TIMES = Times()


class Order(Enum):
    """An order about an attempt."""

    START = "start"
    WITHDRAW = "withdraw"
    """Take it back if it has not begun, and tell `Schedule.withdrawn`."""
    CANCEL = "cancel"
    """Tell it to stop; it still ends with a result or an error."""
    KILL = "kill"
    """End its worker, which is then lost."""


class Instruction(NamedTuple):
    """An order and the attempt that it is about."""

    order: Order
    attempt: Attempt


class Pace(NamedTuple):
    """The time that units take, in seconds a byte; 0 while unknown."""

    by_size: float = 0.0
    """Seconds for each byte of a unit's size."""
    by_effort: float = 0.0
    """Seconds for each byte that a unit moves."""

    @classmethod
    def of(cls, unit: Unit, seconds: float) -> Pace:
        return cls(seconds / max(unit.size, 1), seconds / unit.bytes_moved if unit.bytes_moved else 0.0)

    @classmethod
    def usual(cls, paces: Collection[Pace]) -> Pace:
        return cls(*(median(each) for each in zip(*paces, strict=True)))

    def expected(self, unit: Unit) -> float:
        """Seconds."""
        return max(self.by_size * unit.size, self.by_effort * unit.bytes_moved)


@dataclass(eq=False)
class Task:
    """A unit and what became of it."""

    unit: Unit
    attempts: list[Attempt] = field(default_factory=list)
    """Those that may still do something."""
    finished: bool = False
    result: Any = None
    begun: int = 0
    """Attempts so far."""
    failures: int = 0
    """Attempts that ended in an error or with their worker."""
    node_losses: int = 0
    """Attempts that ended with their node."""
    restarted: bool = False
    shown: int = 0
    """Bytes that the observer has been told of."""


@dataclass(eq=False)
class Worker:
    """A worker that runs, as the schedule sees it."""

    node: str = ""
    address: str = ""
    """Of the node, for people."""
    leaves: float | None = None
    """When its node goes, if it is about to; infinite if nobody said when."""
    attempts: deque[Attempt] = field(default_factory=deque)
    """The first is under way, the others wait."""
    paces: deque[Pace] = field(default_factory=lambda: deque(maxlen=3))
    """Of its last units."""


@dataclass(eq=False)
class Attempt:
    """A unit in the hands of one worker."""

    task: Task
    worker: Worker
    ticket: int
    """Its number; later attempts have higher ones."""
    number: int
    """Its number among the attempts at its unit, from 1."""
    began: float
    """When it was given to the worker, or came first there."""
    done: int = 0
    """Bytes of the unit's size that are done, by its last report."""
    moved: int = 0
    """Bytes that were read and written for it, by its last report."""
    worked: float = 0.0
    """Seconds that it had worked by its last report."""
    read: int = 0
    """Bytes of inputs that it had read by its last report."""
    reported: float | None = None
    """When it reported last, by the clock of the schedule; None before its first report."""
    withdrawing: bool = False
    stopped: float | None = None
    """When it was told to stop."""
    killed: bool = False

    def __str__(self) -> str:
        return place(self.task.unit.file, self.number, self.worker.address or self.worker.node)

    def age(self, now: float) -> float:
        """Seconds it has been worked at: as the worker counts them, since what it is given may take time to arrive."""
        return now - self.began if self.reported is None else self.worked + now - self.reported

    def projected(self) -> float:
        """Seconds it takes in all if it goes on as it did. It has moved something."""
        return self.worked * self.task.unit.bytes_moved / self.moved

    def left(self, now: float, expected: float) -> float:
        """Seconds it will take still, as far as can be told, if it was expected to take `expected` in all."""
        age = self.age(now)
        if age > HUNG * expected:
            return float("inf")
        if not self.moved or self.moved < JUDGED_FROM * self.task.unit.bytes_moved:
            return float("inf") if age > LATE * expected else max(expected - age, 0.0)
        return max(self.projected() - age, 0.0)


class _Delayed(NamedTuple):
    """A unit that is tried again after a while."""

    when: float
    task: Task


class _Late(NamedTuple):
    """An attempt that takes too long."""

    left: float
    """Seconds that its unit will take still."""
    attempt: Attempt


class Schedule:
    """The state of a run over units. Told what happens, it says what to do; every time is on the caller's clock, in seconds."""

    def __init__(self, units: Sequence[Unit], advance: Callable[[int], None], times: Times = TIMES) -> None:
        self.unfinished = len(units)
        self.results: deque[Any] = deque()
        """Of units that are done, until the caller takes them."""
        self.retries = self.copies = self.restarts = 0
        self.bytes_read_again = 0
        self.meter = Meter()
        """Attempts by how they ended, and retries by cause."""
        self.workers: list[Worker] = []
        self.nodes: set[str] = set()
        """Those on which a unit was made."""
        self._advance, self._times = advance, times
        self._queue = deque(Task(unit) for unit in sorted(units, key=lambda unit: -unit.bytes_moved))
        self._later: list[_Delayed] = []
        self._orders: list[Instruction] = []
        self._paces: deque[Pace] = deque(maxlen=101)
        self._usual = Pace()
        self._looked = 0.0
        self._tickets = 0

    def joined(self, worker: Worker) -> None:
        """A worker runs and can be given units."""
        self.workers.append(worker)

    def leaving(self, worker: Worker, when: float) -> None:
        """The node of a worker goes at a time that is known, or infinite if it is not."""
        worker.leaves = when

    def lost(self, worker: Worker, reason: str, *, with_node: bool = False) -> None:
        """A worker is no more, perhaps with its node. Raises EngineError when the unit it was at has cost too many of them."""
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        while len(worker.attempts) > 1:
            self.withdrawn(worker.attempts[-1])
        if not worker.attempts:
            return
        head = worker.attempts[0]
        task = head.task
        self.bytes_read_again += head.read
        self.meter.add(SHARDS, value="lost")
        self._leave(head, 0.0)
        if not task.finished:
            if with_node:
                task.node_losses += 1
            else:
                task.failures += not head.killed
            if task.failures >= DEFAULT_RETRIES.attempts or task.node_losses >= NODE_LOSSES:
                raise EngineError(
                    f"{task.unit.file}: {task.failures + task.node_losses} workers were lost while at it, the last on "
                    f"{worker.address or worker.node}: {reason}. If they ran out of memory, allow more (--memory) or fewer workers; "
                    "run again to go on with what is done"
                )
            self.retries += 1
            if head.stopped is None:  # else its beginning anew was counted when it was stopped
                self.meter.add(RETRIES, value="node_lost" if with_node else "worker_lost")
            log.warning("%s: its %s was lost (%s); it starts again", head, "node" if with_node else "worker", reason)
        self._again(task)

    def progressed(self, worker: Worker, ticket: int, done: int, moved: int, worked: float, now: float, *, read: int = 0) -> None:
        """A worker has done `done` bytes of the size and `moved` bytes of the bytes_moved of the attempt with this ticket, in `worked`
        seconds, and read `read` of inputs for it."""
        head = worker.attempts[0] if worker.attempts else None
        if head is not None and head.ticket == ticket:
            head.done, head.moved, head.worked, head.reported, head.read = done, moved, worked, now, read
            self._show(head.task)

    def withdrawn(self, attempt: Attempt) -> None:
        """An attempt was taken back before it began."""
        if attempt in attempt.worker.attempts:
            self._leave(attempt, 0.0)
            self._again(attempt.task)

    def finished(self, attempt: Attempt, result: Any, now: float) -> None:
        """An attempt has made its unit."""
        if attempt not in attempt.worker.attempts:
            return
        self._leave(attempt, now)
        self.nodes.add(attempt.worker.node)
        self.meter.add(SHARDS, value="made")
        task = attempt.task
        pace = Pace.of(task.unit, now - attempt.began)
        attempt.worker.paces.append(pace)
        self._paces.append(pace)
        task.finished, task.result = True, result
        for other in task.attempts:
            self._stop(other, now)
        self._settle(task)

    def failed(self, attempt: Attempt, error: ParamDeltaError, now: float) -> None:
        """An attempt has ended in an error, which is raised if the unit must not be tried again."""
        if attempt not in attempt.worker.attempts:
            return
        self.bytes_read_again += error.bytes_read
        self._leave(attempt, now)
        task = attempt.task
        called_off = task.finished or (attempt.stopped is not None and isinstance(error, Interrupted))
        self.meter.add(SHARDS, value="stopped" if called_off else "failed")
        if called_off:
            self._again(task)
            return
        task.failures += 1
        if not error.retryable or task.failures >= DEFAULT_RETRIES.attempts:
            raise error
        self.retries += 1
        self.meter.add(RETRIES, value="error")
        self._show(task)
        if not task.attempts:
            log.warning("%s failed (%s); attempt %d follows", attempt, error, task.begun + 1)
            self._later.append(_Delayed(now + 2.0**task.failures, task))

    def orders(self, now: float) -> list[Instruction]:
        """The orders that are due now; the schedule takes them as done."""
        due = [delayed.task for delayed in self._later if delayed.when <= now]
        if due:
            self._queue.extend(due)
            self._later = [delayed for delayed in self._later if delayed.when > now]
        self._fill(now)
        if not self._queue:
            self._withdraw(now)
        if now - self._looked >= CHECK_INTERVAL_SECONDS:
            self._looked = now
            self._vacate(now)
            self._usual = Pace.usual(self._paces) if len(self._paces) >= KNOWN_UNITS else Pace()
            if self._queue:
                self._restart(now)
            else:
                self._copy(now)
            self._kill(now)
        orders, self._orders = self._orders, []
        return [each for each in orders if each.attempt in each.attempt.worker.attempts]  # not those that ended meanwhile

    def _fill(self, now: float) -> None:
        """Give every idle worker a unit, and a second one while there are enough for all."""
        for depth in range(1, AHEAD + 1):
            for worker in self.workers:
                if not self._queue or (depth > 1 and len(self._queue) <= len(self.workers)):
                    return
                held_up = worker.leaves is not None or (worker.attempts and worker.attempts[0].stopped is not None)
                if len(worker.attempts) < depth and not held_up:
                    self._start(self._queue.popleft(), worker, now)

    def _start(self, task: Task, worker: Worker, now: float) -> None:
        self._tickets += 1
        task.begun += 1
        attempt = Attempt(task, worker, self._tickets, task.begun, now)
        task.attempts.append(attempt)
        worker.attempts.append(attempt)
        self._orders.append(Instruction(Order.START, attempt))

    def _idle(self) -> list[Worker]:
        """Workers without a unit, the fastest first, less those that get the ones being withdrawn."""
        idle = sorted((worker for worker in self.workers if not worker.attempts and worker.leaves is None), key=self._pace)
        return idle[sum(worker.attempts[-1].withdrawing for worker in self.workers if len(worker.attempts) > 1) :]

    def _vacate(self, now: float) -> None:
        """Take from workers that are about to go what they cannot finish."""
        for worker in self.workers:
            if worker.leaves is None or not worker.attempts:
                continue
            head, *waiting = worker.attempts
            for attempt in waiting:
                if not attempt.withdrawing:
                    attempt.withdrawing = True
                    self._orders.append(Instruction(Order.WITHDRAW, attempt))
            if head.stopped is None and now + self._left_at_least(head, now) > worker.leaves - self._times.leave:
                self.restarts += 1
                self.meter.add(RETRIES, value="leaving")
                self._stop(head, now)
                log.warning("%s: its node goes in %.0f s; it starts again elsewhere", head, max(worker.leaves - now, 0))

    def _left_at_least(self, attempt: Attempt, now: float) -> float:
        """Seconds it will take still, and 0 where nothing is known."""
        if self._usual != Pace():
            return self._left(attempt, now)
        return max(attempt.projected() - attempt.age(now), 0.0) if attempt.moved else 0.0

    def _withdraw(self, now: float) -> None:
        waiting = [worker.attempts[-1] for worker in self.workers if len(worker.attempts) > 1 and not worker.attempts[-1].withdrawing]
        for worker in self._idle() if waiting else ():
            gains = [self._gain(attempt, worker, now) for attempt in waiting]
            best = max(range(len(gains)), key=gains.__getitem__, default=0)
            if not gains or gains[best] < 0:
                return
            attempt = waiting.pop(best)
            attempt.withdrawing = True
            self._orders.append(Instruction(Order.WITHDRAW, attempt))

    def _gain(self, attempt: Attempt, worker: Worker, now: float) -> float:
        """Seconds by which a waiting attempt would be done earlier by an idle worker."""
        here, unit = attempt.worker, attempt.task.unit
        return self._left(here.attempts[0], now) + self._pace(here).expected(unit) - self._pace(worker).expected(unit)

    def _late(self, now: float) -> list[_Late]:
        """The last attempt of each unit whose attempts all take too long, with the seconds the unit will take still; the longest first."""
        found = []
        for worker in self.workers if self._usual != Pace() else ():
            last = worker.attempts[0] if worker.attempts else None
            if last is not None and last.task.attempts[-1] is last and all(self._is_late(each, now) for each in last.task.attempts):
                found.append(_Late(min(self._left(each, now) for each in last.task.attempts), last))
        return sorted(found, key=lambda late: late.left, reverse=True)

    def _is_late(self, attempt: Attempt, now: float) -> bool:
        age, expected = attempt.age(now), self._usual.expected(attempt.task.unit)
        judged = attempt.stopped is None and age >= max(LEAST_SECONDS, JUDGED_AFTER * expected)
        return judged and age + attempt.left(now, expected) >= LATE * expected

    def _left(self, attempt: Attempt, now: float) -> float:
        """Seconds an attempt is expected to take still."""
        return attempt.left(now, self._usual.expected(attempt.task.unit))

    def _restart(self, now: float) -> None:
        late = [each.attempt for each in self._late(now)]
        if len(late) > max(1, len(self.workers) // 8):
            return
        for attempt in late:
            if len(attempt.task.attempts) > 1 or attempt.task.restarted or not self._worth_restarting(attempt, now):
                continue
            attempt.task.restarted = True
            self.restarts += 1
            seconds = attempt.projected() if attempt.moved else HUNG * self._usual.expected(attempt.task.unit)
            attempt.worker.paces.append(Pace.of(attempt.task.unit, seconds))
            self.meter.add(RETRIES, value="late")
            self._stop(attempt, now)
            log.info("%s takes too long; it starts again", attempt)

    def _worth_restarting(self, attempt: Attempt, now: float) -> bool:
        own = max(pace.expected(attempt.task.unit) for pace in (self._pace(attempt.worker), self._usual))
        return attempt.left(now, own) > LATE * own

    def _copy(self, now: float) -> None:
        idle = self._idle()
        for left, attempt in self._late(now) if idle else ():
            homes = [each.worker.node for each in attempt.task.attempts]
            seconds = {worker: self._pace(worker).expected(attempt.task.unit) for worker in idle}
            slow = LATE * self._usual.expected(attempt.task.unit)
            worker = min(idle, key=lambda w: (seconds[w] > slow, w.node in homes, seconds[w]))
            if len(homes) <= COPIES and left > seconds[worker]:
                idle.remove(worker)
                self.copies += 1
                self._start(attempt.task, worker, now)
                log.info("%s takes too long; %s makes it too", attempt, worker.address or worker.node)
            if not idle:
                return

    def _kill(self, now: float) -> None:
        for worker in self.workers:
            head = worker.attempts[0] if worker.attempts else None
            if head is not None and head.stopped is not None and not head.killed and now - head.stopped > self._times.stop:
                head.killed = True
                self._orders.append(Instruction(Order.KILL, head))

    def _stop(self, attempt: Attempt, now: float) -> None:
        if attempt.stopped is None:
            attempt.stopped = now
            self._orders.append(Instruction(Order.CANCEL, attempt))

    def _pace(self, worker: Worker) -> Pace:
        return Pace.usual(worker.paces) if worker.paces else self._usual

    def _leave(self, attempt: Attempt, now: float) -> None:
        """An attempt is over, or never begins; who waited behind it begins now."""
        worker = attempt.worker
        first = worker.attempts[0] is attempt
        worker.attempts.remove(attempt)
        attempt.task.attempts.remove(attempt)
        if first and worker.attempts:
            worker.attempts[0].began = now

    def _again(self, task: Task) -> None:
        """Queue a unit that nobody is at any more, as the next; or note that it is done."""
        self._show(task)
        if task.finished:
            self._settle(task)
        elif not task.attempts:
            self._queue.appendleft(task)

    def _settle(self, task: Task) -> None:
        self._show(task)
        if not task.attempts:
            self.unfinished -= 1
            self.results.append(task.result)
            task.result = None

    def _show(self, task: Task) -> None:
        """Tell the observer how far a unit is: as far as the best of its attempts."""
        total = task.unit.size if task.finished else max((attempt.done for attempt in task.attempts), default=0)
        if total != task.shown:
            self._advance(total - task.shown)
            task.shown = total
