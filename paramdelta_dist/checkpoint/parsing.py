"""Parsing what several models say about their tensors: one text at a time, and a text that some of them share only once."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from threading import Lock

from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import Tensor, parse_header
from paramdelta_dist.checkpoint.index import parse_index
from paramdelta_dist.checkpoint.room import Room, json_cost

TENSOR = 640
"""Bytes of what is known of a tensor of one model, in the tables that it has a place in while its model is opened."""


class Parser:
    """Parses for models that are opened at the same time, each in a thread of its own.

    Parsing holds the interpreter, so that threads that do it side by side only hinder each other. And models of one family that
    were saved by one library have the same headers, byte for byte: those then share their tables, and nothing may change these.
    """

    def __init__(self, room: Room | None = None) -> None:
        """The values that are made of a text take their place in `room` for good."""
        self.room = room or Room()
        self._turn = Lock()
        self._indexes: dict[bytes, dict[str, str]] = {}
        self._headers: dict[tuple[bytes, int, int], dict[str, Tensor]] = {}
        """Both by digest: the text itself is not kept."""
        self._tables: dict[tuple[tuple[str, ...], tuple[int, ...], int], Tensors | None] = {}
        """By the names of the files, their tables and the index, which are kept above and so are told apart by their addresses."""

    def index(self, text: bytes | bytearray, *, where: str) -> dict[str, str]:
        """The index, as `parse_index` returns it; raises what that raises, and OverBudget where there is no room."""
        key = blake2b(text).digest()
        with self._turn:
            if key not in self._indexes:
                with self.room.taken(json_cost(text, pairs=True), where):
                    self._indexes[key] = parse_index(text, where=where)
                self.room.take(json_cost(text), where)
            return self._indexes[key]

    def header(self, text: bytes, *, file_size: int, where: str, file: int) -> dict[str, Tensor]:
        """The tensors of what `parse_header` returns; raises what that does, and OverBudget where there is no room."""
        key = (blake2b(text).digest(), file_size, file)
        with self._turn:
            if key not in self._headers:
                with self.room.taken(json_cost(text, pairs=True), where):
                    self._headers[key], _ = parse_header(text, file_size=file_size, where=where, file=file)
                self.room.take(len(self._headers[key]) * TENSOR, where)
            return self._headers[key]

    def table(self, names: Sequence[str], headers: Sequence[dict[str, Tensor]], index: dict[str, str] | None) -> Tensors | None:
        """The tensors of all files of a model; None where the index, if it has one, says otherwise. All are what this made."""
        key = (tuple(names), tuple(map(id, headers)), id(index))
        with self._turn:
            if key not in self._tables:
                tensors = Tensors(pair for header in headers for pair in header.items())
                held = {name: file for file, header in zip(names, headers, strict=True) for name in header}
                agreed = index is None or (held == index and len(held) == sum(map(len, headers)))
                self._tables[key] = tensors if agreed else None
            return self._tables[key]
