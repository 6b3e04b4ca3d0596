"""A whole object as pieces in order, a few of them read ahead: for digests, where order matters and memory must not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from paramdelta_dist.storage import Identity, Store

PIECE = 8 << 20
"""Bytes of one piece."""
AHEAD = 3
"""Pieces under way while one is looked at."""


def read_pieces(store: Store, name: str, identity: Identity) -> Iterator[memoryview]:
    """The bytes of the object that has `identity`, in order. Raises what `Store.read_range` does."""
    starts = iter(range(0, identity.size, PIECE))
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="read") as pool:

        def read(start: int) -> memoryview:
            return store.read_range(name, start, min(start + PIECE, identity.size), identity=identity)

        waiting = deque(pool.submit(read, start) for _, start in zip(range(AHEAD), starts, strict=False))
        try:
            while waiting:
                piece = waiting.popleft().result()
                if (start := next(starts, None)) is not None:
                    waiting.append(pool.submit(read, start))
                yield piece
        finally:
            for future in waiting:
                future.cancel()
