"""Executors that are given to a run: they do what the local one does, and a test comes in between."""

from contextlib import contextmanager
from functools import partial

from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.engine.local import LocalExecutor
from paramdelta_dist.storage.retry import DEFAULT_RETRIES


class Acting(LocalExecutor):
    """Calls `around(function, job, unit, advance=…, cancelled=…)` in place of the function, and `after()` when all units are done."""

    def __init__(self, workers, around, after, retries):
        super().__init__(workers, retries=retries)
        self._around, self._after = around, after

    def run(self, function, job, units, *, advance):
        yield from super().run(partial(self._around, function), job, units, advance=advance)
        self._after()


def plainly(function, job, unit, **asked):
    return function(job, unit, **asked)


def acting(around=plainly, *, after=lambda: None, retries=DEFAULT_RETRIES, workers=1, **allowed):
    """Resources whose executor is an `Acting` one."""

    @contextmanager
    def opened(engine, workers, *, local_workers, **_):
        assert engine == "local"
        yield Acting(local_workers, around, after, retries)

    return Resources(workers=workers, opener=opened, **allowed)


def on_ray(*, memory=None, **options):
    """Opens an executor on Ray with these options, whose workers ask for `memory` bytes, if given, and not for what the plan says."""

    @contextmanager
    def opened(engine, workers, *, local_workers, memory=memory, patience=None, **_):
        from paramdelta_dist.engine.ray.executor import RayExecutor

        assert engine == "ray"
        executor = RayExecutor(workers, **{"memory": memory, "patience": patience, **given})
        try:
            yield executor
        finally:
            executor.close()

    given = options if memory is None else {**options, "memory": memory}
    return opened


def ends_after(count, error, *, only=("run_shard",)):
    """Units of these functions fail after `count` of them were finished, as if the process had ended."""
    made = []

    def around(function, job, unit, **asked):
        if function.__name__ not in only:
            return function(job, unit, **asked)
        if len(made) == count:
            raise error
        result = function(job, unit, **asked)
        made.append(unit.file)
        return result

    return around
