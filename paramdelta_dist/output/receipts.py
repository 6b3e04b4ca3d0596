"""Receipts: what a finished shard proves. Kept beside the output as JSON, read back when a run is continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from paramdelta_dist.output.names import RECEIPTS
from paramdelta_dist.output.sealed_json import parse_document, render_document
from paramdelta_dist.storage import Identity

MAX_RECEIPT = 256 << 20


@dataclass(frozen=True, slots=True)
class Receipt:
    """One finished shard. Digests are BLAKE3, in hex."""

    file: str
    fingerprint: str
    """Of the plan the shard belongs to."""
    size: int
    tag: str
    """The tag that the store gave this version of the object when it was written."""
    digest: str
    """Of the whole file, as `b3sum` prints it."""
    tensors: Mapping[str, str]
    """Digest of each tensor's bytes, by name."""
    bytes_read: int
    bytes_written: int
    requests: int
    nonfinite: int
    """Elements that are NaN or infinite, as the recipe allows."""
    seconds: float
    """Wall time of the shard."""
    peak_memory: int
    """Peak resident memory, in bytes, of the worker's process so far."""
    worker: str
    """Host and process that made it."""

    @property
    def identity(self) -> Identity:
        return Identity(self.size, self.tag)

    def to_json(self) -> bytes:
        return render_document({field.name: getattr(self, field.name) for field in fields(self)})


def receipt_name(file: str) -> str:
    return f"{RECEIPTS}/{file}.json"


def parse_receipt(data: bytes) -> Receipt | None:
    """The receipt in `data`; None when it is not one of ours, which is as good as none."""
    document = parse_document(data)
    try:
        return Receipt(**document) if document is not None else None
    except TypeError:  # of another version
        return None
