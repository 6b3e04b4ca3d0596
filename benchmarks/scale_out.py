"""Scale-out: the real driver and Ray executor on simulated storage, where a shard is a sleep of the right length.

Each worker has a store of its own with a fixed bandwidth and latency, so a shard takes `latency + size / bandwidth`. There are
1,000 shards, and they are so short that a quiet run takes RUN_SECONDS at any number of workers. The trouble:

- slow: 5 % of the attempts at shards take 4 times as long, drawn by shard and attempt: a disk or a connection that is bad this
  once. Of the first attempts it is exactly 5 %.
- dying: 2 % of the workers, at least one, end their process in the middle of a shard, at a time spread over the run.
- both of these.
- slow workers: 2 % of the workers, at least one, take 4 times as long for everything.

Efficiency is the work of a quiet run, shared evenly among the workers, over the time from when all of them are ready to the last
result. Whole shards cannot be shared quite evenly: 1,000 on 64 workers take 16 rounds where 15.6 would do, so 0.977 is the most.
Nor can trouble be undone: 5 % at a quarter of the speed is 15 % more work, unless the slow attempts are given up. In trouble a
shard takes TROUBLED_SHARD_SECONDS at least, since nothing is done about an attempt in its first half second; so that a run does
not take TROUBLED_RUN_SECONDS then, there are fewer at 1, 4 and 16 workers.

Every run has a process and a cluster of its own. Ray's own processes share the cores with the simulated workers.

    python -m benchmarks.scale_out [--workers 4,16] [--scenarios quiet,both] [--seconds 20]
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness

WORKERS = (1, 4, 16, 64)
SCENARIOS = ("quiet", "slow", "dying")
"""By default; `both` and `slow workers` are there to be asked for."""
SHARDS = 1000
RUN_SECONDS = 30.0
SHARD_SECONDS = 0.06
"""An actor's call costs a millisecond or two, which shards of gigabytes do not notice: the least time of one."""
TROUBLED_SHARD_SECONDS = 1.0
TROUBLED_RUN_SECONDS = 45.0
LATENCY = 0.1
"""Of the time of a shard, before its first byte."""
SLOWDOWN = 4.0
SLOW_ATTEMPTS = 0.05
TROUBLED_WORKERS = 0.02
STEPS = 20
"""How often a shard reports progress and asks whether it is to stop."""
SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True)
class SimulatedShard:
    file: str
    size: int


@dataclass(frozen=True)
class SimulatedJob:
    """What every worker is told."""

    seconds: float
    """Of a quiet shard."""
    shards: int
    scenario: str
    workers: int
    board: str
    """A folder in which workers leave marks: what a real cluster has in its hardware."""


def run_simulated(
    job: SimulatedJob, shard: SimulatedShard, *, advance: Callable[[int], None], cancelled: Callable[[], bool]
) -> tuple[str, int]:
    """Take as long as the shard would, in steps, with the trouble of the scenario. The shard's name and this process's RSS."""
    from paramdelta_dist.errors import Interrupted

    board = Path(job.board)
    place = _place(board)
    slow, dies = False, None
    if job.scenario in ("slow", "both"):
        slow = _is_slow(job, shard, attempt=_taken(board, shard.file))
    if job.scenario in ("dying", "both"):
        dies = _deaths(job).get(place)
    if job.scenario == "slow workers":
        slow = place < _troubled(job.workers)
    duration = job.seconds * (SLOWDOWN if slow else 1.0)
    began = time.monotonic()
    for step in range(STEPS):
        if cancelled():
            raise Interrupted("stopped")
        due = began + duration * (LATENCY + (1 - LATENCY) * (step + 1) / STEPS)
        time.sleep(max(due - time.monotonic(), 0))
        if dies is not None and time.time() > float((board / "began").read_text()) + dies:
            os._exit(1)
        advance(shard.size // STEPS)
    return shard.file, _rss(os.getpid())


def _is_slow(job: SimulatedJob, shard: SimulatedShard, *, attempt: int) -> bool:
    if attempt > 0:
        return random.Random(f"{shard.file} {attempt}").random() < SLOW_ATTEMPTS
    return int(shard.file[-4:]) in random.Random(job.shards).sample(range(job.shards), round(job.shards * SLOW_ATTEMPTS))


def _troubled(workers: int) -> int:
    return max(1, round(workers * TROUBLED_WORKERS))


def _deaths(job: SimulatedJob) -> dict[int, float]:
    """When workers die, in seconds after the beginning, by their place."""
    draw = random.Random(job.workers)
    return {place: draw.uniform(0.1, 0.9) * job.seconds * job.shards / job.workers for place in range(_troubled(job.workers))}


_PLACES: dict[Path, int] = {}


def _place(board: Path) -> int:
    """Which worker this process is: the first to ask is 0. One that replaces a dead one gets a new number."""
    if board not in _PLACES:
        _PLACES[board] = _taken(board, "place")
    return _PLACES[board]


def _taken(board: Path, name: str) -> int:
    """How often `name` was taken before, by anyone."""
    number = 0
    while True:
        try:
            os.close(os.open(board / f"{name}.{number}", os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            number += 1


@contextmanager
def _simulated_cluster(workers: int) -> Iterator[None]:
    """A Ray on this machine that believes to have a core for each worker."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=workers,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


class _Gate:
    """Lets the executor begin with the first shard when every worker runs, and takes the time there."""

    def __init__(self, schedule: type, workers: int, board: Path) -> None:
        self.opened, self.cpu_before, self.rss_before = 0.0, 0.0, 0
        gate = self

        class Gated(schedule):  # type: ignore[misc, valid-type]
            def orders(self, now: float) -> Any:
                if not gate.opened:
                    if len(self.workers) < workers:
                        return []
                    gate.opened, gate.cpu_before, gate.rss_before = time.monotonic(), _cpu_seconds(), _rss(os.getpid())
                    (board / "began").write_text(str(time.time()))
                return super().orders(now)

        self.schedule = Gated


def run_one(workers: int, scenario: str, seconds: float) -> dict[str, Any]:
    """One run in this process, with a cluster of its own: efficiency, and what the driver needs."""
    from paramdelta_dist.engine.ray import executor as engine

    each = max(seconds * workers / SHARDS, SHARD_SECONDS if scenario == "quiet" else TROUBLED_SHARD_SECONDS)
    count = SHARDS if scenario == "quiet" else min(SHARDS, round(TROUBLED_RUN_SECONDS * workers / each))
    with tempfile.TemporaryDirectory() as folder, _simulated_cluster(workers):
        board = Path(folder)
        gate = _Gate(engine.Schedule, workers, board)
        engine.Schedule = gate.schedule  # type: ignore[misc]
        executor = engine.RayExecutor(workers, memory=1 << 20)
        job = SimulatedJob(each, count, scenario, workers, folder)
        shards = [SimulatedShard(f"shard-{number:04}", SHARD_SIZE) for number in range(count)]
        began, reported = time.monotonic(), 0
        finished: dict[str, int] = {}

        def advance(size: int) -> None:
            nonlocal reported
            reported += size

        for file, rss in executor.run(run_simulated, job, shards, advance=advance):
            finished[file] = rss
            ended, cpu, rss_after = time.monotonic(), _cpu_seconds(), _rss(os.getpid())
    assert len(finished) == count
    assert reported == count * SHARD_SIZE
    return {
        "workers": workers,
        "scenario": scenario,
        "shards": count,
        "shard_seconds": each,
        "start_seconds": gate.opened - began,
        "seconds": ended - gate.opened,
        "efficiency": each * count / workers / (ended - gate.opened),
        "retries": executor.stats.retries,
        "restarts": executor.stats.restarts,
        "copies": executor.stats.copies,
        "driver_cpu_seconds": cpu - gate.cpu_before,
        "driver_rss": rss_after,
        "driver_rss_growth": rss_after - gate.rss_before,
        "worker_rss": max(finished.values()),
    }


def measure(workers: Sequence[int] = WORKERS, scenarios: Sequence[str] = SCENARIOS, seconds: float = RUN_SECONDS) -> dict[str, Any]:
    """All the runs, one after the other; sizes in bytes, times in seconds."""
    runs = []
    for scenario in scenarios:
        for count in workers:
            command = [sys.executable, "-m", "benchmarks.scale_out", "--one", "--workers", str(count), "--scenarios", scenario]
            done = subprocess.run([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))  # what comes before is Ray, telling of dead workers
            harness.progress(f"{scenario}, {count} workers: {runs[-1]['efficiency']:.3f}")
    return {
        "runs": runs,
        "targets": [
            harness.target(
                f"efficiency, {run['scenario']}, {run['workers']} workers",
                run["efficiency"],
                at_least=0.95 if run["scenario"] == "quiet" else 0.85,
            )
            for run in runs
        ],
    }


COLUMNS = (
    ("workers", "workers", 1, ".0f"),
    ("shards", "shards", 1, ".0f"),
    ("shard s", "shard_seconds", 1, ".2f"),
    ("start s", "start_seconds", 1, ".1f"),
    ("run s", "seconds", 1, ".1f"),
    ("efficiency", "efficiency", 1, ".3f"),
    ("retries", "retries", 1, ".0f"),
    ("restarts", "restarts", 1, ".0f"),
    ("copies", "copies", 1, ".0f"),
    ("driver cpu s", "driver_cpu_seconds", 1, ".2f"),
    ("driver MiB", "driver_rss", 1 << 20, ".0f"),
    ("grown", "driver_rss_growth", 1 << 20, ".1f"),
    ("worker MiB", "worker_rss", 1 << 20, ".0f"),
)
"""Heading, key of a run, divisor, format."""


def show(document: dict[str, Any]) -> None:
    rows = [[run["scenario"], *(format(run[key] / unit, form) for _, key, unit, form in COLUMNS)] for run in document["runs"]]
    harness.table(["scenario", *(title for title, _, _, _ in COLUMNS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)))
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS, help="of a quiet run")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    workers, scenarios = [int(count) for count in arguments.workers.split(",")], arguments.scenarios.split(",")
    if arguments.one:
        from benchmarks import scale_out  # by this name it travels to the workers

        print(json.dumps(scale_out.run_one(workers[0], scenarios[0], arguments.seconds)))
    else:
        show(measure(workers, scenarios, arguments.seconds))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
