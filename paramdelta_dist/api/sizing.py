"""How much memory work takes, and how many workers there are room for."""

from __future__ import annotations

from paramdelta_dist.api.engines import Engine
from paramdelta_dist.errors import OverBudget, UsageError
from paramdelta_dist.execution.machine import available_cores, default_memory
from paramdelta_dist.methods import find_method
from paramdelta_dist.planning import MergePlan, WorkerMemory, plan_memory
from paramdelta_dist.planning.memory import RESERVED, RESERVED_BY_RAY, TENSOR_RECORD
from paramdelta_dist.storage import open_store

THREADS_A_SHARD = 2
"""Threads that make tiles of one shard while there are more shards: as many as keep the one that writes it busy."""
MOST_THREADS_A_SHARD = 4
"""More would wait for the one that writes."""
TABLES = 48 << 20
"""Bytes that writing Parquet takes beside what is in the tables,"""
MEASURED_RECORD = 3 << 10
"""and what is known of one tensor and delta while they are made."""
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
) -> WorkerMemory:
    """How a merge (or, without `writes`, reading its inputs) would use this machine (local) or each worker (ray), within
    `memory` bytes of one process.

    Here, workers are threads: some make tiles of the same shard, so that a model of one file uses all of them. Those that
    were not asked for are reduced until they fit. `points` outputs are made at a time from the same reading, `besides` bytes
    are needed for something else. Raises OverBudget when they cannot.
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
    reserved = RESERVED + besides + (RESERVED_BY_RAY + max(known) if engine == "ray" else sum(known))
    while True:
        shards = min(-(-count // THREADS_A_SHARD), len(merge_plan.shards))
        try:
            return plan_memory(
                merge_plan,
                find_method(recipe.method),
                budget=budget,
                workers=shards,
                threads=min(max(1, count // shards // points), MOST_THREADS_A_SHARD),
                remote_inputs=any(open_store(url, storage).remote for url in merge_plan.models),
                remote_output=writes and open_store(recipe.output, storage).remote,
                reserved=reserved,
                points=points,
            )
        except OverBudget:
            if workers is not None or count == 1:
                raise
            count -= 1


def page_memory(merge_plan: MergePlan) -> int:
    """Bytes that figures of all tensors, and tables of them, take in this process."""
    return TABLES + sum(len(shard.tensors) for shard in merge_plan.shards) * len(merge_plan.terms) * MEASURED_RECORD
