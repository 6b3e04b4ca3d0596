"""Models of the Hugging Face Hub, without a download: a listing at one commit, and ranges of the files of that very commit.

A listing resolves the revision to a commit, and every `Identity` carries it as `version`: whoever holds one, in this process or in
another, reads that commit, whatever is pushed meanwhile. What the file is, is told by the hash of its content alone, so that a push
that leaves a file alone changes nothing. Large files lie with a CDN: the Hub is asked once per file where, and the ranges go there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from huggingface_hub.errors import HfHubHTTPError

from paramdelta_dist import stopping
from paramdelta_dist.errors import InputChanged, InputError, NotFound, StorageError, TransientStorageError, UsageError
from paramdelta_dist.storage.border import translated
from paramdelta_dist.storage.hub_client import HubClient, elsewhere
from paramdelta_dist.storage.hub_places import hub_place
from paramdelta_dist.storage.retry import REQUEST_SECONDS, persisting
from paramdelta_dist.storage.settings import StoreSettings
from paramdelta_dist.storage.store import Buffer, Identity, ShortRead, check_range
from paramdelta_dist.storage.urls import redact

_EXPIRED = (401, 403, 404, 410)
"""What a CDN answers where the location it was asked for has had its time."""


class HubStore:
    """A `Store` on a model of the Hub, to read from."""

    remote = True

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self.url = redact(url)
        self._place = hub_place(url)
        self._client = HubClient(self._place, settings)
        self._locations: dict[tuple[str, str], str] = {}
        """Where a CDN has a file of a commit."""

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _translated(self, name: str) -> AbstractContextManager[None]:
        return translated(self._where(name), self._client.meaning)

    def _head(self) -> str:
        """The commit that the revision is now."""
        found, _ = self._client.asked("GET", self._client.api(f"revision/{self._place.quoted_revision}"))
        return str(found["sha"])

    def list(self) -> dict[str, Identity] | None:
        return persisting(self._list, what=f"listing {self.url}")

    def _list(self) -> dict[str, Identity]:
        with self._translated(""):
            commit, folder = self._head(), self._place.folder
            next_page: str | None = self._client.api(f"tree/{commit}{'/' + quote(folder, safe='') if folder else ''}?recursive=true")
            found: dict[str, Identity] = {}
            while next_page:
                try:
                    entries, next_page = self._client.asked("GET", next_page)
                except HfHubHTTPError as error:
                    if folder and error.response.headers.get("X-Error-Code") == "EntryNotFound":
                        return {}
                    raise
                files = [entry for entry in entries if entry["type"] == "file"]
                found |= {entry["path"].removeprefix(f"{folder}/" if folder else ""): _identity(entry, commit) for entry in files}
                stopping.alive()
        return found

    def identify(self, name: str) -> Identity:
        return persisting(lambda: self._identify(name), what=f"asking for {self._where(name)}")

    def _identify(self, name: str) -> Identity:
        path = self._place.path(name)
        with self._translated(name):
            commit = self._head()
            found, _ = self._client.asked("POST", self._client.api(f"paths-info/{commit}"), data={"paths": [path], "expand": False})
            entry = next((each for each in found if each["path"] == path and each["type"] == "file"), None)
        if entry is None:
            raise NotFound(f"{self._where(name)}: no such object")
        return _identity(entry, commit)

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

        persisting(get, what=f"reading {self._where(name)}")
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
        until = time.monotonic() + REQUEST_SECONDS
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
            raise TransientStorageError(f"{self._where(name)}: a range took more than {REQUEST_SECONDS:.0f} s to arrive")
        if place != len(memory):
            raise ShortRead(f"{self._where(name)}: bytes [{start}, {start + len(memory)}) asked for, {place} bytes came")

    def read(self, name: str, *, limit: int) -> bytes:
        identity = self.identify(name)
        if identity.size > limit:
            raise InputError(f"{self._where(name)} is larger than the {limit} bytes such a file may have")
        return bytes(self.read_range(name, 0, identity.size, identity=identity))

    def put(self, name: str, chunks: Iterable[Buffer], *, size: int) -> Identity:
        self._refuse()

    def write(self, name: str, data: bytes, *, exclusive: bool = False, replacing: Identity | None = None) -> Identity:
        self._refuse()

    def delete(self, name: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            f"{self.url}: models of the Hub are read and not written; write to a folder, then upload it: hf upload OWNER/NAME FOLDER"
        )


def _identity(entry: dict[str, Any], commit: str) -> Identity:
    """Of an entry of a listing: the hash that LFS has of a large file, git's of a small one."""
    large = entry.get("lfs") or {}
    return Identity(int(large.get("size") or entry["size"]), str(large.get("oid") or entry["oid"]), commit)
