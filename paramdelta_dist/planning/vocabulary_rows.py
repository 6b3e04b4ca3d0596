"""Vocabularies of different sizes or orders: what each row of the output is made of, by the recipe's `vocab`.

`pad`: rows keep their numbers. The output has as many as the largest model; those that every model has are merged, each
other one comes whole from the first model that has it, in the order: the one whose tokenizer is written, the base, the
posts or models, the bases of the posts. A model whose tokenizer can be read does not have the row of a token that others
have and it has not: what stands there is padding.

`by-token`: rows follow the tokenizer that is written, and are found in each model by the text of their token. A row
without a token (padding) is found by its number among the rows without a token. A row that the base has is merged: a delta
takes part in it where its post and its base both have the token, and is zero there otherwise; a model that is merged as it is
and lacks the token has the base's row (the first model's where there is no base). A row that the base lacks comes whole from
the first model that has it, in the order above. The output has as many rows as the model whose tokenizer is written, so that padding
stays; where the tokenizer comes from elsewhere, as many as its ids need.

Rows that a table has behind its vocabulary, as many in every model, are no padding: they stay at the end, and are merged
with one another.

Each span of rows is a part of its own, so a method that has to look at the whole tensor first (a trim, a norm) cannot be used.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint, Tensor
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.tokenizer import Vocabulary
from paramdelta_dist.checkpoint.vocabulary import field_changes, find_entries, input_embeddings, rows_behind, vocabulary_fields
from paramdelta_dist.errors import HomologyError, UsageError
from paramdelta_dist.methods import BlockShape, find_method
from paramdelta_dist.planning.resolve import MethodCall, Resolver
from paramdelta_dist.planning.row_map import ABSENT, RowMap, RowSource, map_rows
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import redact

VOCABULARY_MODES = ("pad", "by-token")
"""Those in which vocabularies may differ."""
MOST_PARTS = 1 << 19
"""Pieces that one tensor is put together from."""

Vocabularies = Mapping[str, Vocabulary | None]
"""Vocabulary of each model, and of the folder whose tokenizer is written, by URL."""


class VocabularyPlanner:
    """Makes the row maps of a merge."""

    def __init__(self, recipe: Recipe, urls: Sequence[str], models: Sequence[Checkpoint], vocabularies: Vocabularies) -> None:
        """`urls` are those of `models`, the base first; `vocabularies` are needed by token, and where padding may have become a token."""
        self._mode, self._tokenizer = recipe.vocab, recipe.tokenizer_url
        self._urls, self._models, self._vocabularies = tuple(urls), models, vocabularies
        tokens = _plain(vocabularies.get(recipe.base)) if recipe.vocab == "by-token" else 0
        self._known = find_entries(_contents(models), recipe.answers, tokens=tokens, moved=False).known
        self._behind = rows_behind(_contents(models), self._known)
        self._writer = self._urls.index(self._tokenizer) if self._tokenizer in self._urls else None
        self._columns: dict[tuple[str, tuple[int, ...], int], list[list[int]]] = {}
        """For each mode and heights of a tensor in the models, and how many of its rows are behind the vocabulary, the row of each
        model for each row of the output."""

    def row_maps(self, calls: Sequence[MethodCall], call_of: Mapping[str, int]) -> dict[str, RowMap]:
        """The map of each vocabulary tensor that is not the same in all models, among those that are merged: `call_of` has the
        position of each among the `calls`.

        Raises HomologyError when tokens of the tokenizer that is written have a row in no model, UsageError when the method
        cannot be used, or the deltas contradict one another.
        """
        maps: dict[str, RowMap] = {}
        made: list[tuple[tuple[int, ...], int, MethodCall, RowMap]] = []
        """Embeddings and heads that are alike share one."""
        if self._mode == "strict":
            return maps
        for name in filter(self._known.__contains__, call_of):
            heights, call = self._heights(name), calls[call_of[name]]
            if heights is None:
                continue
            alike = heights, self._behind.get(name, 0), call
            found = next((rows for *others, rows in made if tuple(others) == alike), None)
            if found is None:
                found = self.row_map(self._mode, heights, call, name)
                made.append((*alike, found))
            if not found.plain:
                tensor = self._models[0].tensors[name]
                _require_cuttable(call, name, len(tensor.shape), self._known[name])
                if math.prod(tensor.shape[: self._known[name]]) * found.count > MOST_PARTS:
                    raise UsageError(
                        f"{shown(name)} has a column for each token, and would be put together from more than {MOST_PARTS:,} pieces; "
                        "leave it out with embeddings and output head (`exclude`) and set `tokenizer_from: base`"
                    )
                maps[name] = found
        self._require_equal_heights(call_of, maps)
        return maps

    def _require_equal_heights(self, merged: Collection[str], maps: Mapping[str, RowMap]) -> None:
        """Raise UsageError where one vocabulary tensor gets another number of rows and one that is copied from the base stays."""
        for name, tensor in self._models[0].tensors.items():
            if name in merged or name not in self._known:
                continue
            height = tensor.shape[self._known[name]]
            grown = {other: rows.rows for other, rows in maps.items() if self._models[0].tensors[other].shape[self._known[other]] == height}
            other = next((other for other, rows in grown.items() if rows != height), None)
            if other is not None:
                raise UsageError(
                    f"{shown(name)} is left out and keeps the base's {height:,} rows, but {shown(other)} would get "
                    f"{maps[other].rows:,}; leave out both or neither"
                )

    def outcome(self, mode: str, name: str, call: MethodCall) -> str:
        """What a mode would do with the rows of a tensor, in words."""
        heights = self._heights(name)
        if heights is None:
            return f"not possible: {name} is not in all models"
        try:
            return _in_words(self.row_map(mode, heights, call, name), self._urls)
        except (HomologyError, UsageError) as error:
            return f"not possible: {error}"

    def row_map(self, mode: str, heights: tuple[int, ...], call: MethodCall, name: str) -> RowMap:
        behind = self._behind.get(name, 0)
        if (mode, heights, behind) not in self._columns:
            of_tokens = tuple(height - behind for height in heights)
            columns = self._by_number(of_tokens) if mode == "pad" else self._by_token(of_tokens, name)
            ends = [range(height, height + behind) for height in of_tokens]
            self._columns[mode, heights, behind] = [[*column, *end] for column, end in zip(columns, ends, strict=True)]

        def source_of(present: tuple[bool, ...]) -> RowSource:
            if mode == "pad":
                return _merged(call, range(len(present))) if all(present) else self._whole(call, present)
            return self._standing_in(call, present) if present[0] else self._whole(call, present)

        return map_rows(self._columns[mode, heights, behind], source_of)

    def _heights(self, name: str) -> tuple[int, ...] | None:
        shapes = [model.tensors[name].shape for model in self._models if name in model.tensors]
        dimension = self._known.get(name, 0)
        if len(shapes) != len(self._models) or not all(len(shape) > dimension for shape in shapes):
            return None
        return tuple(shape[dimension] for shape in shapes)

    @property
    def dimensions(self) -> Mapping[str, int]:
        """Which dimension of a tensor has an entry for each token."""
        return self._known

    def _by_number(self, heights: tuple[int, ...]) -> list[list[int]]:
        tables = [self._vocabularies.get(url) for url in self._urls]
        named = [None if table is None or table.ids is None else set(table.tokens.values()) for table in tables]
        of_some = {row for own, height in zip(named, heights, strict=True) for row in own or () if row < height}
        return [
            [row if row < height and (own is None or row in own or row not in of_some) else ABSENT for row in range(max(heights))]
            for height, own in zip(heights, named, strict=True)
        ]

    def _by_token(self, heights: tuple[int, ...], name: str) -> list[list[int]]:
        tables = [self._tokens(url) for url in self._urls]
        token_at: dict[int, str] = {}
        for token, number in self._tokens(self._tokenizer).items():
            token_at.setdefault(number, token)
        rows = heights[self._writer] if self._writer is not None else max(token_at, default=heights[0] - 1) + 1
        columns = [_column(rows, token_at, table, height) for table, height in zip(tables, heights, strict=True)]
        homeless = [token_at[row] for row, here in enumerate(zip(*columns, strict=True)) if max(here) == ABSENT and row in token_at]
        if homeless or not rows:
            raise HomologyError(
                f"{name}: {len(homeless)} tokens of the tokenizer in {redact(self._tokenizer)} have a row in no model, such as "
                f"{', '.join(map(shown, homeless[:3]))}; take the tokenizer from a model of the recipe (tokenizer_from)"
            )
        return columns

    def _tokens(self, url: str) -> Mapping[str, int]:
        found = self._vocabularies.get(url)
        if found is None or found.ids is None:  # the check of the models says so of models; this is for a tokenizer from elsewhere
            raise HomologyError(
                f"{redact(url)} has no tokenizer whose tokens can be read, which `vocab: by-token` needs: take that of a model "
                "(`tokenizer_from`)"
            )
        return found.tokens

    def _whole(self, call: MethodCall, present: Sequence[bool]) -> RowSource:
        """Rows that are taken from one model as they are."""
        writer = () if self._writer is None else (self._writer,)
        order = [*writer, 0, *(term.post for term in call.terms), *(term.base for term in call.terms if term.base is not None)]
        origin = next((model for model in (*order, *range(len(present))) if present[model]), None)
        if origin is None:  # unnamed rows between the ids of a tokenizer from elsewhere: nothing points at them
            raise HomologyError("the tokenizer has ids without a token, and no model has such rows; take it from a model of the recipe")
        return RowSource(False, tuple(model if model == origin else None for model in range(len(present))))

    def _standing_in(self, call: MethodCall, present: Sequence[bool]) -> RowSource:
        """Rows that the base has: a delta whose post or base lacks them is made zero, by reading the same rows for both.

        Raises UsageError where a model takes part in two deltas and would have to be itself in one and another in the other.
        """
        stands = {0: 0}
        absent = []
        for term in call.terms:
            if term.base is None:
                stands[term.post] = term.post if present[term.post] else 0
            elif present[term.post] and present[term.base]:
                stands |= {term.post: term.post, term.base: term.base}
            else:
                absent.append((term.post, term.base))
        for _ in absent:  # as often as a chain of deltas can be long
            for post, base in absent:
                for one, other in ((post, base), (base, post)):
                    if one in stands:
                        stands.setdefault(other, stands[one])
        for post, base in absent:
            if stands.get(post) != stands.get(base):
                raise UsageError(
                    f"vocab: by-token: {redact(self._urls[post])} and {redact(self._urls[base])} do not both have the same tokens, and "
                    "both take part in other deltas as well; merge the deltas one after the other, each with a recipe of its own"
                )
        return _merged(call, [stands.get(model, 0) for model in range(len(present))])


def _merged(call: MethodCall, stands: Sequence[int]) -> RowSource:
    """Rows that are computed, with the rows of `stands[model]` in a model's place; models that nothing needs are not read."""
    used = call.models
    return RowSource(True, tuple(reader if model in used else None for model, reader in enumerate(stands)))


def _plain(vocabulary: Vocabulary | None) -> int:
    return len(vocabulary.ids or ()) if vocabulary else 0


def _contents(models: Sequence[Checkpoint]) -> list[tuple[Mapping[str, Any] | None, Mapping[str, Tensor]]]:
    return [(model.config, model.tensors) for model in models]


def _require_cuttable(call: MethodCall, name: str, dimensions: int, dimension: int) -> None:
    method = find_method(call.method)
    if call.reductions or (method.blocks is BlockShape.ROWS and dimension == dimensions - 1):
        raise UsageError(
            f"{method.name} looks at all of {shown(name)} before it computes a row, and `vocab: pad` and `by-token` put it together "
            "from rows of different models; use a method that works element by element, or leave the tensor out (exclude:)"
        )


def _column(rows: int, token_at: Mapping[int, str], table: Mapping[str, int], height: int) -> list[int]:
    """For each row of the output, the row of a model: that of the token, or for a row without one the unnamed row of this number."""
    named = set(table.values())
    column = []
    for row in range(rows):
        token = token_at.get(row)
        found = table.get(token, ABSENT) if token is not None else ABSENT if row in named else row
        column.append(found if found < height else ABSENT)
    return column


def vocabulary_outcomes(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], vocabularies: Vocabularies, modes: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """(mode, what it would do with the rows of the input embeddings, in words) for each of these modes."""
    name = input_embeddings(checkpoints[recipe.base].tensors)
    resolver = Resolver(recipe, checkpoints[recipe.base].tensors)
    if name is None:
        return ()
    planner = VocabularyPlanner(recipe, resolver.models, [checkpoints[url] for url in resolver.models], vocabularies)
    return tuple((mode, planner.outcome(mode, name, resolver.call(name))) for mode in modes)


def _in_words(rows: RowMap, urls: Sequence[str]) -> str:
    merged = partly = 0
    whole: dict[int, int] = {}
    for span in rows.spans():
        if not span.merged:
            origin = next(source[0] for source in span.sources if source is not None)
            whole[origin] = whole.get(origin, 0) + span.rows
        elif all(source is None or source[0] == model for model, source in enumerate(span.sources)):
            merged += span.rows
        else:
            partly += span.rows
    words = [f"{merged:,} of {rows.rows:,} rows merged"]
    words += [f"{partly:,} without the models that lack their token"] if partly else []
    words += [f"{count:,} whole from {redact(urls[origin])}" for origin, count in sorted(whole.items())]
    return ", ".join(words)


def row_counts(models: Sequence[Checkpoint], maps: Mapping[str, RowMap], dimensions: Mapping[str, int]) -> dict[str, int]:
    """Fields of the base's config.json, by dotted name, that count rows and that another vocabulary makes wrong, and what they
    should be."""
    base = models[0]
    sizes = {name: rows.rows for name, rows in maps.items()}
    changes = dict(field_changes(_contents(models), dimensions, sizes))
    name = input_embeddings(base.tensors)
    if name in sizes and not vocabulary_fields(base.config) and sizes[name] != base.tensors[name].shape[dimensions[name]]:
        changes["vocab_size"] = sizes[name]
    return changes
