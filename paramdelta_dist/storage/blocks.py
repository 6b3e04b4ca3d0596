"""Writing a file in blocks, large ones past the page cache: at the pace of the disk, and on the disk when done.

Through the page cache each byte is copied into fresh memory, which costs as much processor time as the arithmetic of a
merge; what is written pushes the inputs out of the cache, and all writing stops when too much of it waits for the disk.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from paramdelta_dist.storage.store import Buffer

BLOCK = 4 << 20
"""Bytes of one write; a multiple of every disk's own block size."""
WRITES_IN_FLIGHT = 2
BUFFERS = WRITES_IN_FLIGHT + 2
"""Blocks under way, one that waits so that the disk never does, and the one being filled."""
WRITE_MEMORY = BUFFERS * BLOCK
"""Bytes that writing one file takes."""
LARGE = 64 << 20
"""Bytes of a file from which it is written past the page cache."""


class BlockWriter:
    """Writes an empty file in order from chunks of any size and alignment.

    Where the file system or its disk refuses direct writes, the same writes go through the page cache.
    """

    def __init__(self, file: int, *, size: int) -> None:
        """`file` is a descriptor open for writing, which stays the caller's; `size` is how large it will be."""
        self._file = file
        self._direct = size >= LARGE
        self._pool = ThreadPoolExecutor(WRITES_IN_FLIGHT, thread_name_prefix="write")
        self._writing: deque[tuple[mmap.mmap, Future[None]]] = deque()
        self._buffer = mmap.mmap(-1, BLOCK)
        self._filled = self._offset = 0
        if self._direct:
            self._bypass_cache(True)

    def write(self, chunk: Buffer) -> None:
        """Take the next bytes; they may be reused on return. Raises OSError, also of an earlier write."""
        rest = memoryview(chunk)
        while len(rest):
            taken = min(len(rest), BLOCK - self._filled)
            copy_into(self._buffer, self._filled, rest[:taken])
            self._filled += taken
            rest = rest[taken:]
            if self._filled == BLOCK:
                self._writing.append((self._buffer, self._pool.submit(self._write_block, self._buffer, self._offset)))
                self._offset, self._filled = self._offset + BLOCK, 0
                self._buffer = self._written() if len(self._writing) == BUFFERS - 1 else mmap.mmap(-1, BLOCK)

    def finish(self) -> None:
        """Write what is left; a large file is on the disk then. Raises OSError."""
        while self._writing:
            self._written()
        if self._direct:
            self._bypass_cache(False)  # the end of a file is rarely aligned
        _write_all(self._file, memoryview(self._buffer)[: self._filled], self._offset)
        if self._direct:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Let go of the threads, whether or not the file is finished."""
        self._pool.shutdown(cancel_futures=True)

    def _written(self) -> mmap.mmap:
        """The buffer that was given to the disk first, once it is written."""
        buffer, done = self._writing.popleft()
        done.result()
        return buffer

    def _write_block(self, buffer: mmap.mmap, offset: int) -> None:
        try:
            _write_all(self._file, memoryview(buffer), offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._bypass_cache(False)
            _write_all(self._file, memoryview(buffer), offset)

    def _bypass_cache(self, bypass: bool) -> None:
        direct = getattr(os, "O_DIRECT", 0)
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | direct if bypass else flags & ~direct)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise


def copy_into(buffer: mmap.mmap, start: int, data: memoryview) -> None:
    """Put `data` into `buffer`; while much is copied, other threads run, which a slice assignment does not let them."""
    if len(data) < 1 << 16:
        buffer[start : start + len(data)] = data
        return
    import numpy as np

    np.copyto(np.frombuffer(buffer, np.uint8, len(data), start), np.frombuffer(data, np.uint8))


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
