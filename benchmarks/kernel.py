"""The arithmetic of a tile on one thread and two, against a copy of the same bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Figures
from paramdelta_dist.kernels.sum_cpu import add_deltas
from paramdelta_dist.kernels.torch_views import values_of

TILE = 4 << 20
"""Bytes of each buffer of a tile, as on local disks."""
SMALL = 256 << 10
"""Bytes of a buffer so small that a whole tile stays in the caches."""
WORKING_SET = 512 << 20
"""Bytes of all tiles of a thread that are taken in turn: far more than any cache."""
SECONDS = 0.5
"""What one measurement takes at least."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DELTAS = (1, 2, 8)
THREADS = (1, 2)

Tile = list[torch.Tensor]
"""Output, base, and post and old of each delta."""


def measure() -> dict[str, Any]:
    cases = []
    for dtype in DTYPES:
        for deltas in DELTAS:
            for place, size in (("memory", TILE), ("cache", SMALL)):
                cases += [_case(dtype, deltas, threads, place, size) for threads in THREADS if threads <= len(os.sched_getaffinity(0))]
    plain = next(case for case in cases if (case["dtype"], case["deltas"], case["threads"], case["from"]) == ("bfloat16", 1, 1, "memory"))
    return {
        "what": {"tile": TILE, "working_set": WORKING_SET, "copy": "torch copy_ of as many bytes as the merge reads and writes, in turn"},
        "cases": cases,
        "targets": [harness.target("of the speed of a copy, bfloat16, 1 delta, 1 thread, from memory", plain["ratio"], at_least=0.6)],
    }


def show(document: dict[str, Any]) -> None:
    rows = [
        (
            f"{case['dtype']}, {case['deltas']} delta{'s' * (case['deltas'] > 1)}",
            case["threads"],
            case["from"],
            case["merge"],
            case["copy"],
            case["ratio"],
        )
        for case in document["cases"]
    ]
    harness.table(("", "threads", "from", "merge GB/s", "copy GB/s", "ratio"), rows)
    print(f"  medians of {harness.ROUNDS} in turn; GB of bytes read and written, in tiles of {TILE >> 20} MiB a buffer")


def _case(dtype: torch.dtype, deltas: int, threads: int, place: str, size: int) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    harness.progress(f"{name}, {deltas} deltas, {threads} threads, from {place}")
    working_set = WORKING_SET if place == "memory" else 1
    teams = [_tiles(dtype, deltas, size, working_set) for _ in range(threads)]
    moved = sum(tensor.nbytes for tensor in teams[0][0])

    def merge(number: int, turn: int) -> None:
        out, base, *others = map(values_of, teams[number][turn % len(teams[number])])
        add_deltas(out, base, list(zip(others[0::2], others[1::2], strict=True)), [1.0] * deltas)

    def copy(number: int, turn: int) -> None:  # posts become olds, which is all the same to the time of a merge
        out, base, *others = teams[number][turn % len(teams[number])]
        for to, of in zip([out, *others[0::2]], [base, *others[1::2]], strict=True):
            to.copy_(of)

    merge(0, 0)  # which compiles it
    runs = {"merge": lambda: _rate(merge, threads, moved), "copy": lambda: _rate(copy, threads, moved)}
    medians = harness.medians(harness.in_turn(runs))
    merged, copied = medians["merge"]["rate"], medians["copy"]["rate"]
    return {
        "dtype": name,
        "deltas": deltas,
        "threads": threads,
        "from": place,
        "merge": round(merged, 3),
        "copy": round(copied, 3),
        "ratio": round(merged / copied, 3),
    }


def _tiles(dtype: torch.dtype, deltas: int, size: int, working_set: int) -> list[Tile]:
    """As many tiles as fill the working set, and at least one; every buffer written to, with numbers as in a model."""
    elements, buffers = size // dtype.itemsize, 2 + 2 * deltas
    values = 0.02 * torch.randn(elements + 4096, generator=torch.Generator().manual_seed(0))
    return [
        [values[17 * buffer : 17 * buffer + elements].to(dtype, copy=True) for buffer in range(buffers)]
        for _ in range(max(1, working_set // (size * buffers)))
    ]


def _rate(work: Callable[[int, int], None], threads: int, moved: int) -> Figures:
    """GB/s of all threads together; `work(thread, turn)` moves so many bytes."""

    def one(number: int) -> tuple[int, float]:
        torch.set_num_threads(1)  # as the package does: parallelism is between tiles
        turns, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            work(number, turns)
            turns += 1
        return turns, time.perf_counter() - began

    with ThreadPoolExecutor(threads) as pool:
        done: Sequence[tuple[int, float]] = list(pool.map(one, range(threads)))
    return {"rate": sum(turns * moved / seconds for turns, seconds in done) / 1e9}
