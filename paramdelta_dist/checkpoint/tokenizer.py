"""The vocabulary of a checkpoint, from whichever tokenizer file it has: token string to row number."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import Identity, StorageConfig, Store, open_store

MAX_TOKENIZER = 256 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Ids of tokens, or only a digest where the format is not ours to parse."""

    source: str
    """File the vocabulary was read from."""
    digest: str
    """Of that file's bytes: equal digests need no comparison."""
    ids: dict[str, int] | None
    """Id of every token that is not special; None for formats that are not read."""
    special: dict[str, int]
    """Id of every added token."""

    @property
    def tokens(self) -> dict[str, int]:
        """Id of every token, special or not; empty where only the digest is known."""
        return {**(self.ids or {}), **self.special}


def read_vocabulary(checkpoint: Checkpoint, storage: StorageConfig) -> Vocabulary | None:
    """The vocabulary of a checkpoint; None when its folder has no tokenizer.

    Raises CheckpointError when a tokenizer file is there and broken.
    """
    return vocabulary_at(checkpoint.url, checkpoint.side_files, storage)


def vocabulary_at(url: str, side_files: Mapping[str, Identity], storage: StorageConfig) -> Vocabulary | None:
    """The same, of a folder that need not hold weights, given its side files."""
    store = open_store(url, storage)
    for name, parse in (("tokenizer.json", _from_tokenizer_json), ("vocab.json", _from_vocab_json), ("vocab.txt", _from_vocab_txt)):
        if name in side_files:
            data = store.read(name, limit=MAX_TOKENIZER)
            try:
                ids, special = parse(data)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise CheckpointError(f"{store.url}/{name}: not a tokenizer that can be read ({str(error)[:200]})") from None
            if name != "tokenizer.json":
                added = _added_tokens(store, side_files)
                ids, special = {token: number for token, number in ids.items() if token not in added}, {**special, **added}
            return Vocabulary(name, hashlib.sha256(data).hexdigest(), ids, special)
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3", "tekken.json"):
        if name in side_files:
            data = store.read(name, limit=MAX_TOKENIZER)
            known = _from_sentencepiece(data) if name == "tokenizer.model" else None  # others shift the ids, each in its own way
            added = _added_tokens(store, side_files) if known else {}
            plain = {token: number for token, number in known.items() if token not in added} if known else None
            return Vocabulary(name, hashlib.sha256(data).hexdigest(), plain, added)
    return None


def _added_tokens(store: Store, side_files: Mapping[str, Identity]) -> dict[str, int]:
    """Tokens that older tokenizers keep beside their vocabulary. Raises CheckpointError when those files are broken."""
    added: dict[str, int] = {}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        if name not in side_files:
            continue
        try:
            content = json.loads(store.read(name, limit=MAX_TOKENIZER))
            if name == "tokenizer_config.json":
                content = {entry["content"]: int(number) for number, entry in (content.get("added_tokens_decoder") or {}).items()}
            added |= _checked(content)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{store.url}/{name}: not a tokenizer that can be read ({str(error)[:200]})") from None
    return added


def _from_sentencepiece(data: bytes) -> dict[str, int] | None:
    """Ids of the pieces of a SentencePiece model: field 1 of the message, whose field 1 is the text. None when it is none."""
    pieces: dict[str, int] = {}
    try:
        number = 0
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                pieces[next(text for inner, text in _fields(value) if inner == 1 and isinstance(text, bytes)).decode()] = number
                number += 1
    except (ValueError, LookupError, StopIteration):
        return None
    return pieces or None


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of the fields of a protobuf message. Raises ValueError or IndexError when it is cut off or not one."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("not a number")

    while place < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError("not a message")
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        if place + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[place : place + size]
        place += size


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
