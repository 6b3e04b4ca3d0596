"""Every URL that fsspec knows (memory, sftp, …), and s3fs and gcsfs where the recipe asks for them."""

from __future__ import annotations

import logging
import os
import posixpath
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from typing import Any

import fsspec
from fsspec.asyn import sync

from paramdelta_dist import stopping
from paramdelta_dist.errors import (
    AlreadyExists,
    InputChanged,
    InputError,
    IntegrityError,
    UsageError,
)
from paramdelta_dist.storage import aws, trust
from paramdelta_dist.storage.border import OURS, translated
from paramdelta_dist.storage.fsspec_errors import classified
from paramdelta_dist.storage.multipart import part_size
from paramdelta_dist.storage.part_names import is_part, part_name
from paramdelta_dist.storage.settings import StoreSettings
from paramdelta_dist.storage.store import Buffer, Identity, check_length, check_range
from paramdelta_dist.storage.urls import redact, scheme_of

_TAGS = ("generation", "ETag", "etag", "blob_id", "oid", "mtime", "LastModified", "last_modified", "modified", "created")


class FsspecStore:
    """A `Store` on a folder of an fsspec file system."""

    remote = True

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self.url = redact(url)
        self._retries, self._part_size = settings.retries, settings.part_size
        self._fs = _connect(url, settings)
        self._root = str(self._fs._strip_protocol(url)).rstrip("/")
        self._endpoint = aws.endpoint(settings) if scheme_of(url) in ("s3", "s3a") else settings.endpoint
        self._staged = "s3" in self._fs.protocol or "gs" in self._fs.protocol
        """Whether an open file appears only when committed; elsewhere we write beside the target and move."""
        self._creating = threading.Lock()  # memory:// looks whether a name is free and takes it in two steps

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if self._root else name

    def _translated(self, name: str) -> AbstractContextManager[None]:
        return translated(f"{self.url}/{name}" if name else self.url, partial(classified, endpoint=self._endpoint))

    def identify(self, name: str) -> Identity:
        def ask() -> Identity:
            with self._translated(name):
                return self._identify(name)

        return self._retries.persisting(ask, what=f"asking for {self.url}/{name}")

    def _identify(self, name: str) -> Identity:
        info = self._fs.info(self._path(name))
        if info.get("type") == "directory":
            raise FileNotFoundError(name)
        return _identity(info)

    def list(self) -> dict[str, Identity] | None:
        return self._retries.persisting(self._list, what=f"listing {self.url}")

    def _list(self) -> dict[str, Identity] | None:
        with self._translated(""):
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            except NotImplementedError:
                return None
        return {
            posixpath.relpath(path, self._root): _identity(info)
            for path, info in found.items()
            if info.get("type") != "directory" and not path.endswith("/") and path != self._root and not is_part(posixpath.basename(path))
        }

    def read_range(self, name: str, start: int, stop: int, *, identity: Identity, into: memoryview | None = None) -> memoryview:
        check_range(f"{self.url}/{name}", start, stop, identity)
        if start == stop:
            return memoryview(b"")

        def get() -> bytes:
            with self._translated(name):
                data = self._pinned(name, start, stop, identity)
            check_length(f"{self.url}/{name}", start, stop, data)
            return data

        return memoryview(self._retries.persisting(get, what=f"reading {self.url}/{name}"))

    def _pinned(self, name: str, start: int, stop: int, identity: Identity) -> bytes:
        """One range of the version that was planned with: the store refuses another where it can, else we look after."""
        path, protocol = self._path(name), self._fs.protocol
        if "s3" in protocol:
            from paramdelta_dist.storage.s3fs_client import pinned_range

            return bytes(sync(self._fs.loop, pinned_range, self._fs, path, start, stop, identity.tag))
        if "gs" in protocol and identity.tag.isdigit():
            try:
                return bytes(self._fs.cat_file(path, start=start, end=stop, generation=identity.tag))
            except FileNotFoundError as error:
                raise InputChanged(f"{self.url}/{name} changed since the plan was made; run again to plan with the new version") from error
        data = bytes(self._fs.cat_file(path, start=start, end=stop))
        if self._identify(name) != identity:
            raise InputChanged(f"{self.url}/{name} changed since the plan was made; run again to plan with the new version")
        return data

    def read(self, name: str, *, limit: int) -> bytes:
        def get() -> bytes:
            with self._translated(name):
                if self._identify(name).size > limit:
                    raise InputError(f"{self.url}/{name} is larger than the {limit} bytes such a file may have")
                return bytes(self._fs.cat_file(self._path(name)))

        return self._retries.persisting(get, what=f"reading {self.url}/{name}")

    def put(self, name: str, chunks: Iterable[Buffer], *, size: int) -> Identity:
        with self._open_unpublished(name, block=part_size(size, self._part_size)) as (file, publish):
            written = 0
            for chunk in chunks:  # outside the translation: an exception of the producer comes out unchanged
                with self._translated(name):
                    file.write(chunk)  # copies
                stopping.alive()
                written += len(chunk)
            if written != size:
                raise IntegrityError(f"{self.url}/{name}: {size} bytes announced, {written} produced; nothing was published")
            with self._translated(name):
                publish()
        identity = self.identify(name)
        if identity.size != size:
            raise IntegrityError(f"{self.url}/{name}: {size} bytes sent, the store holds {identity.size}")
        return identity

    @contextmanager
    def _open_unpublished(self, name: str, *, block: int) -> Iterator[tuple[Any, Any]]:
        """A file open for writing and the function that makes it visible; undone when the body raises.

        A plain `with fs.open(…, "wb")` would publish what was written so far on an exception.
        """
        path = self._path(name)
        target = path if self._staged else posixpath.join(posixpath.dirname(path), part_name(secrets.token_hex(4)))
        with self._translated(name):
            self._make_parent(path)
            file = self._fs.open(target, "wb", block_size=block, **({"autocommit": False} if self._staged else {}))

        def publish() -> None:
            file.close()
            if self._staged:
                file.commit()
            else:
                self._fs.mv(target, path)

        try:
            yield file, publish
        except BaseException:
            with suppress(Exception):
                if self._staged:
                    file.discard()
                    file.closed = True
                else:
                    file.close()
                    self._fs.rm_file(target)
            raise

    def _make_parent(self, path: str) -> None:
        if not self._staged:
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)

    def write(self, name: str, data: bytes, *, exclusive: bool = False, replacing: Identity | None = None) -> Identity:
        def send() -> Identity:
            if replacing is not None:
                self._require(name, replacing)
            if not exclusive and not self._staged:
                return self.put(name, [data], size=len(data))
            with self._translated(name), nullcontext() if self._staged else self._creating:
                path = self._path(name)
                self._make_parent(path)
                condition = {"IfMatch": replacing.tag} if replacing is not None and "s3" in self._fs.protocol else {}
                self._fs.pipe_file(path, data, mode="create" if exclusive else "overwrite", **condition)
                return self._identify(name)

        try:
            return self._retries.persisting(send, what=f"writing {self.url}/{name}")
        except InputChanged as error:
            if replacing is not None:
                raise
            raise AlreadyExists(f"{self.url}/{name} exists already") from error  # the condition was that nothing is there

    def _require(self, name: str, expected: Identity) -> None:
        with self._translated(name):
            try:
                if self._identify(name) == expected:
                    return
            except FileNotFoundError:
                pass
        raise InputChanged(f"{self.url}/{name} is no longer what was to be replaced")

    def publish(self) -> None:
        """Nothing: what is written is there."""

    def delete(self, name: str) -> None:
        def remove() -> None:
            with self._translated(name), suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        self._retries.persisting(remove, what=f"deleting {self.url}/{name}")


def _identity(info: dict[str, Any]) -> Identity:
    tag = next((info[key] for key in _TAGS if info.get(key)), "")
    if isinstance(tag, datetime):
        tag = tag.timestamp()  # some file systems tell a datetime of one file and a number in a listing
    return Identity(size=int(info["size"] or 0), tag=str(tag))


def _share_certificates() -> None:
    """Tell the libraries behind these file systems whom to trust, which they take from the environment alone."""
    if path := trust.tell_environment():
        with suppress(ImportError, AttributeError):  # what aiohttp has made of the environment when it was imported
            from aiohttp import connector

            connector._SSL_CONTEXT_VERIFIED.load_verify_locations(cafile=path)


def _connect(url: str, settings: StoreSettings) -> Any:
    scheme = scheme_of(url)
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        if scheme in ("s3", "s3a"):
            from paramdelta_dist.storage import s3fs_client as s3

            return s3.connect(settings)
        if scheme in ("gs", "gcs"):
            from gcsfs.core import GCSFileSystem  # not the class `fsspec.filesystem` returns: that one asks a gRPC service first

            _share_certificates()
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it raises
            options["session_kwargs"] = {"trust_env": True}  # proxies
            emulated = settings.endpoint or os.environ.get("STORAGE_EMULATOR_HOST")
            return GCSFileSystem(
                token="anon" if settings.anonymous or os.environ.get("STORAGE_EMULATOR_HOST") else None,
                endpoint_url=emulated,
                **options,
            )
        _share_certificates()
        system = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UsageError(f"{redact(url)}: {error}; install the package that serves {scheme}:// URLs") from error
    except OURS:
        raise
    except BaseException as error:
        raise UsageError(f"{redact(url)}: {error}") from error
    if "file" in system.protocol:  # under whichever name: it would follow links out of the folder
        raise UsageError(f"{redact(url)} is a folder of this machine; write it as a path")
    return system
