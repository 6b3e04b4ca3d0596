"""The local executor: a thread a worker, in this process. torch, the stores and the digests release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from paramdelta_dist.engine.executor import Function, J, R, U
from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.storage.retry import retrying
from paramdelta_dist.threads import Threads


class LocalExecutor:
    """Runs units in threads. With one worker it is the reference: one after the other, in order."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.nodes = 1
        self.lost = self.retries = self.copies = self.restarts = 0
        self.bytes_read_again = 0

    @property
    def causes(self) -> dict[str, int]:
        return {"error": self.retries} if self.retries else {}

    def counts(self) -> dict[str, int]:
        return {"workers": self.workers, "retries": self.retries}

    def run(self, function: Function[R], job: J, units: Sequence[U], *, advance: Callable[[int], None]) -> Generator[R, None, None]:
        stop = threading.Event()

        def work(unit: U) -> R:
            attempts = 0

            def once() -> R:
                nonlocal attempts
                attempts += 1
                self.retries += attempts > 1
                done = 0

                def count(size: int) -> None:
                    nonlocal done
                    done += size
                    advance(size)

                try:
                    return function(job, unit, advance=count, cancelled=stop.is_set)
                except ParamDeltaError as error:
                    self.bytes_read_again += error.bytes_read
                    advance(-done)
                    raise

            return retrying(once, what=unit.file, sleep=stop.wait)

        with Threads(self.workers, thread_name_prefix="worker") as pool:
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
