"""Tensors that are one and stored more than once: an output head that is the input embeddings, as many trainers write it.

What a config says of it is not the last word: a model whose copies differ was trained with two tensors. Copies are told apart by
their bytes at places all over them, of small ones by all of them; each is read from its own place all the same when it is merged,
so that one which differs elsewhere is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.families import names_that
from paramdelta_dist.checkpoint.header import Tensor, WeightFile
from paramdelta_dist.checkpoint.vocabulary import input_embeddings, is_vocabulary_tensor
from paramdelta_dist.storage import Store
from paramdelta_dist.threads import Threads

_HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight")

_ENCODERS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight")
"""Input embeddings that models of two halves share."""

PIECE = 16 << 10

PIECES = 16
"""Bytes of a place that is looked at, and how many places of each copy are."""


class Tie(NamedTuple):
    """Copies of the input embeddings in a model that does not say that they are others."""

    embedding: str
    copies: tuple[str, ...]
    equal: bool
    """Whether all of them hold the same numbers, wherever that was looked at."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.embedding, *self.copies)


def find_tie(store: Store, files: Sequence[WeightFile], tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Tie | None:
    """The tie of a model; None where the config says that there is none, or nothing is stored twice. Reads some places of weights."""
    says = _says(config)
    embedding = input_embeddings(tensors)
    if says is False or embedding is None:
        return None
    whole = tensors[embedding]
    copies = names_that(lambda name: _is_copy(name, embedding), tensors)
    alike = [name for name in copies if name != embedding and tensors[name][:2] == whole[:2]]
    if not alike:
        return None

    def piece(place: tuple[str, int]) -> bytes:
        tensor = tensors[place[0]]
        file = files[tensor.file]
        start = tensor.start + place[1]
        return bytes(store.read_range(file.name, start, min(start + PIECE, tensor.stop), identity=file.identity))

    size = whole.stop - whole.start
    last = max(0, size - PIECE)
    offsets = sorted({last * number // (PIECES - 1) for number in range(PIECES)})
    with Threads(PIECES) as pool:
        looks = {name: list(pool.map(piece, [(name, offset) for offset in offsets])) for name in (embedding, *alike)}
    equal = [name for name in alike if looks[name] == looks[embedding]]
    if says is None:  # then only what is equal shows that there is one
        return Tie(embedding, tuple(equal), equal=True) if equal else None
    return Tie(embedding, tuple(alike), equal=len(equal) == len(alike))


def _says(config: Mapping[str, Any] | None) -> bool | None:
    for table in (config, (config or {}).get("text_config")):
        if isinstance(table, Mapping) and isinstance(table.get("tie_word_embeddings"), bool):
            return bool(table["tie_word_embeddings"])
    return None


def _is_copy(name: str, embedding: str) -> bool:
    """Whether a tensor is, by its name, the output head or the embeddings of one half of the model."""
    if not is_vocabulary_tensor(name):
        return False
    if name == "output.weight" or f".{name}".endswith(tuple("." + head for head in _HEADS)):
        return True
    return name.endswith(_ENCODERS) and embedding.endswith(_ENCODERS)
