"""Protocol of a probe that measures tiles during a merge, shard by shard, without touching the bytes written."""

from __future__ import annotations

from typing import Any, Protocol

from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.shards.reader import FetchedTile


class ShardProbe(Protocol):
    """Measures the tiles of one shard."""

    def measure(self, fetched: FetchedTile, made: memoryview) -> Any:
        """Measure a tile whose inputs are there, and the bytes that were made of them; called by several
        threads, before its memory is used again."""
        ...

    def add(self, seen: Any, size: int) -> None:
        """Take what `measure` saw in a tile of `size` bytes; asked in the order of the tiles."""
        ...

    def note(self) -> tuple[str, bytes]:
        """Name and content of the small file that is left beside the output, once the shard is done."""
        ...


class Probe(Protocol):
    """Travels to workers with the context, and measures every shard there."""

    def begin(self, shard: Shard) -> ShardProbe: ...
