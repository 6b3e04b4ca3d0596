"""The local executor: a thread a worker, in this process. torch, the stores and the digests release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from paramdelta_dist.engine.executor import Counts, Function, J, R, U
from paramdelta_dist.engine.run_stats import RunStats
from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.storage.retry import DEFAULT_RETRIES, RetryPolicy
from paramdelta_dist.threads import Threads


class LocalExecutor:
    """Runs units in threads. With one worker it is the reference: one after the other, in order."""

    def __init__(self, workers: int, *, retries: RetryPolicy = DEFAULT_RETRIES) -> None:
        self.stats, self._retries = RunStats(workers, nodes=1), retries
        self._lock = threading.Lock()

    def counts(self) -> Counts:
        return Counts(self.stats.workers, self.stats.retries)

    def _count(self, more: RunStats) -> None:
        with self._lock:
            self.stats += more

    def run(self, function: Function[R], job: J, units: Sequence[U], *, advance: Callable[[int], None]) -> Generator[R, None, None]:
        stop = threading.Event()

        def work(unit: U) -> R:
            attempts = 0

            def once() -> R:
                nonlocal attempts
                attempts += 1
                if attempts > 1:
                    self._count(RunStats(retries=1, causes={"error": 1}))
                done = 0

                def count(size: int) -> None:
                    nonlocal done
                    done += size
                    advance(size)

                try:
                    return function(job, unit, advance=count, cancelled=stop.is_set)
                except ParamDeltaError as error:
                    self._count(RunStats(bytes_read_again=error.bytes_read))
                    advance(-done)
                    raise

            return self._retries.retrying(once, what=unit.file, sleep=stop.wait)

        with Threads(self.stats.workers, thread_name_prefix="worker") as pool:
            running: set[Future[R]] = {pool.submit(work, unit) for unit in units}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                stop.set()
                for future in running:
                    future.cancel()
