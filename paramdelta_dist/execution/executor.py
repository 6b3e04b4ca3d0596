"""What runs shards: one function over many of them, results in the order of completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from paramdelta_dist.execution.receipts import Receipt
from paramdelta_dist.execution.shard import Job
from paramdelta_dist.planning.plan import Shard


class Executor(Protocol):
    """Runs `run_shard` over shards somewhere. Knows nothing of what a shard computes."""

    workers: int
    """How many shards run at a time."""
    retries: int
    """Shards that had to be started again, so far."""

    def run(self, job: Job, shards: Sequence[Shard], *, advance: Callable[[int], None]) -> Iterator[Receipt]:
        """Receipts as shards finish. `advance` is told output bytes as they are made, and taken back (negative) when
        a shard starts again.

        An exception of a shard stops the others, leaves finished ones in place, and comes out; so does closing the
        iterator.
        """
        ...
