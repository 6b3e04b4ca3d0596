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
from pickle import PickleBuffer  # a hold on memory that keeps its owner from letting go

from paramdelta_dist.storage.durable import flush
from paramdelta_dist.storage.store import Buffer

WRITE_BLOCK = 4 << 20
"""Bytes of one write from a buffer of ours; a multiple of every disk's own block size."""
ALIGNMENT = 4096
"""Bytes of which places in memory and on disk, and lengths, are multiples in a direct write."""
WRITES_IN_FLIGHT = 2
WAITING = WRITES_IN_FLIGHT + 1
"""Blocks given to the disk before one of them must be done: one more than it works at, so that it never waits."""
LARGE = 64 << 20
"""Bytes of a file from which it is written past the page cache."""
WRITE_MEMORY = (WAITING + 1) * WRITE_BLOCK
"""Bytes that writing one file takes, or keeps of its producer."""


class DirectWriter:
    """Writes an empty file in order from chunks of any size and alignment.

    Chunks that direct writes can take as they are, in memory and in the file, are written from where they lie; others by
    way of aligned buffers. Where the file system or its disk refuses direct writes, the same writes go through the page cache.
    """

    def __init__(self, file: int, *, direct: bool) -> None:
        """`file` is a descriptor open for writing, which stays the caller's; `direct` is for a large one."""
        self._file = file
        self._direct = direct
        self._pool = ThreadPoolExecutor(WRITES_IN_FLIGHT, thread_name_prefix="write")
        self._writing: deque[tuple[mmap.mmap | PickleBuffer, Future[None]]] = deque()
        """The writes under way, with the buffer of ours or the hold on a chunk that each can do without when it is done."""
        self._free: list[mmap.mmap] = []
        self._buffer: mmap.mmap | None = None
        self._filled = self._offset = 0
        if self._direct:
            self._bypass_cache(True)

    def write(self, chunk: Buffer) -> None:
        """Take the next bytes, as `Store.put` may. Raises OSError, also of an earlier write."""
        if self._direct and self._filled % ALIGNMENT == 0 and _is_aligned(chunk):
            self._flush()
            held = PickleBuffer(chunk)
            self._start(held.raw(), held)
            return
        rest = memoryview(chunk)
        while len(rest):
            if self._buffer is None:
                self._buffer = self._free.pop() if self._free else mmap.mmap(-1, WRITE_BLOCK)
            taken = min(len(rest), WRITE_BLOCK - self._filled)
            copy_into(self._buffer, self._filled, rest[:taken])
            self._filled += taken
            rest = rest[taken:]
            if self._filled == WRITE_BLOCK:
                self._flush()

    def finish(self) -> None:
        """Write what is left; a large file is on the disk then. Raises OSError."""
        while self._writing:
            self._settle()
        if self._direct:
            self._bypass_cache(False)  # the end of a file is rarely aligned
        if self._buffer is not None:
            _write_all(self._file, memoryview(self._buffer)[: self._filled], self._offset)
        if self._direct:
            flush(self._file)

    def close(self) -> None:
        """Let go of the threads, whether or not the file is finished."""
        self._pool.shutdown(cancel_futures=True)

    def _flush(self) -> None:
        """Start writing what the buffer holds, a multiple of the alignment."""
        if self._buffer is not None:
            self._start(memoryview(self._buffer)[: self._filled], self._buffer)
            self._buffer, self._filled = None, 0

    def _start(self, data: memoryview, buffer: mmap.mmap | PickleBuffer) -> None:
        self._writing.append((buffer, self._pool.submit(self._write_block, data, self._offset)))
        self._offset += len(data)
        if len(self._writing) == WAITING:
            self._settle()

    def _settle(self) -> None:
        """Wait for the write that was started first."""
        buffer, done = self._writing.popleft()
        done.result()
        if isinstance(buffer, PickleBuffer):
            buffer.release()
        else:
            self._free.append(buffer)

    def _write_block(self, data: memoryview, offset: int) -> None:
        try:
            _write_all(self._file, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._bypass_cache(False)
            _write_all(self._file, data, offset)

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


def _is_aligned(chunk: Buffer) -> bool:
    if len(chunk) == 0 or len(chunk) % ALIGNMENT:
        return False
    import numpy as np

    return int(np.frombuffer(chunk, np.uint8).__array_interface__["data"][0]) % ALIGNMENT == 0


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
