"""Bringing what was written to the disk itself: what that takes differs from system to system."""

from __future__ import annotations

import errno
import fcntl
import os

UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""With what a file system says that it knows no such thing. The first two are one on Linux, and two on a Mac."""


def flush(file: int) -> None:
    """Return when what is in a file, or the names in a folder, would survive a power cut. Raises OSError.

    On a Mac, fsync leaves it in the memory of the disk, which a call of its own has written out, on disks that know it.
    """
    whole = getattr(fcntl, "F_FULLFSYNC", None)
    if whole is not None:
        try:
            fcntl.fcntl(file, whole)
            return
        except OSError as error:
            if error.errno not in (*UNSUPPORTED, errno.ENOTTY):
                raise
    os.fsync(file)
