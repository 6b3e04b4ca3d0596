"""Opening the files of one folder on a disk and no others, whatever links in it say.

A link is followed to a regular file in the folder itself or, where the folder is a snapshot in a cache of the Hugging Face Hub, to
one among that cache's blobs. What is read is what was looked at: a file is opened step by step without following links, so that
one which takes the place of a file meanwhile is refused too, and a pipe or device can neither hang nor answer.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from collections.abc import Sequence
from contextlib import suppress

from paramdelta_dist.errors import InputChanged, InputError, NotFound

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK = (errno.ENOTDIR, errno.ELOOP)
"""Error numbers of opening a folder where a link must not be followed: on Linux, and on a Mac."""
_SNAPSHOT = re.compile(r"(?P<cache>.*)/(?P<repository>models--[^/]+)/snapshots/[^/]+(/.*)?", re.DOTALL)
_SHARED = re.compile(r"(?P<folder>/blobs/(?P<start>[0-9a-f]{2}))/(?P=start)[0-9a-f]{62}")
_SHARED_MARK = "blobs/.huggingface-shared-blobs"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_inside(root: str, name: str) -> int:
    """The regular file `name` of the folder `root`, open for reading. The caller closes it.

    Raises InputError for a link that leads elsewhere and for what is no regular file, NotFound for a link to nothing, InputChanged
    where a link took the file's place at this moment, and the system's own OSError for all else.
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise InputError(f"{plain(name)} is not the name of a file in {plain(root)}")
    file = _opened(root, parts)
    if file is None:
        folder, parts = resolve(root, name)
        try:
            file = _opened(folder, parts, links=os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in _LINK:
                raise
            file = None  # a folder on the way is a link by now
    if file is None:
        raise InputChanged(f"{plain(os.path.join(root, name))} was replaced while it was being opened; start again with the new file")
    return file


def resolve(root: str, name: str) -> tuple[str, list[str]]:
    """The place that a name with links in it leads to: a folder that is as it says, and the rest of the way. Looks at no content.

    Raises what `open_inside` does.
    """
    path = os.path.join(root, name)
    said = _said(root, name)
    try:
        target = os.path.realpath(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of reading a link that is none by now
            raise
        raise InputChanged(f"{plain(path)} was replaced while it was being opened; start again with the new file") from None
    try:
        status = os.stat(target)
    except (FileNotFoundError, NotADirectoryError):
        hint = "; git annex get fetches it" if "/annex/objects/" in target else ""
        raise NotFound(f"{said}, and {plain(target)} is not there{hint}") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{said}, and so on in a circle") from None
    refuse_irregular(status.st_mode, said, link=True)
    home = os.path.realpath(root)
    inside = home.rstrip("/") + "/"
    if target.startswith(inside):
        return home, target[len(inside) :].split("/")
    if _is_blob(home, target):
        return os.path.dirname(target), [os.path.basename(target)]
    raise InputError(
        f"{said}, which is outside of this folder, and nothing outside of it is read; if it belongs to the model, name the folder where "
        f"the files themselves are, or a copy that holds them all (cp -rL {plain(shlex.quote(root))} COPY)"
    )


def refuse_irregular(mode: int, what: str, *, link: bool = False) -> None:
    """Raise InputError unless this is the mode of a regular file; `what` is the name, or what the link of that name says."""
    if stat.S_ISREG(mode):
        return
    kind = next((kind for is_one, kind in _KINDS if is_one(mode)), "something else")
    if not link:
        raise InputError(f"{what} is {kind} and not a file")
    way_out = "; only links to files are followed: put the folder itself there" if kind == "a folder" else ""
    raise InputError(f"{what}, which is {kind} and not a file{way_out}")


def plain(text: str) -> str:
    """A path as messages show it: as it is, unless a terminal would obey it."""
    return text if text.isprintable() else repr(text)


def _opened(folder: str, parts: Sequence[str], *, links: int = 0) -> int | None:
    """The file, opened without following a link below `folder`; None where there is one."""
    here = os.open(folder, _FOLDER | links)
    try:
        for part in parts[:-1]:
            if stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
                return None
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        mode = os.lstat(parts[-1], dir_fd=here).st_mode
        if stat.S_ISLNK(mode):
            return None
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):  # before it is opened: opening a device may do something
            refuse_irregular(mode, plain(os.path.join(folder, *parts)))
        try:
            file = os.open(parts[-1], _FILE, dir_fd=here)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return None
    finally:
        os.close(here)
    if not stat.S_ISREG(mode := os.fstat(file).st_mode):
        os.close(file)
        refuse_irregular(mode, plain(os.path.join(folder, *parts)))
    return file


def _is_blob(home: str, target: str) -> bool:
    """Whether `target` is a blob of the cache that the folder `home` is a snapshot in: of its own repository, or of the store that
    all repositories of the cache share (huggingface_hub 2.4 and later). Both paths are real ones."""
    snapshot = _SNAPSHOT.fullmatch(home)
    if snapshot is None:
        return False
    cache = snapshot["cache"]
    if os.path.dirname(target) == f"{cache}/{snapshot['repository']}/blobs":
        return True
    return (
        target.startswith(cache)
        and _SHARED.fullmatch(target[len(cache) :]) is not None
        and os.path.realpath(f"{cache}/{_SHARED_MARK}") == f"{cache}/{_SHARED_MARK}"
        and os.path.isfile(f"{cache}/{_SHARED_MARK}")
    )


def _said(root: str, name: str) -> str:
    """The first link on the way to a name, and its target, in words."""
    path = root
    for part in name.split("/"):
        path = os.path.join(path, part)
        with suppress(OSError):  # no link
            return f"{plain(path)} is a link to {plain(os.readlink(path))}"
    return f"{plain(path)} was a link"
