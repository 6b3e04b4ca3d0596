"""The local executor: a thread a worker, in this process. torch, the stores and the digests release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.execution.receipts import Receipt
from paramdelta_dist.execution.shard import Job, run_shard
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.storage.retry import retrying


class LocalExecutor:
    """Runs shards in threads. With one worker it is the reference: shards one after the other, in order."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.retries = 0

    def run(self, job: Job, shards: Sequence[Shard], *, advance: Callable[[int], None]) -> Iterator[Receipt]:
        stop = threading.Event()

        def make(shard: Shard) -> Receipt:
            attempts = 0

            def once() -> Receipt:
                nonlocal attempts
                attempts += 1
                self.retries += attempts > 1
                done = 0

                def count(size: int) -> None:
                    nonlocal done
                    done += size
                    advance(size)

                try:
                    return run_shard(job, shard, advance=count, cancelled=stop.is_set)
                except ParamDeltaError:
                    advance(-done)
                    raise

            return retrying(once, what=shard.file, sleep=stop.wait)

        with ThreadPoolExecutor(self.workers, thread_name_prefix="shard") as pool:
            running: set[Future[Receipt]] = {pool.submit(make, shard) for shard in shards}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                stop.set()
                for future in running:
                    future.cancel()
