"""What will be done, decided from headers alone: layout, tiles, memory. Pure functions; no I/O, no torch."""

from paramdelta_dist.planning.memory import WorkerMemory, plan_memory
from paramdelta_dist.planning.plan import MergePlan, Shard, Term, build_plan

__all__ = ["MergePlan", "Shard", "Term", "WorkerMemory", "build_plan", "plan_memory"]
