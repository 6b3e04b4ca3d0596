"""A whole object as pieces in order, a few of them read ahead: for copies and digests, where order matters and memory must not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from paramdelta_dist.errors import InputChanged, InputError
from paramdelta_dist.sizes import format_size
from paramdelta_dist.storage.store import Identity, Store
from paramdelta_dist.threads import Threads

PIECE = 8 << 20
"""Bytes of one piece."""
AHEAD = 3
"""Pieces under way while one is looked at."""
PIECES_MEMORY = (AHEAD + 1) * PIECE
"""Bytes that reading an object in pieces takes at most."""


def stream_object(store: Store, name: str, identity: Identity) -> Iterator[memoryview]:
    """The bytes of the object that has `identity`, in order. Raises what `Store.read_range` does. They may be the chunks of a
    `Store.put`: other threads read them."""
    starts = iter(range(0, identity.size, PIECE))
    with Threads(AHEAD, thread_name_prefix="read") as pool:

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


def read_whole(store: Store, name: str, identity: Identity, *, limit: int) -> bytearray:
    """All bytes of the object that has `identity`: those that were there when it was listed, and not what is there by now.

    Raises InputError when they are more than `limit`, InputChanged when the object is another one by now.
    """
    if identity.size > limit:
        raise InputError(f"{store.url}/{name} is larger ({format_size(identity.size)}) than the {limit} bytes such a file may have")
    if not identity.size and store.identify(name) != identity:  # stores need not be asked for no bytes
        raise InputChanged(f"{store.url}/{name} changed while it was being read; start again with the new file")
    if identity.size <= PIECE:
        return bytearray(store.read_range(name, 0, identity.size, identity=identity))
    data, place = bytearray(identity.size), 0
    for piece in stream_object(store, name, identity):
        data[place : place + len(piece)] = piece
        place += len(piece)
    return data
