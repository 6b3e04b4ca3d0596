"""Which tensors have one row for each token: embeddings, output heads, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable

VOCABULARY_TENSORS = (
    "embed_tokens.weight", "embed_tokens_per_layer.weight", "tok_embeddings.weight", "word_embeddings.weight", "embed_in.weight",
    "wte.weight", "shared.weight", "lm_head.weight", "lm_head.bias", "embed_out.weight", "shared_head.head.weight", "output.weight",
    "cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
)  # fmt: skip
"""Last parts of their names. `output.weight` is one only where it is the whole name: inside layers it is something else."""
_ENDINGS = tuple("." + last for last in VOCABULARY_TENSORS)


def is_vocabulary_tensor(name: str) -> bool:
    """Whether the rows of a tensor of this name belong to tokens."""
    if name.endswith("output.weight"):
        return name == "output.weight"
    return f".{name}".endswith(_ENDINGS)


def input_embeddings(names: Iterable[str]) -> str | None:
    """The tensor whose rows `vocab_size` counts; None where no name is known."""
    found = [name for name in names if is_vocabulary_tensor(name)]
    heads = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "head.weight", "output.weight", "per_layer.weight", "predictions.bias")
    return next((name for name in found if not name.endswith(heads)), found[0] if found else None)
