"""Large local files go past the page cache, and hold the bytes they were given whatever came in between."""

import errno
import fcntl
import mmap
import os
import random
from contextlib import suppress

import numpy as np
import pytest

from paramdelta_dist.errors import StorageError
from paramdelta_dist.storage.direct_write import WAITING, WRITE_BLOCK
from paramdelta_dist.storage.local import LocalStore


@pytest.fixture
def store(tmp_path):
    """One to which every file is large."""
    return LocalStore(str(tmp_path), large=0)


def address(buffer):
    return np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]


def borrowed(data, sizes, lent=None):
    """The data in chunks of the given sizes, over and over, each in pages that are spoilt as soon as nobody holds them. `lent`
    keeps them, so that nothing else comes to lie there."""
    held = []
    position = number = 0
    while position < len(data):
        size = min(sizes[number % len(sizes)], len(data) - position)
        buffer = mmap.mmap(-1, size)
        buffer[:] = data[position : position + size]
        if lent is not None:
            lent.append(buffer)
        view = memoryview(buffer)
        yield view
        held.append((buffer, view))
        for buffer, view in held[:]:
            with suppress(BufferError):
                view.release()
                held.remove((buffer, view))
                buffer[:] = bytes(len(buffer))
        assert len(held) <= WAITING
        position, number = position + size, number + 1


@pytest.mark.parametrize("size", [0, 1, 4095, WRITE_BLOCK - 1, WRITE_BLOCK, WRITE_BLOCK + 1, (WAITING + 3) * WRITE_BLOCK + 4321])
def test_the_file_is_its_chunks_whatever_their_sizes(tmp_path, store, size):
    data = random.Random(size).randbytes(size)
    for number, sizes in enumerate(
        ([136, 1 << 20], [8192, 1 << 20], [7 << 20], [WRITE_BLOCK], [4097, 3, 999_999], [4096, WRITE_BLOCK, 5000])
    ):
        identity = store.put(f"file{number}", borrowed(data, sizes), size=size)
        assert identity.size == size
        assert (tmp_path / f"file{number}").read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 6


def test_blocks_are_written_past_the_page_cache(tmp_path, store, monkeypatch):
    probe = os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.fcntl(probe, fcntl.F_SETFL, fcntl.fcntl(probe, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system of the temporary folder has no direct writes")
    finally:
        os.close(probe)
    real, direct = os.pwrite, []

    def watched(file, data, offset):
        direct.append(bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT))
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    store.put("file", [bytes(2 * WRITE_BLOCK + 5)], size=2 * WRITE_BLOCK + 5)
    assert direct == [True, True, False]


def test_chunks_that_lie_right_are_written_from_where_they_lie(tmp_path, store, monkeypatch):
    lent, copied, real = [], [], os.pwrite

    def watched(file, data, offset):
        if address(data) not in map(address, lent):
            copied.append(len(data))
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    data = random.Random(1).randbytes(4096 + 3 * WRITE_BLOCK + 100)
    store.put("file", borrowed(data, [4096, WRITE_BLOCK, WRITE_BLOCK, WRITE_BLOCK, 100], lent), size=len(data))
    assert (tmp_path / "file").read_bytes() == data
    assert copied == [100]


def test_a_disk_that_refuses_direct_writes_gets_others(tmp_path, store, monkeypatch):
    real = os.pwrite

    def picky(file, data, offset):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", picky)
    data = random.Random(0).randbytes(3 * WRITE_BLOCK + 17)
    store.put("file", [data], size=len(data))
    assert (tmp_path / "file").read_bytes() == data


def test_a_write_that_fails_in_the_background_publishes_nothing(tmp_path, store, monkeypatch):
    real = os.pwrite

    def failing(file, data, offset):
        if offset == WRITE_BLOCK:
            raise OSError(errno.EIO, "Input/output error")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        store.put("file", [bytes(8 * WRITE_BLOCK)], size=8 * WRITE_BLOCK)
    assert list(tmp_path.iterdir()) == []
