"""Executors for an engine and a device: threads of this process, or workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

from paramdelta_dist.engine.machine import cuda_available
from paramdelta_dist.errors import UsageError
from paramdelta_dist.jobs.interpreter import named_python

if TYPE_CHECKING:
    from paramdelta_dist.engine.executor import Executor

    Opener = Callable[..., AbstractContextManager[Executor]]
    """Opens an executor, given what `open_executor` is."""

Engine = Literal["local", "ray"]
Device = Literal["auto", "cpu", "cuda"]


def compute_device(device: Device, engine: Engine) -> str:
    """The device that a worker computes on. `auto` is the CPU: streaming is bound by storage, and a GPU must be asked for."""
    if device == "cuda" and engine == "local" and not cuda_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; leave the option out to compute on the CPU")
    return "cuda" if device == "cuda" else "cpu"


@contextmanager
def open_executor(
    engine: Engine, workers: int | None, *, local_workers: int, memory: int, device: str = "cpu", patience: float | None = None
) -> Iterator[Executor]:
    """`local_workers` workers here, or `workers` (None: as many as the cluster gives) of `memory` bytes on Ray."""
    if engine == "local":
        from paramdelta_dist.engine.local import LocalExecutor

        yield LocalExecutor(local_workers)
        return
    from paramdelta_dist.engine.ray.executor import RayExecutor

    executor = RayExecutor(workers, memory=memory, gpus=1 if device == "cuda" else 0, patience=patience, python=named_python())
    try:
        yield executor
    finally:
        executor.close()
