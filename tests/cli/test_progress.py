"""What is told of work under way: how fast it goes with the workers there are, and how long it will take."""

import json

import pytest

from paramdelta_dist.cli.progress import Pace, ProgressLines
from paramdelta_dist.driver.observer import Details
from paramdelta_dist.engine.executor import Counts


class Clock:
    """A monotonic clock, set by hand."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines(capsys, event="progress"):
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [each for each in told if each["event"] == event]


def work(lines, clock, *, seconds, rate):
    for _ in range(seconds):
        clock.now += 1
        lines.advanced(rate)


def test_a_wait_for_workers_does_not_count_as_time_that_the_work_takes(clock, capsys):
    told = ProgressLines(clock=clock)
    told.started("merging", 100_000, details=Details(), counts=lambda: Counts(4, 0))
    clock.now += 600
    work(told, clock, seconds=20, rate=1000)
    first, *_, last = lines(capsys)
    assert (first["bytes_per_second"], first["seconds_left"]) == (None, None), "nothing can be said of a first byte"
    assert last["bytes_per_second"] == 1000
    assert last["seconds_left"] == (last["bytes_total"] - last["bytes_done"]) / 1000


def test_what_was_in_place_before_is_not_speed(clock, capsys):
    told = ProgressLines(clock=clock)
    told.started("merging", 100_000, done=50_000, details=Details())
    work(told, clock, seconds=30, rate=1000)
    assert [each["bytes_per_second"] for each in lines(capsys)] == [1000] * 3


def test_time_left_follows_the_workers_that_come_and_a_gap_without_any_is_soon_forgotten(clock, capsys):
    workers = 1
    told = ProgressLines(clock=clock)
    told.started("merging", 10_000_000, details=Details(), counts=lambda: Counts(workers, 0))
    work(told, clock, seconds=600, rate=100)
    workers = 10
    work(told, clock, seconds=90, rate=1000)
    assert lines(capsys)[-1]["bytes_per_second"] == 1000
    clock.now += 900
    work(told, clock, seconds=120, rate=1000)
    assert lines(capsys)[-1]["bytes_per_second"] == 1000


def test_while_there_is_no_worker_that_is_said_and_no_time_is_promised(clock, capsys):
    told = ProgressLines(clock=clock)
    told.started("merging", 10_000, details=Details(), counts=lambda: Counts(0, 2))
    for _ in range(15):
        clock.now += 2
        told.advanced(0)
    found = lines(capsys)
    assert len(found) == 3
    for each in found:
        assert {name: each[name] for name in ("workers", "retries", "bytes_per_second", "seconds_left", "bytes_done")} == {
            "workers": 0, "retries": 2, "bytes_per_second": None, "seconds_left": None, "bytes_done": 0,
        }  # fmt: skip


def test_a_piece_that_is_made_again_makes_no_negative_speed(clock, capsys):
    told = ProgressLines(clock=clock)
    told.started("merging", 100_000, details=Details())
    work(told, clock, seconds=9, rate=1000)
    clock.now += 1
    told.advanced(-9000)
    [only] = lines(capsys)
    assert (only["bytes_per_second"], only["seconds_left"]) == (0, None)


def test_a_pace_remembers_a_minute_and_no_more():
    pace = Pace()
    for second in range(100_000):
        pace.reached(second * 10, float(second) / 10)
    assert len(pace._marks) < 70
    assert pace.rate == pytest.approx(100)
