"""One output head for several models: copies of the embeddings that only some of them store are no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.vocabulary import input_embeddings

if TYPE_CHECKING:
    from paramdelta_dist.checkpoint.checkpoint import Checkpoint


def with_one_head(base: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A model with the copies of its embeddings that the base has, and without those that the base has not: what is one tensor
    is no difference, however often it is stored. The same object where there is nothing to do."""
    lacking = [name for name in base.tie.names if name not in other.tensors] if base.tie and _is_tied(other) else []
    surplus = [name for name in other.tie.names if name not in base.tensors] if other.tie and other.tie.equal and _is_tied(base) else []
    own = input_embeddings(other.tensors)
    if other.adapter or own is None or not (lacking or surplus):
        return other
    tensors = {name: tensor for name, tensor in other.tensors.items() if name not in surplus}
    return replace(other, tensors=Tensors(tensors | dict.fromkeys(lacking, other.tensors[own])))


def _is_tied(model: Checkpoint) -> bool:
    return model.tie.equal if model.tie else model.tied_embeddings


def ties_of(base: Checkpoint, others: Sequence[Checkpoint]) -> dict[str, str]:
    """The copies that the output has, and the tensor that each is: none where they differ in any model, or are two tensors in one.
    An adapter that would change one of them alone is refused where it is opened."""
    if base.tie is None or not all(_is_tied(model) for model in (base, *others) if not model.adapter):
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
