"""The small JSON documents beside an output. Each carries a seal, a digest of its own content, so that it vouches for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from paramdelta_dist.errors import IntegrityError
from paramdelta_dist.redaction import redacted_values
from paramdelta_dist.storage import Store

SEAL = "seal"
MAX_DOCUMENT = 256 << 20


def render_document(content: Mapping[str, Any]) -> bytes:
    """JSON of `content`, without secrets, and its seal, a line for each key. ASCII, so that any name can be written."""
    content = redacted_values(content)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**content, SEAL: _seal(content)}.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def parse_document(data: bytes) -> dict[str, Any] | None:
    """The content of a document, without its seal; None when it is not as it was written."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.pop(SEAL, None) != _seal(document):
        return None
    return document


def is_of_somebody_else(data: bytes, first: str) -> bool:
    """Whether a file under the name of one of our documents, whose first key is `first`, was never one: neither one that was
    altered nor what a power cut leaves of one, nothing, zeros or its beginning."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        begun = data.rstrip(b"\0")
        return bool(begun.strip()) and not begun.startswith(f'{{\n"{first}": '.encode())
    return not (isinstance(document, dict) and SEAL in document)


def read_document(store: Store, name: str) -> dict[str, Any]:
    """The content of a document of an output. Raises NotFound, and IntegrityError when it is not as it was written."""
    document = parse_document(store.read(name, limit=MAX_DOCUMENT))
    if document is None:
        raise IntegrityError(
            f"{store.url}/{name} is not as it was written, as after a power cut; run the same merge again: it keeps what is finished"
        )
    return document


def _seal(content: Mapping[str, Any]) -> str:
    return blake3(json.dumps(content, sort_keys=True).encode()).hexdigest()
