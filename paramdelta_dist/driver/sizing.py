"""Sizes the workers of a plan: memory, and the number of workers there is room for."""

from __future__ import annotations

from dataclasses import dataclass

from paramdelta_dist.checkpoint.room import PLANNING
from paramdelta_dist.driver.executors import Engine
from paramdelta_dist.engine.machine import available_cores, default_memory, torch_is_for_gpus
from paramdelta_dist.errors import OverBudget, UsageError
from paramdelta_dist.methods import find_method
from paramdelta_dist.planning import MergePlan, WorkerMemory, plan_memory
from paramdelta_dist.planning.chunks import MEASURE_CHUNK
from paramdelta_dist.planning.memory import RESERVED, RESERVED_BY_RAY, TENSOR_RECORD
from paramdelta_dist.planning.merge_set import MergeSet
from paramdelta_dist.storage import PARTS_IN_FLIGHT, PIECE, PIECES_MEMORY, WRITE_MEMORY, open_store, part_size

THREADS_A_SHARD = 2
"""Threads that make tiles of one shard while there are more shards: as many as keep the one that writes it busy."""
MOST_THREADS_A_SHARD = 4
"""More would wait for the one that writes."""
TABLES = 48 << 20
"""Bytes that writing Parquet takes beside what is in the tables,"""
MEASURED_RECORD = 3 << 10
"""and what is known of one tensor and delta while they are made,"""
POINT_RECORD = 1 << 10
"""or of one tensor and point of a sweep."""
BOTH_LIBRARIES = 192 << 20
"""Bytes of a process that measures by numba, compiling included, what it makes by torch: measured 180 MB more than torch alone."""
GPU_LIBRARIES = 320 << 20
"""Bytes that importing a build of torch for GPUs takes more than one for CPUs: measured 142 MB with 2.6, 280 MB with 2.13."""
RAY_WORKER_MEMORY = 2 << 30
"""Budget of a Ray worker when none is given: enough for eight deltas, little for a node."""


def plan_workers(
    merge_plan: MergePlan,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    memory: int | None = None,
    points: int = 1,
    writes: bool = True,
    besides: int = 0,
    measuring: int = 0,
    device: str = "cpu",
) -> WorkerMemory:
    """How a merge (or, without `writes`, reading its inputs) would use this machine (local) or each worker (ray), within
    `memory` bytes of one process.

    Here, workers are threads: some make tiles of the same shard, so that a model of one file uses all of them. Those that
    were not asked for are reduced until they fit. `points` outputs are made at a time from the same reading, `besides` bytes
    are needed for something else, and `measuring` bytes in every thread that makes tiles. Raises OverBudget when they cannot.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least one is needed")
    recipe = merge_plan.recipe
    storage = recipe.storage_config
    budget = memory or (default_memory() if engine == "local" else RAY_WORKER_MEMORY)
    count = 1 if engine == "ray" else workers or available_cores()
    known = [
        len(shard.tensors) * len(merge_plan.models) * TENSOR_RECORD + sum(len(t.rows.table) for t in shard.tensors if t.rows)
        for shard in merge_plan.shards
    ]
    if writes and measuring and find_method(recipe.method).weights is None:
        besides += BOTH_LIBRARIES
    if writes and (device != "cpu" or find_method(recipe.method).weights is None) and torch_is_for_gpus():
        besides += GPU_LIBRARIES
    reserved = RESERVED + besides + (RESERVED_BY_RAY + max(known) if engine == "ray" else sum(known))
    least = _least(merge_plan, reserved, remote_output=writes and open_store(recipe.output, storage).remote) if engine == "local" else 0
    while True:
        shards = min(-(-count // THREADS_A_SHARD), len(merge_plan.shards))
        threads = min(max(1, count // shards // points), MOST_THREADS_A_SHARD)
        try:
            return plan_memory(
                merge_plan,
                find_method(recipe.method),
                budget=budget,
                shards_at_once=shards,
                threads_per_shard=threads,
                remote_inputs=any(open_store(url, storage).remote for url in merge_plan.models),
                remote_output=writes and open_store(recipe.output, storage).remote,
                reserved=reserved + shards * points * threads * measuring,
                points=points,
                least=least,
            )
        except OverBudget:
            if workers is not None or count == 1:
                raise
            count -= 1


def _least(merge_plan: MergePlan, reserved: int, *, remote_output: bool) -> int:
    """Bytes of this process before the first shard and after the last: for the plan, and for copying large files beside the weights."""
    largest = max((file.identity.size for file in merge_plan.side_files), default=0)
    if largest <= PIECE:
        return PLANNING + merge_plan.planning_memory
    writing = (PARTS_IN_FLIGHT + 2) * part_size(largest) if remote_output else WRITE_MEMORY
    return max(PLANNING + merge_plan.planning_memory, reserved + PIECES_MEMORY + writing)


@dataclass(frozen=True)
class PageMemory:
    """Memory for preparing a page; nothing where there is none."""

    besides: int = 0
    """Bytes of a process for figures of tensors, and tables of them."""
    measuring: int = 0
    """Bytes of each thread that measures what it makes."""


NO_PAGE = PageMemory()


def page_memory(merge_plan: MergePlan) -> PageMemory:
    """For the page about the deltas of a merge, or of an analysis."""
    tensors = sum(len(shard.tensors) for shard in merge_plan.shards)
    return PageMemory(TABLES + tensors * len(merge_plan.terms) * MEASURED_RECORD, _measuring(merge_plan))


def sweep_page_memory(sweep: MergeSet, engine: Engine) -> PageMemory:
    """For the page that compares the points of a sweep. Workers on Ray know one shard of each point at a time."""
    counts, points = [len(shard.tensors) for shard in sweep.reading.shards], len(sweep.points)
    whole = TABLES + sum(counts) * (MEASURED_RECORD + points * POINT_RECORD)
    return PageMemory(max(counts, default=0) * points * POINT_RECORD if engine == "ray" else whole, _measuring(sweep.reading))


def _measuring(merge_plan: MergePlan) -> int:
    """Every model, and every difference, as a chunk in float64, and a few more."""
    return (2 * len(merge_plan.models) + 8) * MEASURE_CHUNK * 8
