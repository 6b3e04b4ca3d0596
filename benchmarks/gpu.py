"""On a GPU: the fused kernel against a copy in device memory, and whole merges from host memory against what the link carries.

Everything is measured in turn in one run, and medians are compared. Where there is no CUDA device, one line says so.
"""

from __future__ import annotations

import mmap
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

ROUNDS = 5
KERNEL_BYTES = 2 << 30
"""What the inputs and the output of one launch hold together: far more than any cache."""
RUN = 16 << 20
"""Bytes of the output of one merge in the pipeline: a tile of a remote checkpoint."""
RUNS = 48
"""Merges of one measurement of the pipeline, shared out among the threads."""


def show(document: dict[str, Any]) -> None:
    if "skipped" in document:
        print(f"  skipped: {document['skipped']}")
        return
    rows = [
        (name, *([row["fused"], row["fused"] / row["copy"]] if row["fused"] else ["", ""]), row["copy"], row["torch"])
        for name, row in document["kernel"].items()
    ]
    harness.table((f"{document['device']}: kernel", "fused GB/s", "of copy", "copy GB/s", "torch GB/s"), rows)
    rows = [(name, row["merge"], row["merge"] / row["link"], row["link"]) for name, row in document["pipeline"].items()]
    harness.table(("host, device, host", "GB/s", "of link", "link GB/s"), rows)
    print(f"  medians of {ROUNDS} in turn; GB of bytes read and bytes written")


def measure() -> dict[str, Any]:
    """GB/s of the kernel and the pipeline beside their limits, or under `skipped` why there are none."""
    import torch

    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device here"}
    torch.set_num_threads(1)
    kernel = {
        f"{str(dtype).removeprefix('torch.')}, {count} delta{'s' * (count > 1)}": measure_kernel(dtype, count)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for count in (1, 2, 8)
    }
    pipeline = {
        f"{threads} thread{'s' * (threads > 1)}, {'pinned' if pinned else 'plain'} memory": row
        for pinned in (True, False)
        for threads, row in measure_pipeline(pinned=pinned).items()
    }
    fused = [row["fused"] / row["copy"] for row in kernel.values() if row["fused"]]
    return {
        "device": torch.cuda.get_device_name(),
        "rounds": ROUNDS,
        "kernel": kernel,
        "pipeline": pipeline,
        "targets": [
            harness.target("of a device copy, the slowest fused kernel", min(fused, default=0.0), at_least=0.9),
            harness.target("of the link, the best pipeline", max(row["merge"] / row["link"] for row in pipeline.values()), at_least=0.85),
        ],
    }


def in_turn(functions: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Median seconds of each function, which returns its seconds, after one call that does not count."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            seconds[name].append(function())
    return {name: statistics.median(each) for name, each in seconds.items()}


def on_device(work: Callable[[], object]) -> Callable[[], float]:
    """`work`, timed by the device."""
    import torch

    def timed() -> float:
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        began.record()
        work()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3

    return timed


def measure_kernel(dtype: Any, count: int) -> dict[str, float | None]:
    """GB/s for `count` deltas, each with a base of its own: fused, in plain torch, and of a copy of as many bytes."""
    import torch

    from paramdelta_dist.kernels.sum_torch import DEVICE_PADDING, Merger

    slots = 2 * count + 2
    n = KERNEL_BYTES // (slots * dtype.itemsize) // DEVICE_PADDING * DEVICE_PADDING
    pitch, moved = n * dtype.itemsize, slots * n * dtype.itemsize
    arena = torch.empty(moved, dtype=torch.uint8, device="cuda")
    views = [arena[slot * pitch :][:pitch].view(dtype) for slot in range(slots)]
    for tensor in views:
        tensor.normal_()
    pairs = tuple((1 + 2 * delta, 2 + 2 * delta) for delta in range(count))
    weights = (1.0,) * count
    plain = Merger(weights, torch.device("cuda"))
    deltas = [(views[post], views[old]) for post, old in pairs]
    source, target = arena[: moved // 2], torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    functions = {
        "copy": on_device(lambda: target.copy_(source)),
        "torch": on_device(lambda: plain.merge(views[-1], views[0], deltas)),
    }
    try:
        from paramdelta_dist.kernels.sum_triton import Sum, add_deltas
    except ImportError:
        pass
    else:
        what = Sum((dtype,) * slots, pairs, weights)
        magnitudes, tally = what.magnitudes(torch.device("cuda")), torch.zeros(2, dtype=torch.int64, device="cuda")
        functions["fused"] = on_device(lambda: add_deltas(arena, pitch, n, what, magnitudes, tally))
    rates = {name: moved / seconds / 1e9 for name, seconds in in_turn(functions).items()}
    return {"fused": rates.get("fused"), "torch": rates["torch"], "copy": rates["copy"]}


def measure_pipeline(*, pinned: bool) -> dict[int, dict[str, float]]:
    """GB/s of merges of bf16 runs with one delta by 1 to 4 threads, and of copies alone, three up for one down, in pinned memory."""
    import torch

    from paramdelta_dist.kernels.sum_gpu import DeviceMerger, pin, unpin

    buffers = [[mmap.mmap(-1, RUN) for _ in range(4)] for _ in range(4)]
    every = [buffer for each in buffers for buffer in each]
    for buffer in every:
        buffer.write(b"\x3c" * RUN)  # numbers, and memory that is there
        if pinned:
            pin(buffer)
    runs = [[torch.frombuffer(buffer, dtype=torch.bfloat16) for buffer in each] for each in buffers]
    mergers = [DeviceMerger([1.0], torch.device("cuda")) for _ in runs]

    def merge(threads: int) -> float:
        def work(number: int) -> None:
            base, post, old, out = runs[number]
            for _ in range(RUNS // threads):
                mergers[number].merge(out, base, [(post, old)])

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - began

    up, down = (torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in (3 * RUN, RUN))
    there, back = (torch.empty(size, dtype=torch.uint8, device="cuda") for size in (3 * RUN, RUN))
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]

    def link() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(RUNS):
            with torch.cuda.stream(streams[0]):
                there.copy_(up, non_blocking=True)
            with torch.cuda.stream(streams[1]):
                down.copy_(back, non_blocking=True)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    functions: dict[str, Callable[[], float]] = {"link": link}
    functions |= {str(threads): lambda threads=threads: merge(threads) for threads in (1, 2, 3, 4)}
    rates = {name: 4 * RUN * RUNS / seconds / 1e9 for name, seconds in in_turn(functions).items()}
    if pinned:
        for buffer in every:
            unpin(buffer)
    return {threads: {"merge": rates[str(threads)], "link": rates["link"]} for threads in (1, 2, 3, 4)}
