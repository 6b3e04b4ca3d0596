"""Decides from headers alone what a merge will do: layout, spans, tiles, memory. Pure functions; knows no I/O and no torch."""

from paramdelta_dist.planning.build import build_plan
from paramdelta_dist.planning.memory import WorkerMemory, plan_memory
from paramdelta_dist.planning.plan import MergePlan, Shard
from paramdelta_dist.planning.resolve import MethodCall, Term

__all__ = ["MergePlan", "MethodCall", "Shard", "Term", "WorkerMemory", "build_plan", "plan_memory"]
