"""Folders in which nothing is left: only disks have any, and objects leave none behind."""

from __future__ import annotations

import os
from contextlib import suppress

from paramdelta_dist.storage.urls import scheme_of


def remove_empty(url: str, folder: str) -> None:
    """Remove `folder`, a path below a normalized URL, with all that is empty in it, and what is empty above it; never `url` itself."""
    if scheme_of(url):
        return
    inner = [path for path, _, _ in os.walk(os.path.join(url, folder), topdown=False)]
    outer = ["/".join(folder.split("/")[:depth]) for depth in range(folder.count("/"), 0, -1)]
    for path in (*inner, *(os.path.join(url, parent) for parent in outer)):
        with suppress(OSError):  # not empty, or gone already
            os.rmdir(path)
