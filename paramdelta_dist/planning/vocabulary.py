"""Vocabularies of different sizes or orders: what each row of the output is made of, by the recipe's `vocab`.

`pad`: rows keep their numbers. The output has as many as the largest model; those that every model has are merged, each
other one comes whole from the first model that has it, in the order: the one whose tokenizer is written, the base, the
posts, their bases.

`by-token`: rows follow the tokenizer that is written, and are found in each model by the text of their token. A row
without a token (padding) is found by its number among the rows without a token. A row that the base has is merged; a delta
takes part in it where its post and its base both have the token, and is zero there otherwise. A row that the base lacks
comes whole from the first model that has it, in the order above. The output has as many rows as the model whose tokenizer is
written, so that padding stays; where the tokenizer comes from elsewhere, as many as its ids need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.homology import flat_config
from paramdelta_dist.checkpoint.tokenizer import Vocabulary
from paramdelta_dist.checkpoint.vocabulary import input_embeddings, is_vocabulary_tensor
from paramdelta_dist.errors import HomologyError, UsageError
from paramdelta_dist.planning.rows import ABSENT, RowMap, Way, map_rows
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.storage import redact

Vocabularies = Mapping[str, Vocabulary | None]
"""Vocabulary of each model, and of the folder whose tokenizer is written, by URL."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which model is what, by position; the base is 0."""

    urls: tuple[str, ...]
    deltas: tuple[tuple[int, int], ...]
    """(post, base) of every delta."""
    writer: int | None
    """The model whose tokenizer is written; None where it is none of them."""

    @property
    def order(self) -> tuple[int, ...]:
        """In which models a row that comes whole is looked for."""
        writer = () if self.writer is None else (self.writer,)
        return tuple(dict.fromkeys([*writer, 0, *(post for post, _ in self.deltas), *(base for _, base in self.deltas)]))


def row_maps(mode: str, roles: Roles, models: Sequence[Checkpoint], vocabularies: Vocabularies, tokenizer: str) -> dict[str, RowMap]:
    """The map of each vocabulary tensor that is not the same in all models. `tokenizer` is the URL of the one written.

    Raises HomologyError when tokens of that tokenizer have a row in no model, UsageError when the deltas contradict one another.
    """
    if mode == "strict":
        return {}
    made: dict[tuple[int, ...], RowMap] = {}
    """Embeddings and heads of the same heights share one."""
    maps = {}
    for name in models[0].tensors:
        shapes = [model.tensors[name].shape for model in models if name in model.tensors]
        if not is_vocabulary_tensor(name) or len(shapes) < len(models) or not all(shapes):
            continue
        heights = tuple(shape[0] for shape in shapes)
        if heights not in made:
            made[heights] = _by_number(roles, heights) if mode == "pad" else _by_token(roles, heights, vocabularies, tokenizer, name)
        if not made[heights].plain:
            maps[name] = made[heights]
    return maps


def _by_number(roles: Roles, heights: Sequence[int]) -> RowMap:
    rows = max(heights)
    columns = [[row if row < height else ABSENT for row in range(rows)] for height in heights]

    def way_of(present: tuple[bool, ...]) -> Way:
        return _merged(roles, {m: m for m in range(len(heights))}) if all(present) else _whole(roles, present)

    return map_rows(columns, way_of)


def _by_token(roles: Roles, heights: Sequence[int], vocabularies: Vocabularies, tokenizer: str, name: str) -> RowMap:
    tables = [_tokens(vocabularies, url) for url in roles.urls]
    written = _tokens(vocabularies, tokenizer)
    token_at: dict[int, str] = {}
    for token, number in written.items():
        token_at.setdefault(number, token)
    rows = heights[roles.writer] if roles.writer is not None else max(token_at, default=ABSENT) + 1
    columns = [_column(rows, token_at, table, height) for table, height in zip(tables, heights, strict=True)]
    homeless = [token_at[row] for row, here in enumerate(zip(*columns, strict=True)) if max(here) == ABSENT and row in token_at]
    if homeless:
        raise HomologyError(
            f"{name}: {len(homeless)} tokens of the tokenizer in {redact(tokenizer)} have a row in no model, such as "
            f"{', '.join(map(shown, homeless[:3]))}; take the tokenizer from a model of the recipe (tokenizer_from)"
        )
    if rows == 0:
        raise HomologyError(f"{name}: the tokenizer in {redact(tokenizer)} has no tokens")
    return map_rows(columns, lambda present: _delta_way(roles, present) if present[0] else _whole(roles, present))


def _tokens(vocabularies: Vocabularies, url: str) -> dict[str, int]:
    found = vocabularies.get(url)
    if found is None or found.ids is None:  # the check of the models has said so already, unless it was left out
        raise HomologyError(f"{redact(url)} has no tokenizer whose tokens can be read, which `vocab: by-token` needs")
    return found.tokens


def _column(rows: int, token_at: Mapping[int, str], table: Mapping[str, int], height: int) -> list[int]:
    """For each row of the output, the row of a model: that of the token, or for a row without one the unnamed row of this number."""
    named = set(table.values())
    column = []
    for row in range(rows):
        token = token_at.get(row)
        found = table.get(token, ABSENT) if token is not None else ABSENT if row in named else row
        column.append(found if found < height else ABSENT)
    return column


def _whole(roles: Roles, present: Sequence[bool]) -> Way:
    """Rows that are taken from one model as they are."""
    origin = next((model for model in roles.order if present[model]), None)
    if origin is None:  # unnamed rows between the ids of a tokenizer from elsewhere: nothing points at them
        raise HomologyError("the tokenizer has ids without a token, and no model has such rows; take it from a model of the recipe")
    return Way(False, tuple(model if model == origin else None for model in range(len(present))))


def _merged(roles: Roles, stands: Mapping[int, int]) -> Way:
    """Rows that are computed, with the rows of `stands[model]` in a model's place; models that no delta names are not read."""
    involved = {0, *(model for delta in roles.deltas for model in delta)}
    return Way(True, tuple(stands.get(model, 0) if model in involved else None for model in range(len(roles.urls))))


def _delta_way(roles: Roles, present: Sequence[bool]) -> Way:
    """Rows that the base has: a delta whose post or base lacks them is made zero, by reading the same rows for both.

    Raises UsageError where a model takes part in two deltas and would have to be itself in one and another in the other.
    """
    stands = {0: 0}
    absent = []
    for post, base in roles.deltas:
        if present[post] and present[base]:
            stands |= {post: post, base: base}
        else:
            absent.append((post, base))
    for _ in absent:  # as often as a chain of deltas can be long
        for post, base in absent:
            for one, other in ((post, base), (base, post)):
                if one in stands:
                    stands.setdefault(other, stands[one])
    for post, base in absent:
        if stands.get(post) != stands.get(base):
            raise UsageError(
                f"vocab: by-token: {redact(roles.urls[post])} and {redact(roles.urls[base])} do not both have the same tokens, and both "
                "take part in other deltas as well; merge the deltas one after the other, each with a recipe of its own"
            )
    return _merged(roles, stands)


def config_changes(base: Mapping[str, Any] | None, writer: Mapping[str, Any] | None, rows: int | None) -> dict[str, Any]:
    """Fields of the base's config.json, by dotted name, that a changed vocabulary makes wrong, and what they should be.

    `rows` is the number of rows of the input embeddings where it is another, `writer` the config of the model whose
    tokenizer is written where ids mean other tokens than in the base: the ids of special tokens are then its own.
    """
    flat, theirs = flat_config(base), flat_config(writer)
    changes: dict[str, Any] = {}
    if rows is not None:
        names = [name for name in flat if name.rpartition(".")[2] == "vocab_size"]
        text = [name for name in names if name in ("vocab_size", "text_config.vocab_size", "llm_config.vocab_size")]
        changes |= dict.fromkeys(text or names[:1] or ["vocab_size"], rows)
    if writer is not None:
        ids = [name for name in flat.keys() | theirs.keys() if name.endswith(("_token_id", "_token_index"))]
        changes |= {name: theirs.get(name) for name in sorted(ids) if flat.get(name) != theirs.get(name)}
    return changes


def embedding_rows(maps: Mapping[str, RowMap], base: Checkpoint) -> int | None:
    """Rows of the output's input embeddings where the base has another number of them."""
    name = input_embeddings(base.tensors)
    if name is None or name not in maps or maps[name].rows == base.tensors[name].shape[0]:
        return None
    return maps[name].rows


def roles_of(urls: Sequence[str], deltas: Sequence[tuple[str, str]], tokenizer: str) -> Roles:
    """Roles from URLs: of all models, the base first; of the (post, base) of each delta; of the tokenizer that is written."""
    position = {url: number for number, url in enumerate(urls)}
    return Roles(tuple(urls), tuple((position[post], position[base]) for post, base in deltas), position.get(tokenizer))


VOCABULARY_MODES = ("pad", "by-token")
"""Those in which vocabularies may differ."""


def vocabulary_outcomes(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], vocabularies: Vocabularies, modes: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """(mode, what it would do with the rows of the input embeddings, in words) for each of these modes."""
    name = input_embeddings(checkpoints[recipe.base].tensors)
    models = [checkpoints[url] for url in recipe.models]
    if name is None or not all(name in model.tensors and model.tensors[name].shape for model in models):
        return ()
    deltas = [(delta.post, delta.base or recipe.base) for delta in recipe.deltas if delta.weight != 0]
    roles = roles_of(recipe.models, deltas, recipe.tokenizer_url)
    heights = [model.tensors[name].shape[0] for model in models]
    told = []
    for mode in modes:
        try:
            made = _by_number(roles, heights) if mode == "pad" else _by_token(roles, heights, vocabularies, recipe.tokenizer_url, name)
        except (HomologyError, UsageError) as error:
            told.append((mode, f"not possible: {error}"))
        else:
            told.append((mode, _in_words(made, roles)))
    return tuple(told)


def _in_words(rows: RowMap, roles: Roles) -> str:
    merged = partly = 0
    whole: dict[int, int] = {}
    for run in rows.runs():
        if not run.merged:
            origin = next(source[0] for source in run.sources if source is not None)
            whole[origin] = whole.get(origin, 0) + run.rows
        elif all(source is None or source[0] == model for model, source in enumerate(run.sources)):
            merged += run.rows
        else:
            partly += run.rows
    words = [f"{merged:,} of {rows.rows:,} rows merged"]
    words += [f"{partly:,} without the deltas that lack their token"] if partly else []
    words += [f"{count:,} whole from {redact(roles.urls[origin])}" for origin, count in sorted(whole.items())]
    return ", ".join(words)
