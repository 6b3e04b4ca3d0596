"""The tokenizer of a model: known by the digest of its files, and read, token string to row number, where somebody has to know.

A tokenizer can be a hundred megabytes and twenty times that once it is parsed. Most models of a merge have the same one: then
none is parsed. Where they differ they are parsed one after the other, and of each only the ids are kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.room import ENTRY, NUMBER, STRING, Room, json_cost, text_cost
from paramdelta_dist.checkpoint.sidefiles import says_tokens
from paramdelta_dist.storage import Identity, StorageConfig, Store, open_store, read_whole, stream_object

MAX_TOKENIZER = 512 << 20
"""Longest file of a vocabulary that is read, in bytes."""
_BINARY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3", "tekken.json")
_SOURCES = ("tokenizer.json", "vocab.json", "vocab.txt", *_BINARY)
"""Files that a vocabulary can be in; the first that is there is the one. Where none is, all files of a tokenizer are, that are not
among those below."""
_ADDED = ("added_tokens.json", "tokenizer_config.json")
"""Files that keep tokens beside the vocabulary."""
_NO_SOURCE = re.compile(r"(.*[._-])?(config|map|merges|template|normalizer|added_tokens)([._-].*)?\.(json|txt)|.*\.py", re.IGNORECASE)
"""Files of a tokenizer that say how it is used, or in what order its pieces are joined."""

KEPT = ENTRY + NUMBER + 24
"""Bytes of a token of a vocabulary beside its text, lists of tokens that are told apart included."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a folder, known by its files."""

    store: Store
    files: Mapping[str, Identity]
    """Those it is read from; the vocabulary's first."""
    digest: str
    """Of the bytes of its vocabulary: equal digests need no comparison of that."""
    added: tuple[str, ...]
    """Digests of the files with tokens beside it."""

    @property
    def source(self) -> str:
        """File the vocabulary is in."""
        return next(iter(self.files))

    @property
    def is_known(self) -> bool:
        """Whether it is certain that this file holds a vocabulary."""
        return self.source in _SOURCES

    @property
    def key(self) -> tuple[str, ...]:
        """Equal where the ids are."""
        return (self.source, self.digest, *self.added)


@dataclass(frozen=True)
class Vocabulary:
    """Ids of tokens, as far as the format is ours to parse."""

    source: str
    """File the vocabulary was read from."""
    ids: dict[str, int] | None
    """Id of every token that is not special; None for what is not read."""
    special: dict[str, int]
    """Id of every added token."""
    problem: str = ""
    """Why a file of a format that is ours to parse was not read."""

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """Id of every token, special or not; empty where only the digest is known."""
        return {**(self.ids or {}), **self.special} if self.special else self.ids or {}

    def number(self, token: str) -> int | None:
        """Id of a token, special or not."""
        found = self.special.get(token)
        return (self.ids or {}).get(token) if found is None else found

    @cached_property
    def memory(self) -> int:
        """Bytes it takes, at most."""
        return sum(KEPT * len(table) + sum(map(sys.getsizeof, table)) for table in (self.ids or {}, self.special))


class Tokenizers:
    """The tokenizers of the folders that a recipe names, each looked at once, in the version that was listed."""

    def __init__(self, storage: StorageConfig, room: Room | None = None) -> None:
        """Vocabularies that are kept here take their place in `room`."""
        self._storage = storage
        self.room = room or Room()
        self._found: dict[str, Tokenizer | None] = {}
        self._kept: dict[tuple[str, ...], Vocabulary] = {}

    def of(self, url: str, side_files: Mapping[str, Identity]) -> Tokenizer | None:
        """The tokenizer of a folder, given its side files; None when it has none. Raises InputChanged when they are others by now."""
        if url not in self._found:
            self._found[url] = _find(open_store(url, self._storage), side_files)
        return self._found[url]

    def vocabulary(self, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer, kept until it is dropped; of a broken file or a strange format, that it is one. Raises
        InputChanged when it is another by now, OverBudget when there is no room.
        """
        if tokenizer.key not in self._kept:
            found = self._read(tokenizer)
            self.room.take(found.memory, f"{tokenizer.store.url}/{tokenizer.source}")
            self._kept[tokenizer.key] = found
        return self._kept[tokenizer.key]

    def same(self, one: Tokenizer, other: Tokenizer) -> bool:
        """Whether two are known to give every id to the same token, without looking into vocabularies.

        Raises InputChanged when one is another by now, OverBudget when there is no room.
        """
        return one.key == other.key or (one.digest == other.digest and self._added(one) == self._added(other))

    def _added(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Tokens that stand beside the vocabulary, in small files. One that is none of ours to read says nothing."""
        found: dict[str, int] = {}
        for name in tokenizer.files:
            if name in _ADDED:
                try:
                    found |= self._parsed(tokenizer, name, _from_added_tokens if name == "added_tokens.json" else _from_config)[1]
                except NotReadable:
                    continue
        return found

    def drop(self, tokenizer: Tokenizer) -> None:
        """Let go of a vocabulary."""
        found = self._kept.pop(tokenizer.key, None)
        if found is not None:
            self.room.give_back(found.memory)

    def _read(self, tokenizer: Tokenizer) -> Vocabulary:
        source, parse = tokenizer.source, _PARSERS.get(tokenizer.source)
        if parse is None:  # others shift the ids, each in its own way
            return Vocabulary(source, None, self._added(tokenizer))
        try:
            ids, special = self._parsed(tokenizer, source, parse)
        except NotReadable as error:
            return Vocabulary(source, None, self._added(tokenizer), str(error))
        with self.room.taken(Vocabulary(source, ids, special).memory, f"{tokenizer.store.url}/{source}"):
            added = self._added(tokenizer)
        if source == "tokenizer.json":  # which says of itself what is added to it; only what it has not comes from elsewhere
            return Vocabulary(
                source, ids, special | {token: number for token, number in added.items() if token not in ids and token not in special}
            )
        for token in added:
            ids.pop(token, None)
        return Vocabulary(source, ids, added)

    def _parsed(self, tokenizer: Tokenizer, name: str, parse: Callable[[bytearray, Callable[[int], None]], _Ids]) -> _Ids:
        where, identity = f"{tokenizer.store.url}/{name}", tokenizer.files[name]
        others = {other.key: other.files[other.source].size for other in self._found.values() if other and other.key not in self._kept}
        unread = sum(others.values()) - others.get(tokenizer.key, 0)
        with ExitStack() as taken:

            def take(size: int) -> None:
                taken.enter_context(self.room.taken(size, where, ahead=size * unread // max(1, identity.size)))

            take(identity.size)
            data = read_whole(tokenizer.store, name, identity, limit=MAX_TOKENIZER)
            try:
                return parse(data, take)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise NotReadable(str(error)[:200]) from None


_Ids = tuple[dict[str, int], dict[str, int]]
"""Ids of tokens, and those of them that were added."""


class NotReadable(Exception):
    """A file is broken, or of a format that is not ours to parse: all that can be told of it is whether its bytes are others."""


def _find(store: Store, side_files: Mapping[str, Identity]) -> Tokenizer | None:
    source = next((name for name in _SOURCES if name in side_files), None)
    sources = [source] if source else [name for name in sorted(side_files) if says_tokens(name) and not _NO_SOURCE.fullmatch(name)]
    if not sources:
        return None
    beside = [name for name in _ADDED if name in side_files]
    digests = [_digest(store, name, side_files[name]) for name in (*sources, *beside)]
    whole = digests[0] if len(sources) == 1 else hashlib.sha256(" ".join(digests[: len(sources)]).encode()).hexdigest()
    files = {name: side_files[name] for name in (*sources, *beside)}
    return Tokenizer(store, files, whole, tuple(digests[len(sources) :]))


def _digest(store: Store, name: str, identity: Identity) -> str:
    digest = hashlib.sha256()
    for piece in stream_object(store, name, identity):
        digest.update(piece)
    return digest.hexdigest()


def _loaded(data: bytearray, take: Callable[[int], None]) -> Any:
    """JSON, once there is room for it."""
    take(json_cost(data))
    return json.loads(str(data, "utf-8"))


def _from_added_tokens(data: bytearray, take: Callable[[int], None]) -> _Ids:
    return {}, _checked(_loaded(data, take))


def _from_config(data: bytearray, take: Callable[[int], None]) -> _Ids:
    decoder = _loaded(data, take).get("added_tokens_decoder") or {}
    return {}, _checked({entry["content"]: int(number) for number, entry in decoder.items()})


def _from_sentencepiece(data: bytearray, take: Callable[[int], None]) -> _Ids:
    """Ids of the pieces of a SentencePiece model: field 1 of the message, whose field 1 is the text.

    Raises ValueError when it is none.
    """
    take(3 * len(data) + (data.count(b"\x0a") + data.count(b"\x8a")) * (STRING + ENTRY + NUMBER))  # as a field 1 begins
    pieces: dict[str, int] = {}
    try:
        number = 0
        for field, value in _fields(bytes(data)):
            if field == 1 and isinstance(value, bytes):
                pieces[next(text for inner, text in _fields(value) if inner == 1 and isinstance(text, bytes)).decode()] = number
                number += 1
    except (ValueError, LookupError, StopIteration):
        raise ValueError("not a SentencePiece model") from None
    if not pieces:
        raise ValueError("not a SentencePiece model")
    return pieces, {}


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


def _from_tokenizer_json(data: bytearray, take: Callable[[int], None]) -> _Ids:
    tokenizer: dict[str, Any] = _loaded(data, take)
    vocab = tokenizer["model"].pop("vocab")
    added = _checked({entry["content"]: entry["id"] for entry in tokenizer.pop("added_tokens", None) or ()})
    tokenizer.clear()  # above all the merges, of which there are more than tokens
    if isinstance(vocab, list):  # Unigram: pairs of token and score, the id is the place
        take(len(vocab) * (ENTRY + NUMBER))
        vocab = {entry[0]: position for position, entry in enumerate(vocab)}
    ids = _checked(vocab)
    for token in added:
        ids.pop(token, None)
    return ids, added


def _from_vocab_json(data: bytearray, take: Callable[[int], None]) -> _Ids:
    return _checked(_loaded(data, take)), {}


def _from_vocab_txt(data: bytearray, take: Callable[[int], None]) -> _Ids:
    take(2 * text_cost(data) + 4 * len(data) + (data.count(b"\n") + data.count(b"\r") + 1) * (STRING + ENTRY + NUMBER))
    lines = io.StringIO(data.decode(), newline=None)  # not splitlines(), which also cuts inside some tokens
    return {line.rstrip("\n"): number for number, line in enumerate(lines)}, {}


_PARSERS = {
    "tokenizer.json": _from_tokenizer_json,
    "vocab.json": _from_vocab_json,
    "vocab.txt": _from_vocab_txt,
    "tokenizer.model": _from_sentencepiece,
}


def _checked(ids: dict[Any, Any]) -> dict[str, int]:
    for token, number in ids.items():
        if not isinstance(token, str) or not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"token {shown(token)} has the id {shown(number)}")
    return ids
