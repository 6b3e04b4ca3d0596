"""Folders on a local or mounted disk: positioned reads into the caller's memory, and files published by an atomic rename."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from paramdelta_dist.errors import (
    AlreadyExists,
    CredentialsError,
    InputChanged,
    InputError,
    IntegrityError,
    NotFound,
    StorageError,
)
from paramdelta_dist.storage.confined import open_inside, plain, resolve
from paramdelta_dist.storage.direct_write import LARGE, DirectWriter
from paramdelta_dist.storage.durable import UNSUPPORTED, flush
from paramdelta_dist.storage.part_names import is_part, part_name
from paramdelta_dist.storage.store import NO_FILE, Buffer, Identity, check_range


@contextmanager
def _translated(url: str, name: str) -> Iterator[None]:
    where = os.path.join(url, name) if name else url
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{where}: no such file") from error
    except IsADirectoryError as error:
        raise NotFound(f"{where} is a folder, not a file") from error
    except FileExistsError as error:
        raise AlreadyExists(f"{where} exists already") from error
    except PermissionError as error:
        raise CredentialsError(f"{where}: permission denied; check the owner and mode of the file and its folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{where}: the disk is full ({error.strerror}); free some space and run again") from error
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            problem = "links lead in a circle" if error.errno == errno.ELOOP else "a name is longer than this file system bears"
            raise InputError(f"{where}: {problem}") from error
        raise StorageError(f"{where}: {error.strerror or error}") from error


def _identity(status: os.stat_result) -> Identity:
    return Identity(size=status.st_size, tag=str(status.st_mtime_ns))


def _create(target: Path, part: Path) -> Identity | None:
    """Make `part` appear as `target` unless that name is taken. Returns the identity where it is not the part's."""
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EPERM, errno.EMLINK):
            raise
        with open(target, "xb") as file:  # a mount without hard links: taken at once, though not whole at once
            file.write(part.read_bytes())
            file.flush()
            flush(file.fileno())
            return _identity(os.fstat(file.fileno()))
    return None


def _make_folder(folder: Path) -> None:
    """Make the folder and those above it that are missing, each flushed into the one above."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system knows such a thing."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written to and not be read
        return
    try:
        flush(file)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EBADF):
            raise
    finally:
        os.close(file)


def _reserve(file: int, size: int) -> None:
    """Have a disk that is full found before the work and not after it, where the system can set room aside."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def read_named_file(path: str, *, limit: int) -> bytes:
    """A file that a user named by itself, such as a recipe: links are followed wherever they lead, and a pipe is read to its end.

    Raises NotFound, and InputError when there are more than `limit` bytes.
    """
    with _translated(path, ""), open(path, "rb") as file:
        data = file.read(limit + 1)
    return _bounded(data, path, limit)


def closed_folders(path: str) -> tuple[str, ...]:
    """Folders below a local folder that may not be listed, by relative name: what is in them cannot be known."""
    closed: list[str] = []
    with _translated(path, ""):
        for _ in _walk(path, closed):
            pass
    return tuple(sorted(os.path.relpath(folder, path) for folder in closed))


def _walk(root: str, closed: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, which follows no links; a folder below `root` that may not be listed goes to `closed`."""

    def refuse(error: OSError) -> None:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return
        below = error.filename is not None and error.filename != root
        if not below or error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
            raise error
        closed.append(error.filename)

    yield from os.walk(root, onerror=refuse)


def _bounded(data: bytes, where: str, limit: int) -> bytes:
    if len(data) > limit:
        raise InputError(f"{where} is larger than the {limit} bytes such a file may have")
    return data


class LocalStore:
    """A `Store` on a file system that has positioned reads and atomic rename.

    What it reads and writes lies in the folder: of links, `confined` says which are followed. The folder's own path may have any.
    """

    remote = False

    def __init__(self, path: str, *, large: int = LARGE) -> None:
        """Files of `large` bytes or more are written past the page cache."""
        self.url, self._large = path, large
        self._root = Path(path)

    def identify(self, name: str) -> Identity:
        with self._file(name) as file:
            return _identity(os.fstat(file))

    def list(self) -> dict[str, Identity]:
        found: dict[str, Identity] = {}
        with _translated(self.url, ""):
            for folder, folders, names in _walk(self.url, []):
                for name in (*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))):
                    if is_part(name):
                        continue
                    relative = os.path.relpath(os.path.join(folder, name), self.url).replace(os.sep, "/")
                    with suppress(FileNotFoundError):  # deleted, or renamed into place, since it was listed
                        found[relative] = self._listed(relative)
        return found

    def _listed(self, name: str) -> Identity:
        try:
            status = os.lstat(self._root / name)
            if stat.S_ISLNK(status.st_mode):
                folder, parts = resolve(self.url, name)
                status = os.lstat(os.path.join(folder, *parts))
        except (InputError, PermissionError):
            return NO_FILE
        return _identity(status) if stat.S_ISREG(status.st_mode) else NO_FILE

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        """The file, open for reading; errors of reading are translated."""
        with _translated(self.url, name):
            file = open_inside(self.url, name)
            try:
                yield file
            finally:
                os.close(file)

    def read_range(self, name: str, start: int, stop: int, *, identity: Identity, into: memoryview | None = None) -> memoryview:
        check_range(os.path.join(self.url, name), start, stop, identity)
        size = stop - start
        target = memoryview(bytearray(size)) if into is None else into[:size]
        with self._file(name) as file, open(file, "rb", buffering=0, closefd=False) as reader:
            reader.seek(start)
            got = 0
            while got < size and (count := reader.readinto(target[got:])):
                got += count
            now = _identity(os.fstat(file))
        if now != identity:
            raise InputChanged(f"{self.url}/{name} changed while it was being read; start again with the new file")
        if got != size:
            raise IntegrityError(f"{self.url}/{name}: bytes [{start}, {stop}) asked for, {got} bytes read")
        return target

    def read(self, name: str, *, limit: int) -> bytes:
        with self._file(name) as file, open(file, "rb", closefd=False) as reader:
            data = reader.read(limit + 1)
        return _bounded(data, f"{self.url}/{name}", limit)

    def put(self, name: str, chunks: Iterable[Buffer], *, size: int) -> Identity:
        return self._publish(name, chunks, size=size, exclusive=False)

    def write(self, name: str, data: bytes, *, exclusive: bool = False, replacing: Identity | None = None) -> Identity:
        return self._publish(name, [data], size=len(data), exclusive=exclusive, replacing=replacing)

    def _publish(self, name: str, chunks: Iterable[Buffer], *, size: int, exclusive: bool, replacing: Identity | None = None) -> Identity:
        """Write a part, flush it, give it its name, and flush the folder: what has a name survives a power cut."""
        target = self._target(name)
        part = target.with_name(part_name(target.name))
        with _translated(self.url, name):
            _make_folder(target.parent)
            file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                self._fill(name, file, chunks, size)
            finally:
                os.close(file)
            with _translated(self.url, name):
                identity = _identity(os.stat(part))  # of what is written here, whoever replaces it in the next moment
                if exclusive:
                    identity = _create(target, part) or identity
                else:
                    if replacing is not None:
                        self._require(target, replacing)
                    os.replace(part, target)
                _flush_folder(target.parent)
                return identity
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)

    def _require(self, target: Path, expected: Identity) -> None:
        with suppress(FileNotFoundError):
            if _identity(os.stat(target)) == expected:
                return
        raise InputChanged(f"{target} is no longer what was to be replaced")

    def _fill(self, name: str, file: int, chunks: Iterable[Buffer], size: int) -> None:
        if size:
            with _translated(self.url, name):
                _reserve(file, size)
        written = 0
        with closing(DirectWriter(file, direct=size >= self._large)) as writer:
            for chunk in chunks:  # outside the translation: an exception of the producer comes out unchanged
                with _translated(self.url, name):
                    writer.write(chunk)
                written += len(chunk)
            with _translated(self.url, name):
                writer.finish()
                if size < self._large:  # larger ones are on the disk by now
                    flush(file)
        if written != size:
            raise IntegrityError(f"{self.url}/{name}: {size} bytes announced, {written} produced; nothing was published")

    def publish(self) -> None:
        """Nothing: what is written is there."""

    def delete(self, name: str) -> None:
        with _translated(self.url, name), suppress(FileNotFoundError):
            os.unlink(self._target(name))

    def _target(self, name: str) -> Path:
        """The path where `name` is written or deleted. A link of that name is replaced itself; one on the way to it must not lead out."""
        target = self._root / name
        home, folder = os.path.realpath(self.url), os.path.realpath(target.parent)
        if folder != home and not folder.startswith(home.rstrip("/") + "/"):
            raise InputError(
                f"{plain(str(target.parent))} leads to {plain(folder)}, outside of {plain(self.url)}; nothing is written there"
            )
        return target
