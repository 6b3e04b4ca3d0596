"""Resources that the caller of a verb allows, and the allocation for a plan that comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paramdelta_dist.driver.executors import Device, Engine, compute_device, open_executor
from paramdelta_dist.driver.sizing import NO_PAGE, PageMemory, plan_workers
from paramdelta_dist.planning import MergePlan, WorkerMemory

if TYPE_CHECKING:
    from paramdelta_dist.driver.executors import Opener
    from paramdelta_dist.engine.executor import Executor
    from paramdelta_dist.output.hold import Hold
    from paramdelta_dist.shards.compute import MergeContext


@dataclass(frozen=True)
class Resources:
    """Resources that the caller of a verb allows; the meaning of None is decided when the plan is known."""

    engine: Engine = "local"
    workers: int | None = None
    memory: int | None = None
    """Bytes of this process (local) or of each worker (ray)."""
    device: Device = "auto"
    patience: float | None = None
    """Seconds to wait while a cluster gives no worker at all."""
    tile_size: int | None = None
    """Bytes of a tile, whatever the memory; no user says."""
    opener: Opener = open_executor
    """Opens the executor; no user chooses another."""

    @property
    def planning_memory(self) -> int | None:
        """Bytes that this process may use to make a plan; on Ray it is not one of the workers."""
        return self.memory if self.engine == "local" else None

    def allocation(self, merge_plan: MergePlan, *, points: int = 1, writes: bool = True, page: PageMemory = NO_PAGE) -> Allocation:
        """The workers for a plan; the options and what is raised are those of `plan_workers`."""
        device = compute_device(self.device, self.engine)
        sizing = plan_workers(
            merge_plan,
            engine=self.engine,
            workers=self.workers,
            memory=self.memory,
            points=points,
            writes=writes,
            besides=page.besides,
            measuring=page.measuring,
            device=device,
        )
        return Allocation(self, sizing if self.tile_size is None else replace(sizing, tile_size=self.tile_size), device)


@dataclass(frozen=True)
class Allocation:
    """Tile size, workers and memory for one plan, and the device."""

    resources: Resources
    sizing: WorkerMemory
    device: str
    """Device on which tiles are computed: `cpu` or `cuda`."""

    def context(self, merge_plan: MergePlan, hold: Hold | None = None) -> MergeContext:
        """The context that all shards of a merge share; `hold` where they are written."""
        from paramdelta_dist.shards.compute import MergeContext

        recipe = merge_plan.recipe
        return MergeContext(
            models=merge_plan.models,
            output=recipe.output,
            storage=recipe.storage_config,
            fingerprint=merge_plan.fingerprint,
            hold=hold,
            allow_nonfinite=recipe.allow_nonfinite,
            tile_size=self.sizing.tile_size,
            tiles_in_flight=self.sizing.tiles_in_flight,
            threads=self.sizing.threads_per_shard,
            device=self.device,
        )

    @contextmanager
    def executor(self, *, idle: bool = False) -> Iterator[Executor]:
        """An executor for the work; where there is none (`idle`), no cluster is asked for workers."""
        engine: Engine = "local" if idle else self.resources.engine
        workers, memory = self.sizing.shards_at_once, self.sizing.projected
        with self.resources.opener(
            engine, self.resources.workers, local_workers=workers, memory=memory, device=self.device, patience=self.resources.patience
        ) as executor:
            yield executor
