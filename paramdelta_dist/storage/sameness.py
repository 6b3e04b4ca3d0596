"""Whether two places are one under two names: by their files, since names of places cannot tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from paramdelta_dist.storage.local import LocalStore
from paramdelta_dist.storage.store import Identity, Store


def shared_files(here: Store, there: Store, *, compared: Callable[[str], bool], expected: Mapping[str, Identity], mark: str) -> list[str]:
    """Names of files directly in `here` that are files of `there` as well, also of a folder below it.

    On disks they are told by device and inode. Elsewhere those that are `compared` by name, size and tag, and by name and size where
    two engines have each their own kind of tag; unless `here` has a file `mark`, which is nowhere twice, and `there` has not.
    `expected` is what is known to be in `there`, for a store that cannot list.
    """
    present = here.list() or {}
    plain = [name for name in present if "/" not in name]
    found = there.list()
    if isinstance(here, LocalStore) and isinstance(there, LocalStore):
        inodes = {inode for name in found or {} if (inode := _inode(there.url, name))}
        return [name for name in plain if _inode(here.url, name) in inodes]
    theirs = dict(expected) if found is None else found
    alike = _same_tags if type(here) is type(there) else _same_size
    if mark in present and (mark not in theirs or not alike(present[mark], theirs[mark])) and found is not None:
        return []
    by_name: dict[str, list[Identity]] = {}
    for name, identity in theirs.items():
        by_name.setdefault(name.rpartition("/")[2], []).append(identity)
    return [name for name in plain if compared(name) and any(alike(present[name], identity) for identity in by_name.get(name, []))]


def _inode(folder: str, name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(os.path.join(folder, name))
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _same_tags(one: Identity, other: Identity) -> bool:
    return one.size == other.size and one.tag.strip('"') == other.tag.strip('"')


def _same_size(one: Identity, other: Identity) -> bool:
    return one.size == other.size
