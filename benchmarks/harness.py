"""Running things in turn, taking their figures from outside, and keeping what came of it. Linux only, for /proc.

Machines are noisy, so what is compared runs in turn, and ratios of medians count, not times.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
LOOK_MILLISECONDS = 20
"""Between two looks at the memory of a process, at most; the high-water mark keeps what happened in between."""

Figures = dict[str, float]


def cache() -> Path:
    """Where checkpoints and environments are kept between runs, and outputs are written: one file system for all."""
    folder = Path(os.environ.get("PARAMDELTA_BENCHMARKS") or Path(tempfile.gettempdir(), "paramdelta-benchmarks"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Finished:
    """A process that ended well."""

    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """Processor seconds, user and system, of it and the children it waited for."""
    peak: int
    """Most memory in bytes: the high-water marks of the processes of its tree that lived at the same time, added up."""
    stdout: str

    @property
    def figures(self) -> Figures:
        return {"wall": self.wall, "cpu": self.cpu, "peak": self.peak}


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command in the repository to its end. Raises RuntimeError with the end of what it said when it fails."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        began, peak = time.monotonic(), 0
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            ended = select.poll()
            handle = os.pidfd_open(process.pid)
            ended.register(handle, select.POLLIN)
            pause = 1
            while not ended.poll(pause):
                pause = min(2 * pause, LOOK_MILLISECONDS)
                peak = max(peak, sum(high_water(pid) for pid in tree(process.pid)))
            wall = time.monotonic() - began
            os.close(handle)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if usage.ru_maxrss << 10 > high_water(os.getpid()):  # then it is not what was inherited from this process
                peak = max(peak, usage.ru_maxrss << 10)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        stdout.seek(0)
        stderr.seek(0)
        said = stdout.read()
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{(said + stderr.read())[-3000:]}")
    return Finished(wall, usage.ru_utime + usage.ru_stime, peak, said)


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        except OSError:  # it has ended
            continue
    return found


def high_water(pid: int) -> int:
    """Peak resident bytes of a process since its exec; not ru_maxrss, which begins at that of the process that forked it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def settle(files: Iterable[Path] = ()) -> None:
    """The same start for each run: nothing dirty from the one before, and these inputs in the page cache."""
    os.sync()
    buffer = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def in_turn(runs: Mapping[str, Callable[[], Figures]], *, rounds: int = ROUNDS) -> dict[str, list[Figures]]:
    """Figures of each run in each round: a b c, a b c, … so that a slow minute of the machine meets them all."""
    measured: dict[str, list[Figures]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, each in runs.items():
            progress(f"round {number + 1} of {rounds}: {name}")
            measured[name].append(each())
    progress("")
    return measured


def progress(text: str) -> None:
    """Show on a terminal what is under way, in one line that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}", end="\r", file=sys.stderr, flush=True)


def medians(measured: Mapping[str, Sequence[Figures]]) -> dict[str, Figures]:
    return {name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in measured.items()}


def target(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """Something to reach, and whether it was."""
    reached = value >= at_least if at_least is not None else value <= (at_most or 0)
    return {"what": what, "value": round(value, 3), "at_least": at_least, "at_most": at_most, "reached": reached}


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; floats with two digits, the first column to the left."""
    lines = [list(headings), *([f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        print(
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def show_targets(targets: Iterable[Mapping[str, Any]]) -> None:
    for each in targets:
        sign, bound = ("≥", each["at_least"]) if each["at_least"] is not None else ("≤", each["at_most"])
        print(f"  {'reached' if each['reached'] else 'MISSED '}  {each['what']}: {each['value']:g} ({sign} {bound:g})")


def write(name: str, document: Mapping[str, Any]) -> Path:
    """Keep a result with how it was made."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about(name), **document}, indent=1) + "\n")
    return path


def about(name: str) -> dict[str, Any]:
    """Command, date, commit, versions and machine."""
    return {
        "command": f"python -m benchmarks {name}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"),
        "versions": {"python": platform.python_version()}
        | {
            each: found
            for each in ("paramdelta-dist", "torch", "numpy", "obstore", "s3fs", "ray", "safetensors")
            if (found := _version(each))
        },
        "machine": {
            "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory": int((_line("/proc/meminfo", "MemTotal") or "0").split()[0]) << 10,
            "kernel": platform.release(),
        },
    }


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _line(path: str, key: str) -> str | None:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
