"""Models of the Hugging Face Hub, without a download: a listing at one commit, and ranges of the files of that very commit.

A listing resolves the revision to a commit, and every `Identity` carries it as `version`: whoever holds one, in this process or in
another, reads that commit, whatever is pushed meanwhile. What the file is, is told by the hash of its content alone, so that a push
that leaves a file alone changes nothing. Large files lie with a CDN: the Hub is asked once per file where, and the ranges go there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from paramdelta_dist import stopping
from paramdelta_dist.errors import (
    AlreadyExists,
    InputChanged,
    InputError,
    IntegrityError,
    NotFound,
    StorageError,
    TransientStorageError,
    UsageError,
)
from paramdelta_dist.storage.border import translated
from paramdelta_dist.storage.hub_branch import HubBranch, Spool
from paramdelta_dist.storage.hub_client import HubClient, elsewhere
from paramdelta_dist.storage.hub_places import hub_place
from paramdelta_dist.storage.settings import StoreSettings
from paramdelta_dist.storage.store import Buffer, Identity, ShortRead, check_range
from paramdelta_dist.storage.urls import redact

_EXPIRED = (401, 403, 404, 410)
"""Status codes of a CDN for a location that has expired."""


OF_THE_HUB = ".gitattributes"
"""The file that the Hub puts into every new repository, for itself: a repository with nothing else is empty."""


class HubStore:
    """A `Store` on a model of the Hub; to write to where it is a whole repository, by way of a branch until `publish`."""

    remote = True

    def __init__(self, url: str, settings: StoreSettings, *, published: bool = False) -> None:
        """With `published` nothing is seen of what is unfinished there: so inputs are read."""
        self.url = redact(url)
        self._retries, self._place = settings.retries, hub_place(url)
        self._client = HubClient(self._place, settings)
        self._branch = HubBranch(self._client) if self._place.is_whole and not published else None
        self._locations: dict[tuple[str, str], str] = {}
        """The CDN's location of each file, by commit and name."""

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _translated(self, name: str) -> AbstractContextManager[None]:
        return translated(self._where(name), self._client.meaning)

    def _head(self) -> str:
        """The commit that is read: what this account has unfinished there, else what the revision is now."""
        unfinished = self._branch.head() if self._branch is not None and self._client.is_logged_in else None
        return unfinished or self._client.commit_of(self._place.revision)

    def list(self) -> dict[str, Identity] | None:
        return self._retries.persisting(self._list, what=f"listing {self.url}")

    def _list(self) -> dict[str, Identity]:
        folder = self._place.folder
        with self._translated(""):
            try:
                found = self._client.tree(self._head(), folder)
            except RepositoryNotFoundError as error:
                if self._branch is not None and self._client.is_logged_in and error.response.status_code == 404:
                    return {}  # a place for an output
                raise
        found.pop(OF_THE_HUB, None)
        return {path.removeprefix(f"{folder}/" if folder else ""): identity for path, identity in found.items()}

    def identify(self, name: str) -> Identity:
        return self._retries.persisting(lambda: self._identify(name), what=f"asking for {self._where(name)}")

    def _identify(self, name: str) -> Identity:
        with self._translated(name):
            found = self._client.file(self._head(), self._place.path(name))
        if found is None:
            raise NotFound(f"{self._where(name)}: no such object")
        return found

    def read_range(self, name: str, start: int, stop: int, *, identity: Identity, into: memoryview | None = None) -> memoryview:
        check_range(self._where(name), start, stop, identity)
        if start == stop:
            return memoryview(b"")
        memory = into[: stop - start] if into is not None else memoryview(bytearray(stop - start))

        def get() -> None:
            commit = identity.version or self._commit_of(name, identity)
            try:
                self._get(name, start, memory, identity, commit)
            except NotFound as error:
                raise InputChanged(
                    f"{self._where(name)}: commit {commit[:12]} no longer has it, as after a rewritten history; run again to plan "
                    "with what is there"
                ) from error

        self._retries.persisting(get, what=f"reading {self._where(name)}")
        return memory if into is not None else memory.toreadonly()

    def _commit_of(self, name: str, identity: Identity) -> str:
        """The commit to read from for an identity that came from elsewhere than from this store."""
        there = self._identify(name)
        if there != identity:
            raise InputChanged(f"{self._where(name)} changed since the plan was made; run again to plan with the new version")
        return there.version

    def _get(self, name: str, start: int, memory: memoryview, identity: Identity, commit: str) -> None:
        """Fill `memory` from byte `start` of a file of a commit on."""
        headers, key = {"Range": f"bytes={start}-{start + len(memory) - 1}"}, (commit, name)
        with self._translated(name):
            location, fresh = self._locations.get(key, ""), False
            if not location:
                url, fresh = self._client.resolve(commit, self._place.path(name)), True
                with self._client.answer("GET", url, headers=headers) as response:
                    self._require_same(name, response, identity, commit)
                    location = elsewhere(response, url)
                    if not location:
                        self._fill(name, response, start, memory, identity)
                        return
            try:
                with self._client.answer("GET", location, signed=False, headers=headers) as response:
                    self._fill(name, response, start, memory, identity)
            except HfHubHTTPError as error:
                self._locations.pop(key, None)
                if error.response.status_code not in _EXPIRED:
                    raise
                if not fresh:
                    self._get(name, start, memory, identity, commit)
                    return
                where = f"{self._where(name)}: {urlsplit(location).netloc}, where the Hub says that it lies,"
                raise TransientStorageError(f"{where} answers {error.response.status_code}") from error
            self._locations[key] = location

    def _require_same(self, name: str, response: Any, identity: Identity, commit: str) -> None:
        """Raise InputChanged where the Hub says that what it answers with is another commit's, or has another hash."""
        told = response.headers.get("X-Repo-Commit", commit)
        etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or ""
        hash_ = etag.removeprefix("W/").strip('"')
        if told != commit or (len(hash_) == len(identity.tag) and hash_ != identity.tag):  # of the same kind; mirrors make others
            raise InputChanged(f"{self._where(name)} changed since the plan was made; run again to plan with the new version")

    def _fill(self, name: str, response: Any, start: int, memory: memoryview, identity: Identity) -> None:
        until = time.monotonic() + self._retries.request
        whole = response.status_code == 200 and len(memory) == identity.size
        if response.status_code != 206 and not whole:
            raise StorageError(f"{self._where(name)}: asked for a range, the server answers {response.status_code} and not 206")
        size = (response.headers.get("Content-Range") or "").rpartition("/")[2]
        if size.isdigit() and int(size) != identity.size:
            raise InputChanged(f"{self._where(name)} changed since the plan was made; run again to plan with the new version")
        place = 0
        for chunk in response.iter_bytes():
            kept = chunk[: len(memory) - place]
            memory[place : place + len(kept)] = kept
            place += len(chunk)
            if place > len(memory) or time.monotonic() > until:
                break
            stopping.alive()
        if place < len(memory) and time.monotonic() > until:
            raise TransientStorageError(f"{self._where(name)}: a range took more than {self._retries.request:.0f} s to arrive")
        if place != len(memory):
            raise ShortRead(f"{self._where(name)}: bytes [{start}, {start + len(memory)}) asked for, {place} bytes came")

    def read(self, name: str, *, limit: int) -> bytes:
        identity = self.identify(name)
        if identity.size > limit:
            raise InputError(f"{self._where(name)} is larger than the {limit} bytes such a file may have")
        return bytes(self.read_range(name, 0, identity.size, identity=identity))

    def put(self, name: str, chunks: Iterable[Buffer], *, size: int) -> Identity:
        branch = self._writable()
        with Spool() as spool:
            for chunk in chunks:  # outside the translation: an exception of the producer comes out unchanged
                try:
                    spool.write(chunk)
                except OSError as error:
                    raise StorageError(
                        f"{self._where(name)}: a shard waits in {spool.folder} for its upload, and cannot be written there "
                        f"({error.strerror}); name a folder with room in TMPDIR"
                    ) from error
                stopping.alive()
            if spool.size != size:
                raise IntegrityError(f"{self._where(name)}: {size} bytes announced, {spool.size} produced; nothing was published")

            def send() -> Identity:
                with self._translated(name):
                    branch.begun()
                    return self._made(branch.add(name, spool.path, None), name)

            identity = self._retries.persisting(send, what=f"uploading {self._where(name)}")
        if identity.size != size:
            raise IntegrityError(f"{self._where(name)}: {size} bytes sent, the store holds {identity.size}")
        return identity

    def write(self, name: str, data: bytes, *, exclusive: bool = False, replacing: Identity | None = None) -> Identity:
        branch = self._writable()

        def send() -> Identity:
            with self._translated(name), branch.lock:
                head = branch.begun()
                there = self._client.file(head, name)
                if exclusive and there is not None:
                    raise AlreadyExists(f"{self._where(name)} exists already")
                if replacing is not None and there != replacing:
                    raise InputChanged(f"{self._where(name)} is no longer what was to be replaced")
                return self._made(branch.add(name, data, head), name)

        return self._retries.persisting(send, what=f"writing {self._where(name)}")

    def delete(self, name: str) -> None:
        branch = self._writable()

        def remove() -> None:
            with self._translated(name), branch.lock:
                head = branch.begun()
                if self._client.file(head, name) is not None:
                    branch.delete(name, head)

        self._retries.persisting(remove, what=f"deleting {self._where(name)}")

    def publish(self) -> None:
        branch = self._writable()

        def bring() -> None:
            with self._translated(""), branch.lock:
                branch.publish()

        self._retries.persisting(bring, what=f"publishing {self.url}")

    def _made(self, commit: str, name: str) -> Identity:
        found = self._client.file(commit, name)
        if found is None:
            raise InputChanged(f"{self._where(name)} is not what was written a moment ago")
        return found

    def _writable(self) -> HubBranch:
        if self._branch is None:
            raise UsageError(f"{self.url}: what is written to the Hub is a repository; write hf://{self._place.repository}")
        return self._branch
