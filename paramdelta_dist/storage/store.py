"""The promises of a store: the interface that every engine implements and every caller relies on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from paramdelta_dist.errors import IntegrityError, TransientStorageError

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The version of an object, which tells its bytes without reading them. Two equal identities of one name mean the same content."""

    size: int
    """Length in bytes."""
    tag: str
    """ETag, generation or modification time, whichever the store has; opaque."""
    version: str = field(default="", compare=False, repr=False)
    """The name of this version where a store keeps every one, such as a commit. No part of what the bytes are: another version may
    hold the same."""


NO_FILE = Identity(0, "")
"""The identity that a listing gives to what is no file of the folder; reading it says what it is."""


class Store(Protocol):
    """One folder at a URL. Names are relative to it, with `/` between parts. Safe to use from many threads.

    Every method raises only `ParamDeltaError`s: `NotFound`, `CredentialsError`, `TransientStorageError` after
    its own retries are used up, `StorageError` for what no retry mends.
    """

    url: str
    """The folder, without credentials or a trailing slash; safe to print."""
    remote: bool
    """Whether a request costs a round trip, so that fewer and larger ones with many in flight are better."""

    def identify(self, name: str) -> Identity:
        """The identity of `name` now. Raises NotFound."""
        ...

    def list(self) -> dict[str, Identity] | None:
        """Every object below this folder by relative name; empty where the folder does not exist; None where the
        store cannot list (plain http). On disks also what is there and is no file of this folder, such as a link out of it or a
        device, as `NO_FILE`; folders that may not be listed are left out."""
        ...

    def read_range(self, name: str, start: int, stop: int, *, identity: Identity, into: memoryview | None = None) -> memoryview:
        """Bytes [start, stop) of the object that has `identity`; exactly that many.

        A store that reads into callers' memory fills the front of `into` and returns a view of it; others ignore
        `into` and return memory of their own, read-only, which lives as long as the view.
        Raises InputChanged when the object has another identity by now, IntegrityError when the length stays wrong.
        """
        ...

    def read(self, name: str, *, limit: int) -> bytes:
        """The whole of a small object. Raises InputError when it is larger than `limit` bytes."""
        ...

    def put(self, name: str, chunks: Iterable[Buffer], *, size: int) -> Identity:
        """Write `size` bytes from `chunks` so that `name` appears whole or not at all, replacing what was there.

        A chunk is borrowed: its memory may be reused as soon as the next one is asked for and `chunk.release()` goes
        through. A store that needs it longer holds a buffer of the very chunk (as pickle.PickleBuffer does and a slice
        does not). An exception in `chunks` leaves nothing behind and comes out unchanged. Raises IntegrityError when the
        chunks are not `size` bytes.
        `chunks` may wait for other threads that use stores, but not use one itself: obstore asks it inside its own event loop.
        """
        ...

    def write(self, name: str, data: bytes, *, exclusive: bool = False, replacing: Identity | None = None) -> Identity:
        """Write a small object whole or not at all; `exclusive` raises AlreadyExists where the name is taken, `replacing`
        InputChanged where what is there has another identity, or nothing is there.

        Object stores decide both in one step with the write; on disks, and through fsspec other than on S3, there is a moment
        between looking at what is replaced and replacing it. Where the reply to a write was lost, the name may be taken by this
        very write: callers look what is there.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove `name`; no error when it is not there."""
        ...

    def publish(self) -> None:
        """Show to everybody what was written: nothing to do but where a store keeps that from view until then."""
        ...


def check_range(where: str, start: int, stop: int, identity: Identity) -> None:
    """Raises IntegrityError for a range that the object cannot have, which no store has to be asked about."""
    if not 0 <= start <= stop <= identity.size:
        raise IntegrityError(f"{where}: bytes [{start}, {stop}) asked for of an object of {identity.size} bytes")


class ShortRead(IntegrityError, TransientStorageError):
    """A reply that is complete but not what was asked for: worth another try, and a matter of integrity if that fails too."""


def check_length(where: str, start: int, stop: int, data: Buffer) -> None:
    """Raises ShortRead unless `data` is as long as the range that was asked for."""
    if len(data) != stop - start:
        raise ShortRead(f"{where}: bytes [{start}, {stop}) asked for, {len(data)} bytes came")
