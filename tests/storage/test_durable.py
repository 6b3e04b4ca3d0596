"""What is on the disk, on systems that say so in other ways than Linux."""

import errno
import fcntl
import os

import pytest

from paramdelta_dist.errors import AlreadyExists, StorageError
from paramdelta_dist.storage.durable import flush
from paramdelta_dist.storage.local import LocalStore

WHOLE = 51


def of_a_mac(monkeypatch, answer):
    """Give fcntl the call that a Mac has; returns what was flushed by it, and by fsync."""
    whole, plain, real = [], [], fcntl.fcntl

    def called(file, command, *arguments):
        if command != WHOLE:
            return real(file, command, *arguments)
        whole.append(file)
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", WHOLE, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", called)
    monkeypatch.setattr(os, "fsync", plain.append)
    return whole, plain


def test_a_mac_writes_out_the_memory_of_the_disk_too(monkeypatch, tmp_path):
    whole, plain = of_a_mac(monkeypatch, None)
    LocalStore(str(tmp_path)).put("weights", [bytes(100 << 20)], size=100 << 20)
    LocalStore(str(tmp_path)).write("small", b"text", exclusive=True)
    assert len(whole) == 4, "two files, and their folder after each"
    assert plain == []


@pytest.mark.parametrize("answer", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY])
def test_a_disk_that_knows_no_such_call_is_flushed_as_everywhere(monkeypatch, answer):
    whole, plain = of_a_mac(monkeypatch, answer)
    flush(7)
    assert (whole, plain) == ([7], [7])


def test_a_disk_that_fails_is_no_disk_that_does_not_know(monkeypatch, tmp_path):
    of_a_mac(monkeypatch, errno.EIO)
    with pytest.raises(StorageError):
        LocalStore(str(tmp_path)).write("small", b"text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EMLINK])
def test_a_mount_without_hard_links_has_one_winner_too(monkeypatch, tmp_path, number):
    def no_links(part, target):
        raise OSError(number, "no hard links")

    monkeypatch.setattr(os, "link", no_links)
    store = LocalStore(str(tmp_path))
    store.write("claim", b"mine", exclusive=True)
    with pytest.raises(AlreadyExists):
        store.write("claim", b"theirs", exclusive=True)
    assert (tmp_path / "claim").read_bytes() == b"mine"
