"""Entries of vocabulary tensors, one for each token: a row of embeddings and output heads, a column, a number of a bias.

Sizes tell: every field of a config, at any depth, that counts a vocabulary, and the tensors that have such a size in a dimension.
Names help with what it means: they say which of them are known, which vocabularies are of words, and which are codes of sound or
pictures, segments and the like, that no tokenizer speaks of. What has such a size and no known name is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from paramdelta_dist.checkpoint.components import locate
from paramdelta_dist.checkpoint.families import names_that

if TYPE_CHECKING:
    from paramdelta_dist.checkpoint.header import Tensor

VOCABULARY_TENSORS = (
    "embed_tokens.weight", "embed_tokens_per_layer.weight", "tok_embeddings.weight", "word_embeddings.weight", "embed_in.weight",
    "wte.weight", "shared.weight", "lm_head.weight", "lm_head.bias", "embed_out.weight", "shared_head.head.weight", "output.weight",
    "cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
)  # fmt: skip
"""Last parts of names that always mean so. `output.weight` is one only where it is the whole name: inside layers it is something else."""
_ENDINGS = tuple("." + last for last in VOCABULARY_TENSORS)
_WHERE_THE_SIZE_FITS = re.compile(
    r"(.*\.)?(embeddings|word_embedding|token_embedding|text_embeddings?|tokens_embed|input_embedding|value_embeddings|embed_text_tokens|embed"
    r"|embed_tokens\.embed_tokens|decoder\.embedding|encoder\.embedding|transformer\.w)\.weight"
    r"|(.*\.)?(final_logits_bias|lm_head\.logit_scale|(lm_head|generator_lm_head|output_projection|proj_out|ctc_head|lm_loss|vocab_projector"
    r"|pred_layer\.proj|predictions|predictions\.decoder|predictions\.dense|lm_head\.decoder|lm_head\.out_proj|mlm_head|mlm_head\.decoder"
    r"|mmm_text_head|mmm_text_head\.decoder|joint\.head|embedding_decoder|logits_dense|encoder\.out)\.(weight|bias))"
    r"|(decoder|head|head\.decoder|output)\.(weight|bias)"
)
"""Names that mean so where a dimension has the size of a vocabulary of words, and something else where none has."""
_HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "head.weight", "output.weight", "per_layer.weight", "predictions.bias")

_WORDS = re.compile(
    r"((padded|unpadded|text|src|tgt|source|target|word|orig|org|original|encoder|decoder|input|output)_)*vocab_size(_per_layer_input)?"
)
"""Fields that count words."""
_CODES = re.compile(
    r"(.*_)?(type|entity|audio|codebook|codec|mel|unit|hifi_gan|t2u|pronunciation|shape|speakers?|composer|char|image|visual|vision|speech"
    r"|additional|label|class|object)s?_vocab_size"
)
"""Fields that count what is no word."""
_OF_CODES = re.compile(
    r"(talker|codec|code|audio|speech|sound|vision|visual|image|codebook|vocoder|t2u|depth|acoustics|mimi|hifi|quantizer|vq)s?(?=_|\d|$)|codebook"
)
"""Sections of a config, and modules, that have codes: told from their beginning, or from a part of their name behind an underline."""


_FEW_BEHIND = 64
"""Most entries behind a vocabulary that are no rounding up of its size."""


def is_vocabulary_tensor(name: str) -> bool:
    """Whether the rows of a tensor of this name belong to tokens, whatever the config says."""
    if name.endswith("output.weight"):
        return name == "output.weight"
    return f".{name}".endswith(_ENDINGS)


def input_embeddings(tensors: Mapping[str, Tensor]) -> str | None:
    """The tensor whose rows `vocab_size` counts; None where no name is known."""
    found = names_that(is_vocabulary_tensor, tensors) or names_that(_is_embedding, tensors)
    return next((name for name in found if not name.endswith(_HEADS)), found[0] if found else None)


def _is_embedding(name: str) -> bool:
    return name.endswith(".weight") and "embed" in name and bool(_WHERE_THE_SIZE_FITS.fullmatch(name))


class Field(NamedTuple):
    """A field of a config that counts the entries of a vocabulary."""

    name: str
    """Dotted."""
    size: int
    words: bool | None
    """Whether of words; None where nobody knows."""


class Answers(NamedTuple):
    """The answers of a recipe about tensors that have the size of a vocabulary: globs on their names."""

    tensors: tuple[str, ...] = ()
    """Those that have an entry for each token."""
    others: tuple[str, ...] = ()
    """Those that have not."""


NO_ANSWERS = Answers()


class Entries(NamedTuple):
    """The dimension that has an entry for each token, of each tensor that has one."""

    known: dict[str, int]
    asked: dict[str, int]
    """Tensors with such a dimension, of which nobody knows what they are."""


Model = tuple[Mapping[str, Any] | None, Mapping[str, "Tensor"]]
"""Its config and its tensors."""


def vocabulary_fields(config: Mapping[str, Any] | None) -> tuple[Field, ...]:
    """Every field at any depth that counts a vocabulary."""
    return tuple(_fields(config or {}, ""))


def _fields(section: Mapping[str, Any], prefix: str) -> Iterator[Field]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{key}.")
        elif isinstance(key, str) and "vocab_size" in key and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield Field(f"{prefix}{key}", value, _are_words(prefix, key))


def _are_words(prefix: str, key: str) -> bool | None:
    if _CODES.fullmatch(key) or (has_codes(prefix) and not key.startswith("text_")):
        return False
    return True if _WORDS.fullmatch(key) else None


def has_codes(path: str) -> bool:
    """Whether a place in a config or a model, by its dotted name, is one of codes."""
    return any(_OF_CODES.match(part) for segment in path.split(".") for part in (segment, *segment.split("_")[1:]))


def find_entries(models: Sequence[Model], answers: Answers = NO_ANSWERS, *, tokens: int = 0, moved: bool = True) -> Entries:
    """Among the tensors of the first model, those that have an entry for each token.

    A vocabulary of fewer than `tokens`, which is how many the tokenizer has without those that were added, is not one of words.
    Unless tokens have `moved`, only tensors whose shapes differ are asked about: numbers stay what they are in the others.
    """
    fields = [_counted(vocabulary_fields(config), tokens) for config, _ in models]
    words = [{field.size for field in each if field.words} for each in fields]
    codes = [{field.size for field in each if field.words is False} for each in fields]
    every = [{field.size for field in each if field.words is not False} for each in fields]
    of_codes = {part.removesuffix("_config") for part in _sections(models[0][0] or {}) if has_codes(part)}
    ordinary = set(_other_numbers(models[0][0] or {}))
    known: dict[str, int] = {}
    asked: dict[str, int] = {}
    sure_names = set(names_that(is_vocabulary_tensor, models[0][1]))
    outside = set(names_that(lambda name: "layers" not in name, models[0][1]))
    shapes = {tensor.shape for tensor in models[0][1].values()}
    shapes = {shape for shape in shapes if answers.tensors or any(size in every[0] for size in shape)}
    for name, tensor in models[0][1].items():
        if not tensor.shape or not (tensor.shape in shapes or name in sure_names or name in outside):
            continue
        sure = name in sure_names
        held = [(model, tensors[name].shape) for model, (_, tensors) in enumerate(models) if name in tensors]
        if any(len(shape) != len(tensor.shape) for _, shape in held):
            continue
        fitting = [d for d in range(len(tensor.shape)) if all(shape[d] in every[model] for model, shape in held)]
        differing = [d for d in range(len(tensor.shape)) if len({shape[d] for _, shape in held}) > 1]
        by_words = [d for d in fitting if all(shape[d] in words[model] for model, shape in held)]
        if _any(answers.others, name):
            continue
        if _any(answers.tensors, name):
            known[name] = [*(d for d in fitting if d in differing), *differing, *fitting, 0][0]
        elif sure and (not of_codes.isdisjoint(name.split(".")) or (not by_words and tensor.shape[0] in codes[0])):
            continue
        elif sure:
            known[name] = 0
        elif by_words and _WHERE_THE_SIZE_FITS.fullmatch(name):
            known[name] = by_words[0]
        elif not (moved or differing) or (locate(name).layer is not None and not {tensor.shape[d] for d in fitting} - ordinary):
            continue
        elif not fitting and _WHERE_THE_SIZE_FITS.fullmatch(name) and (near := _a_little_longer(tensor.shape, words[0])) is not None:
            asked[name] = near
        elif fitting:
            asked[name] = next((d for d in fitting if d in differing), fitting[0])
    return Entries(known, asked)


def _a_little_longer(shape: Sequence[int], words: Iterable[int]) -> int | None:
    """The dimension that has a few more entries than a vocabulary of words."""
    return next((d for d, size in enumerate(shape) if any(count < size <= count + count // 16 + 64 for count in words)), None)


def _sections(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield str(key)
            yield from _sections(value)


def _other_numbers(section: Mapping[str, Any]) -> Iterator[int]:
    """The sizes that a config has besides those of vocabularies: a tensor inside a layer that has such a size has it for that."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _other_numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and "vocab" not in str(key) and not str(key).endswith("_id"):
            yield value


def _counted(fields: Sequence[Field], tokens: int) -> list[Field]:
    """With those that are too small for the words of the tokenizer as codes."""
    return [field._replace(words=False) if field.size < tokens else field for field in fields]


def _any(globs: Sequence[str], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def differ_in_one(one: Sequence[int], other: Sequence[int], dimension: int | None) -> bool:
    """Whether two shapes are the same but for this dimension."""
    return (
        dimension is not None
        and len(one) == len(other)
        and all(d == dimension or a == b for d, (a, b) in enumerate(zip(one, other, strict=True)))
    )


def rows_behind(models: Sequence[Model], entries: Mapping[str, int]) -> dict[str, int]:
    """The number of entries that the tensors of `entries` have behind those of their vocabulary, where that is the same number in every
    model and not 0, as in a table with a row for what begins a text: such a row belongs to no token, and stands at the end wherever
    that is."""
    fields = [{field.name: field.size for field in vocabulary_fields(config)} for config, _ in models]
    found: dict[str, int] = {}
    for name, dimension in entries.items():
        gaps = [
            {tensors[name].shape[dimension] - own[field.name] if name in tensors and field.name in own else -1
             for own, (_, tensors) in zip(fields, models, strict=True)}
            for field in vocabulary_fields(models[0][0]) if field.words is not False
        ]  # fmt: skip
        constant = [gap for each in gaps if len(each) == 1 for gap in each if gap >= 0]
        if constant and 0 < min(constant) <= _FEW_BEHIND:
            found[name] = min(constant)
    return found


def field_changes(models: Sequence[Model], entries: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
    """New values, by dotted name, of the fields of the first model's config that count vocabularies, where the tensors `entries` tell of
    get the `sizes`: each as the tensors that have its size, in every model where that decides; one that no tensor has exactly, as those
    that are longer than it by the same number in all models."""
    changes: dict[str, int] = {}
    fields = [{field.name: field.size for field in vocabulary_fields(config)} for config, _ in models]
    for field in vocabulary_fields(models[0][0]):
        if field.words is False:
            continue

        def beyond(name: str, field: Field = field) -> list[int]:
            """By how much a tensor is longer than the field says, in each model that has both."""
            return [
                tensors[name].shape[entries[name]] - own[field.name]
                for own, (_, tensors) in zip(fields, models, strict=True)
                if field.name in own and name in tensors
            ]

        gaps = {name: beyond(name) for name in sizes}
        here = [name for name in sizes if gaps[name] and gaps[name][0] == 0]
        exact = [name for name in here if not any(gaps[name])] or here
        constant = [name for name in sizes if gaps[name] and len(set(gaps[name])) == 1 and 0 < gaps[name][0] < field.size]
        for name in [*exact, *constant][:1]:
            size = sizes[name] - gaps[name][0]
            if size != field.size:
                changes[field.name] = size
    return changes
