"""The vocabulary of a checkpoint, from whichever tokenizer file it has: token string to row number."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import StorageConfig, open_store

MAX_TOKENIZER = 256 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Ids of tokens, or only a digest where the format is not ours to parse."""

    source: str
    """File the vocabulary was read from."""
    digest: str
    """Of that file's bytes: equal digests need no comparison."""
    ids: dict[str, int] | None
    """Id of every token that is not special; None for binary formats."""
    special: dict[str, int]
    """Id of every added token."""


def read_vocabulary(checkpoint: Checkpoint, storage: StorageConfig) -> Vocabulary | None:
    """The vocabulary of a checkpoint; None when its folder has no tokenizer.

    Raises CheckpointError when a tokenizer file is there and broken.
    """
    store = open_store(checkpoint.url, storage)
    for name, parse in (("tokenizer.json", _from_tokenizer_json), ("vocab.json", _from_vocab_json), ("vocab.txt", _from_vocab_txt)):
        if name in checkpoint.side_files:
            data = store.read(name, limit=MAX_TOKENIZER)
            try:
                ids, special = parse(data)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise CheckpointError(f"{store.url}/{name}: not a tokenizer that can be read ({str(error)[:200]})") from None
            return Vocabulary(name, hashlib.sha256(data).hexdigest(), ids, special)
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3", "tekken.json"):
        if name in checkpoint.side_files:
            digest = hashlib.sha256(store.read(name, limit=MAX_TOKENIZER)).hexdigest()
            return Vocabulary(name, digest, None, {})
    return None


def _from_tokenizer_json(data: bytes) -> tuple[dict[str, int], dict[str, int]]:
    tokenizer: dict[str, Any] = json.loads(data)
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of token and score, the id is the place
        vocab = {entry[0]: position for position, entry in enumerate(vocab)}
    added = _checked({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or ()})
    return {token: number for token, number in _checked(vocab).items() if token not in added}, added


def _from_vocab_json(data: bytes) -> tuple[dict[str, int], dict[str, int]]:
    return _checked(json.loads(data)), {}


def _from_vocab_txt(data: bytes) -> tuple[dict[str, int], dict[str, int]]:
    lines = io.StringIO(data.decode(), newline=None)  # not splitlines(), which also cuts inside some tokens
    return {line.rstrip("\n"): number for number, line in enumerate(lines)}, {}


def _checked(ids: dict[Any, Any]) -> dict[str, int]:
    for token, number in ids.items():
        if not isinstance(token, str) or not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"token {shown(token)} has the id {shown(number)}")
    return ids
