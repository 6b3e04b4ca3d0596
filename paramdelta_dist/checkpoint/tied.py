"""Tensors that are one and stored more than once: an output head that is the input embeddings, as many trainers write it.

What a config says of it is not the last word: a model whose copies differ was trained with two tensors. Copies are told apart by
their bytes at places all over them, of small ones by all of them; each is read from its own place all the same when it is merged,
so that one which differs elsewhere is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from paramdelta_dist.checkpoint.families import Tensors, names_that
from paramdelta_dist.checkpoint.header import Tensor, shown
from paramdelta_dist.checkpoint.vocabulary import input_embeddings, is_vocabulary_tensor
from paramdelta_dist.storage import Store
from paramdelta_dist.threads import Threads

if TYPE_CHECKING:
    from paramdelta_dist.checkpoint.checkpoint import Checkpoint, WeightFile

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


def with_one_head(base: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A model with the copies of its embeddings that the base has, and without those that the base has not: what is one tensor
    is no difference, however often it is stored. The same object where there is nothing to do."""
    lacking = [name for name in base.tie.names if name not in other.tensors] if base.tie and _is_tied(other) else []
    surplus = [name for name in other.tie.names if name not in base.tensors] if other.tie and other.tie.equal and _is_tied(base) else []
    own = input_embeddings(other.tensors)
    if own is None or not (lacking or surplus):
        return other
    tensors = {name: tensor for name, tensor in other.tensors.items() if name not in surplus}
    return replace(other, tensors=Tensors(tensors | dict.fromkeys(lacking, other.tensors[own])))


def _is_tied(model: Checkpoint) -> bool:
    return model.tie.equal if model.tie else model.tied_embeddings


def ties_of(base: Checkpoint, others: Sequence[Checkpoint]) -> dict[str, str]:
    """The copies that the output has, and the tensor that each is: none where they differ in any model, or are two tensors in one."""
    if base.tie is None or not all(map(_is_tied, (base, *others))):
        return {}
    return dict.fromkeys(base.tie.copies, base.tie.embedding)


def ties_noted(base: Checkpoint, others: Sequence[Checkpoint], urls: Sequence[str]) -> list[str]:
    """Notes about the ties of the models, which are called `urls`, the base first."""
    notes = [
        f"{url}: {', '.join(map(shown, model.tie.copies[:3]))} and {shown(model.tie.embedding)} are tied by the config and differ: the "
        "tensors decide, each is merged from its own (transformers 5 does not tie them then, others may drop the output head)"
        for url, model in dict(zip(urls, (base, *others), strict=True)).items()
        if model.tie and not model.tie.equal
    ]
    if base.tie and (tied := ties_of(base, others)):
        notes.append(
            f"{', '.join(map(shown, list(tied)[:3]))}: one tensor with {shown(base.tie.embedding)}, and written equal to it whatever "
            "rules and globs say of its name"
        )
    return notes
