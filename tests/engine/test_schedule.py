"""The schedule alone, on a simulated clock: workers that take the time a test says, in steps, and answer questions."""

import heapq
import itertools
import random
from dataclasses import dataclass

import pytest

from paramdelta_dist.engine.metrics import RETRIES, SHARDS
from paramdelta_dist.engine.schedule import CHECK_INTERVAL_SECONDS, LEAVE_SECONDS, NODE_LOSSES, STOP_SECONDS, Order, Schedule, Worker
from paramdelta_dist.errors import EngineError, Interrupted, NonFinite, TransientStorageError

STEP = 1 / 20


@dataclass(frozen=True)
class Unit:
    file: str
    size: int = 1000
    bytes_moved: int = 1000


class Simulation:
    """Workers as the Ray executor has them: one unit at a time in the order given, progress asked for at an interval.

    `seconds(unit, worker, attempt)` is how long an attempt takes. A unit that is told to stop does so at its next step.
    """

    def __init__(self, units, workers, seconds, poll=0.5, seed=0):
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
        phases = random.Random(seed)
        for worker in self.workers:
            self.schedule.joined(worker)
            self.at(self.poll * phases.random(), self.ask, worker)
        self.at(0, self.look)

    def advance(self, size):
        self.bytes += size

    def at(self, when, act, *arguments):
        heapq.heappush(self.events, (when, next(self.order), act, arguments))

    def run(self, until=100_000.0):
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
        self.at(self.now + CHECK_INTERVAL_SECONDS, self.look)

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
            unit, part = attempt.task.unit, steps * STEP
            self.schedule.progressed(
                worker, attempt.ticket, int(part * unit.size), int(part * unit.bytes_moved), self.now - began, self.now
            )
        self.at(self.now + self.poll, self.ask, worker)

    def lose(self, worker):
        self.begun.pop(worker, None)
        self.queues[worker] = []
        self.schedule.lost(worker, "it was killed")


def units(count):
    return [Unit(f"shard-{number:04}") for number in range(count)]


def steady(seconds):
    """Every attempt takes the same, give or take a tenth."""
    return lambda unit, worker, attempt: seconds * random.Random(f"{unit.file} {attempt}").uniform(0.9, 1.1)


def efficiency(simulation, seconds):
    return len(simulation.tries) * seconds / len(simulation.workers) / simulation.now


@pytest.mark.parametrize(
    ("workers", "seconds", "count"), [(1, 30, 100), (4, 2, 1000), pytest.param(64, 30, 1000, marks=pytest.mark.slow), (64, 2, 1000)]
)
def test_where_all_take_the_same_nothing_is_done_twice(workers, seconds, count):
    simulation = Simulation(units(count), workers, steady(seconds))
    assert sorted(result.split()[0] for result in simulation.run()) == [unit.file for unit in units(count)]
    assert simulation.schedule.copies == simulation.schedule.restarts == simulation.schedule.retries == 0
    assert set(simulation.tries.values()) == {1}
    assert simulation.bytes == count * 1000
    assert efficiency(simulation, seconds) > 0.95


@pytest.mark.parametrize(
    ("workers", "seconds", "count"),
    [(1, 30, 200), (4, 30, 400), (16, 30, 1000), pytest.param(64, 30, 1000, marks=pytest.mark.slow), (64, 2, 1000)],
)
def test_slow_attempts_are_given_up_before_they_cost_their_whole_time(workers, seconds, count):
    def some_slow(unit, worker, attempt):
        return seconds * (4 if random.Random(f"{unit.file} {attempt}").random() < 0.05 else 1)

    simulation = Simulation(units(count), workers, some_slow)
    assert len(simulation.run()) == count
    assert simulation.bytes == count * 1000
    assert simulation.schedule.restarts > 0.03 * count
    assert simulation.schedule.retries == 0
    assert efficiency(simulation, seconds) > 0.85  # 0.87 is what doing nothing gives without the wait for the last ones


@pytest.mark.parametrize("workers", [2, 16])
@pytest.mark.parametrize("part", ["bytes_moved", "size"])
def test_a_unit_that_must_read_its_bytes_five_times_is_not_taken_for_late_and_no_other_beside_it(part, workers):
    """Whether storage takes the time, which is then in proportion to the bytes moved, or the arithmetic, and it is to the size."""
    given = [Unit(f"shard-{number:04}", bytes_moved=5000 if number % 19 == 7 else 1000) for number in range(200)]
    simulation = Simulation(given, workers, lambda unit, worker, attempt: steady(getattr(unit, part) / 100)(unit, worker, attempt))
    assert len(simulation.run()) == 200
    assert simulation.schedule.restarts == simulation.schedule.copies == 0
    assert set(simulation.tries.values()) == {1}


def test_a_unit_of_much_effort_that_takes_too_long_even_for_that_is_late():
    given = [Unit("long", bytes_moved=5000), *units(40)]
    simulation = Simulation(
        given, 2, lambda unit, worker, attempt: unit.bytes_moved / 100 * (4 if (unit.file, attempt) == ("long", 0) else 1)
    )
    simulation.run()
    assert simulation.tries.pop("long") == 2
    assert set(simulation.tries.values()) == {1}


def test_units_of_the_most_effort_come_first_and_others_in_the_order_given():
    given = [Unit("a"), Unit("b", bytes_moved=500), Unit("c", size=10, bytes_moved=5000), Unit("d")]
    results = Simulation(given, 1, lambda unit, worker, attempt: 1).run()
    assert [result.split()[0] for result in results] == ["c", "a", "d", "b"]


def test_a_unit_that_is_late_when_all_others_are_done_is_made_by_another_worker_too():
    simulation = Simulation(units(40), 4, lambda unit, worker, attempt: 1000 if unit.file == "shard-0039" and attempt == 0 else 10)
    assert len(simulation.run()) == 40
    assert simulation.schedule.copies == 1
    assert simulation.now < 90 + 20 + 10 + STOP_SECONDS + 1, "late when it took twice the time; stopped, and ended when it did not"
    assert simulation.tries["shard-0039"] == 2


def test_a_copy_that_is_late_too_gets_a_copy_itself_and_no_more():
    simulation = Simulation(units(40), 4, lambda unit, worker, attempt: 200 if unit.file == "shard-0039" else 10)
    simulation.run()
    assert simulation.schedule.copies == 2
    assert simulation.now < 90 + 200 + 10


def test_a_copy_goes_to_another_node_and_to_a_worker_that_is_not_slow():
    chosen = []

    def slow_units(unit, worker, attempt):
        if unit.file == "shard-0058":
            chosen.append(worker)
            return 100 if attempt == 0 else 10
        return 30 if worker == 5 else 10

    Simulation(units(60), 6, slow_units).run()
    first, second = chosen
    assert first // 2 != second // 2
    assert second != 5


def test_a_worker_that_is_slow_as_a_rule_keeps_its_share_until_others_are_idle():
    simulation = Simulation(units(500), 16, lambda unit, worker, attempt: 120 if worker == 3 else 30)
    results = simulation.run()
    assert sum(result.endswith(" by 3") for result in results) >= 5
    assert simulation.schedule.restarts <= 2
    assert 500 * 30 / (15 + 1 / 4) / simulation.now > 0.9


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_when_everything_becomes_slow_nothing_is_given_up(seed):
    simulation = Simulation(units(500), 32, lambda unit, worker, attempt: 30 if simulation.now < 150 else 120, seed=seed)
    simulation.run()
    assert simulation.schedule.restarts <= 32 // 8


def test_a_unit_that_waits_behind_a_slow_one_moves_to_an_idle_worker():
    simulation = Simulation(units(8), 2, lambda unit, worker, attempt: 60 if unit.file == "shard-0000" and attempt == 0 else 1)
    assert len(simulation.run()) == 8
    assert set(simulation.tries.values()) <= {1, 2}
    assert simulation.now < 10


def test_workers_that_die_cost_the_unit_they_were_at():
    simulation = Simulation(units(300), 16, steady(10))
    for number in range(5):
        simulation.at(15.0 + 20 * number, simulation.lose, simulation.workers[number])
    assert len(simulation.run()) == 300
    assert simulation.schedule.retries == 5
    assert sum(simulation.tries.values()) == 305
    assert simulation.bytes == 300 * 1000


def test_a_worker_whose_node_is_about_to_go_ends_what_it_can_and_begins_nothing():
    simulation = Simulation(units(300), 4, steady(10))
    left = {}

    def announce(worker, when):
        simulation.schedule.leaving(simulation.workers[worker], simulation.now + when)
        left[worker] = simulation.now

    simulation.at(35.0, announce, 0, 100.0)
    simulation.at(55.0, announce, 1, float("inf"))
    made = simulation.run()
    assert len(made) == 300
    assert simulation.schedule.restarts == simulation.schedule.retries == 0
    assert set(simulation.tries.values()) == {1}, "what was under way was finished, what waited was withdrawn"
    assert sum(result.endswith(" by 0") for result in made) == 4
    assert sum(result.endswith(" by 1") for result in made) == 6


def test_what_cannot_be_finished_before_its_node_goes_is_made_elsewhere_at_once():
    simulation = Simulation(units(100), 4, lambda unit, worker, attempt: 100 if unit.file == "shard-0048" and attempt == 0 else 10)
    late = {}

    def announce():
        worker = next(w for w, (attempt, _, _) in simulation.begun.items() if attempt.task.unit.file == "shard-0048")
        late["worker"] = simulation.workers.index(worker)
        simulation.schedule.leaving(worker, simulation.now + LEAVE_SECONDS + 5)

    simulation.at(122.0, announce)
    made = simulation.run()
    assert simulation.tries["shard-0048"] == 2
    assert not next(result for result in made if result.startswith("shard-0048")).endswith(f" by {late['worker']}")
    assert simulation.schedule.restarts == 1
    assert simulation.schedule.meter.total(RETRIES) == {"leaving": 1}
    assert simulation.schedule.meter.total(SHARDS) == {"made": 100, "stopped": 1}


def test_losing_nodes_is_not_held_against_a_unit_until_it_ends_node_after_node():
    schedule = Schedule(units(1), lambda size: None)
    for losses in range(1, NODE_LOSSES + 1):
        worker = Worker(address="10.0.0.9")
        schedule.joined(worker)
        schedule.orders(0.0)
        schedule.progressed(worker, worker.attempts[0].ticket, 10, 40, 1.0, 1.0, read=30)
        if losses < NODE_LOSSES:
            schedule.lost(worker, "gone", with_node=True)
    with pytest.raises(EngineError, match=r"shard-0000: 20 workers were lost while at it, the last on 10\.0\.0\.9: gone"):
        schedule.lost(worker, "gone", with_node=True)
    assert schedule.bytes_read_again == NODE_LOSSES * 30


class ByHand:
    """A schedule whose events a test makes itself: two workers, a unit under way for long, and its copy."""

    def __init__(self):
        self.bytes = 0
        self.schedule = Schedule([Unit("done-1"), Unit("done-2"), Unit("late")], self.advance)
        self.first, self.second = Worker(node="a"), Worker(node="b")
        for worker in (self.first, self.second):
            self.schedule.joined(worker)
        self.started = {}
        self.step(0.0)
        self.schedule.finished(self.started["done-1"][0], "1", 10.0)
        self.step(10.0)
        self.schedule.finished(self.started["done-2"][0], "2", 10.0)
        self.step(10.0)
        self.step(100.0)
        assert [self.schedule.results.popleft() for _ in range(2)] == ["1", "2"]
        self.original, self.copy = self.started["late"]

    def advance(self, size):
        self.bytes += size

    def step(self, now):
        orders = self.schedule.orders(now)
        for order, attempt in orders:
            if order is Order.START:
                self.started.setdefault(attempt.task.unit.file, []).append(attempt)
        return orders

    def over(self):
        assert list(self.schedule.results) == [self.schedule.results[0]]
        assert self.schedule.unfinished == 0
        assert self.bytes == 3000
        assert self.step(200.0) == []
        return self.schedule.results[0]


def test_a_result_counts_when_the_loser_has_stopped():
    hand = ByHand()
    hand.schedule.finished(hand.copy, "copy", 110.0)
    assert hand.step(110.0) == [(Order.CANCEL, hand.original)]
    assert not hand.schedule.results
    error = Interrupted("stopped")
    error.bytes_read = 7
    hand.schedule.failed(hand.original, error, 111.0)
    assert hand.over() == "copy"
    assert hand.schedule.bytes_read_again == 7
    assert hand.schedule.retries == 0


@pytest.mark.parametrize("winner", ["original", "copy"])
def test_of_two_that_finish_the_later_result_counts(winner):
    hand = ByHand()
    loser = "copy" if winner == "original" else "original"
    hand.schedule.finished(getattr(hand, winner), winner, 110.0)
    hand.schedule.finished(getattr(hand, loser), loser, 110.1)
    assert hand.over() == loser


def test_the_loser_may_fail_in_any_way():
    hand = ByHand()
    hand.schedule.finished(hand.copy, "copy", 110.0)
    hand.schedule.failed(hand.original, NonFinite("what it read was damaged"), 111.0)
    assert hand.over() == "copy"


def test_a_loser_that_does_not_stop_is_ended():
    hand = ByHand()
    hand.schedule.finished(hand.copy, "copy", 110.0)
    hand.step(110.0)
    assert hand.step(110.0 + STOP_SECONDS) == []
    assert hand.step(110.5 + STOP_SECONDS) == [(Order.KILL, hand.original)]
    assert hand.step(120.0 + STOP_SECONDS) == []
    assert not hand.schedule.results
    hand.schedule.lost(hand.first if hand.original.worker is hand.first else hand.second, "killed")
    assert hand.over() == "copy"
    assert hand.schedule.retries == 0


def test_when_one_of_two_attempts_ends_badly_the_other_goes_on():
    for bad in ("original", "copy"):
        hand = ByHand()
        hand.schedule.failed(getattr(hand, bad), TransientStorageError("throttled"), 105.0)
        good = hand.copy if bad == "original" else hand.original
        hand.schedule.finished(good, "good", 110.0)
        assert hand.over() == "good"
    for dead in ("original", "copy"):
        hand = ByHand()
        hand.schedule.lost(getattr(hand, dead).worker, "gone")
        good = hand.copy if dead == "original" else hand.original
        hand.schedule.finished(good, "good", 110.0)
        assert hand.over() == "good"
        assert hand.schedule.retries == 1


def test_when_both_attempts_end_badly_the_unit_starts_again():
    hand = ByHand()
    hand.schedule.progressed(hand.copy.worker, hand.copy.ticket, 500, 500, 5.0, 105.0)
    assert hand.bytes == 2500
    hand.schedule.lost(hand.original.worker, "gone")
    hand.schedule.failed(hand.copy, TransientStorageError("throttled"), 106.0)
    assert hand.bytes == 2000
    assert hand.schedule.retries == 2
    assert hand.step(107.0) == []
    [(order, attempt)] = hand.step(112.0)
    assert order is Order.START
    hand.schedule.finished(attempt, "third", 120.0)
    assert hand.over() == "third"


def test_a_unit_that_ends_worker_after_worker_is_given_up_and_one_that_waited_behind_it_is_not():
    schedule = Schedule(units(9), lambda size: None)
    for deaths in range(1, 6):
        worker = Worker()
        schedule.joined(worker)
        schedule.orders(0.0)
        assert [attempt.task.unit.file for attempt in worker.attempts] == ["shard-0000", "shard-0001"]
        if deaths < 5:
            schedule.lost(worker, "out of memory")
    assert schedule.retries == 4
    with pytest.raises(EngineError, match=r"shard-0000: 5 workers were lost.*out of memory.*--memory"):
        schedule.lost(worker, "out of memory")
