"""Buffers of one size, made when first needed and used again and again: fresh memory costs more than arithmetic."""

from __future__ import annotations

import mmap


class BufferPool:
    """Buffers that start on a page. Safe to use from several threads."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        """`size` in bytes; `pinned` buffers are locked in memory, where a GPU reads and writes them itself."""
        self._size, self._pinned = size, pinned
        self._made: list[mmap.mmap] = []
        self._free: list[mmap.mmap] = []
        self._lent: list[tuple[mmap.mmap, memoryview]] = []

    def take(self) -> mmap.mmap:
        """A buffer, with whatever is in it. Raises EngineError where it cannot be pinned."""
        for buffer, view in self._lent[:]:
            try:
                view.release()
            except BufferError:  # somebody holds it: a write that is under way
                continue
            self._lent.remove((buffer, view))
            self._free.append(buffer)
        try:
            return self._free.pop()
        except IndexError:
            buffer = mmap.mmap(-1, self._size)
        if self._pinned:
            from paramdelta_dist.kernels.sum_gpu import pin

            pin(buffer)
        self._made.append(buffer)
        return buffer

    def give_back(self, buffer: mmap.mmap) -> None:
        """Let `buffer` be taken again; nobody uses a view of it any more."""
        self._free.append(buffer)

    def give_back_when_released(self, buffer: mmap.mmap, view: memoryview) -> None:
        """Let `buffer` be taken again once nobody holds a buffer of `view`, a view of it that was handed out."""
        self._lent.append((buffer, view))

    def close(self) -> None:
        """Unlock what was locked. Nothing uses the buffers any more."""
        if self._pinned:
            from paramdelta_dist.kernels.sum_gpu import unpin

            for buffer in self._made:
                unpin(buffer)
