"""The schedule alone, on a simulated clock: workers that take the time a test says, in steps, and answer questions."""

import heapq
import itertools
import random
from dataclasses import dataclass

import pytest

from paramdelta_dist.errors import EngineError, Interrupted, NonFinite, TransientStorageError
from paramdelta_dist.execution.scheduling import LOOK_SECONDS, STOP_SECONDS, Order, Schedule, Worker

STEP = 1 / 20


@dataclass(frozen=True)
class Unit:
    file: str
    size: int = 1000


class Simulation:
    """Workers as the Ray executor has them: one unit at a time in the order given, progress asked for at an interval.

    `seconds(unit, worker, attempt)` is how long an attempt takes. A unit that is told to stop does so at its next step.
    """

    def __init__(self, units, workers, seconds, poll=0.5):
        self.now, self.bytes = 0.0, 0
        self.schedule = Schedule(units, self.advance)
        self.workers = [Worker(node=str(number // 2)) for number in range(workers)]
        self.seconds, self.poll = seconds, poll
        self.begun = {}
        """When the attempt that a worker is at began, and how long it takes."""
        self.queues = {worker: [] for worker in self.workers}
        self.cancelled, self.unwanted = set(), set()
        self.tries = {unit.file: 0 for unit in units}
        self.events, self.order = [], itertools.count()
        for worker in self.workers:
            self.schedule.joined(worker)
            self.at(self.poll * random.Random(id(worker)).random(), self.ask, worker)
        self.at(0, self.look)

    def advance(self, size):
        self.bytes += size

    def at(self, when, act, *arguments):
        heapq.heappush(self.events, (when, next(self.order), act, arguments))

    def run(self, until=10_000.0):
        results = []
        while self.schedule.unfinished and self.events:
            self.now, _, act, arguments = heapq.heappop(self.events)
            assert self.now < until, "the run does not end"
            act(*arguments)
            self.carry_out()
            while self.schedule.results:
                results.append(self.schedule.results.popleft())
        return results

    def look(self):
        self.at(self.now + LOOK_SECONDS, self.look)

    def carry_out(self):
        for order, attempt in self.schedule.orders(self.now):
            worker = attempt.worker
            if order is Order.START:
                self.queues[worker].append(attempt)
                self.next(worker)
            elif order is Order.WITHDRAW:
                if attempt in self.queues[worker] and self.begun.get(worker, (None,))[0] is not attempt:
                    self.queues[worker].remove(attempt)
                    self.schedule.withdrawn(attempt)
            elif order is Order.CANCEL:
                self.at(self.now + self.step(worker), self.abandon, attempt)
            else:
                self.lose(worker)

    def next(self, worker):
        if worker not in self.begun and self.queues[worker]:
            attempt = self.queues[worker][0]
            file = attempt.task.unit.file
            duration = self.seconds(attempt.task.unit, self.workers.index(worker), self.tries[file])
            self.tries[file] += 1
            self.begun[worker] = (attempt, self.now, duration)
            self.at(self.now + duration, self.end, attempt, f"{file} by {self.workers.index(worker)}")

    def step(self, worker):
        _, began, duration = self.begun[worker]
        length = duration * STEP
        return length - (self.now - began) % length if length < STOP_SECONDS else float("inf")

    def leave(self, attempt):
        """Whether the worker was at this attempt; it is not any more."""
        worker = attempt.worker
        if self.begun.get(worker, (None,))[0] is not attempt:
            return False
        del self.begun[worker]
        self.queues[worker].remove(attempt)
        return True

    def end(self, attempt, result):
        if self.leave(attempt):
            self.schedule.finished(attempt, result, self.now)
            self.next(attempt.worker)

    def abandon(self, attempt):
        if self.leave(attempt):
            self.schedule.failed(attempt, Interrupted("stopped"), self.now)
            self.next(attempt.worker)

    def ask(self, worker):
        if worker in self.begun:
            attempt, began, duration = self.begun[worker]
            steps = int((self.now - began) / duration / STEP)
            self.schedule.progressed(worker, attempt.ticket, int(steps * STEP * attempt.task.unit.size), self.now)
        self.at(self.now + self.poll, self.ask, worker)

    def lose(self, worker):
        self.begun.pop(worker, None)
        self.queues[worker] = []
        self.schedule.lost(worker, "it was killed")


if __name__ == "__main__":
    import time
    for n, units, T in ((4, 1000, .12), (16, 1000, .48), (64, 1000, 1.92), (64, 1000, 60), (500, 10000, 60)):
        for p in (0, .05):
            poll = max(.5, n / 100)
            draw = lambda u, w, k: T * (4 if random.Random(f"{u.file} {k}").random() < p else 1)
            b = time.process_time()
            s = Simulation([Unit(f"shard-{i:04}") for i in range(units)], n, draw, poll)
            r = s.run(100000)
            assert len(r) == units and s.bytes == 1000 * units
            sc = s.schedule
            print(n, units, T, p, "eff", round(units * T / n / s.now, 3), "restarts", sc.restarts, "copies", sc.copies, "cpu", round(time.process_time() - b, 2))
