"""The meaning of ids in the models of a merge: whether each is the same token in all of them, the added and special ones included.

Three things are no contradiction, because nothing points at such rows: an id without a token (padding), a token whose name says
that it stands for nothing yet (`<|reserved_special_token_7|>`, `<unused3>`), and a token that one model has added where another
has one of these. What is said of the last is a note.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.tokenizer import Tokenizer, Tokenizers, Vocabulary

_SPARE = re.compile(
    r"[<\[(|{]*(reserved|unused|placeholder|place_holder|extra|dummy|padding|pad_token|special|control|free|empty|blank|spare|additional)s?"
    r"([_ -]*(special|control|extra|added))?([_ -]*(tokens?|ids?|words?))*[_ -]*\d+[>\])|}]*",
    re.IGNORECASE,
)
"""Names of tokens that stand for nothing until somebody makes something of them."""
_ELSEWHERE = "take the tokenizer from a model of the recipe (`tokenizer_from: base` or `post`)"


class Named(NamedTuple):
    """A folder with a tokenizer."""

    url: str
    """Its name in messages."""
    tokenizer: Tokenizer | None
    is_model: bool = True
    """Or only the folder that the tokenizer is taken from."""


class Difference(NamedTuple):
    """Something in which the tokens of a folder are not those of the base."""

    url: str
    problem: str
    remedy: str


class _Named(NamedTuple):
    """Tokens of other models that the base has not, both ways round."""

    tokens: dict[int, str]
    ids: dict[str, int]


def is_spare(token: str) -> bool:
    """Whether a token, by its name, stands for nothing yet."""
    return _SPARE.fullmatch(token) is not None


def unreadable(folders: Sequence[Named], tokenizers: Tokenizers) -> Iterator[Difference]:
    """The folders whose tokens cannot be told by their texts where they have to be: none where all vocabularies are the same bytes."""
    if len({folder.tokenizer.digest if folder.tokenizer else None for folder in folders}) == 1 and folders[0].tokenizer is not None:
        return
    for folder in {folder.url: folder for folder in folders}.values():
        vocabulary = tokenizers.vocabulary(folder.tokenizer) if folder.tokenizer else None
        if vocabulary is not None and vocabulary.ids is not None:
            continue
        why = "" if vocabulary is None else f" ({vocabulary.source}{': ' + vocabulary.problem if vocabulary.problem else ''})"
        yield Difference(
            folder.url,
            f"there is no tokenizer whose tokens can be read{why}, which `vocab: by-token` needs",
            "put a tokenizer.json into the folder (AutoTokenizer.from_pretrained(…).save_pretrained(folder)), or choose another `vocab`"
            + ("" if folder.is_model else f", or {_ELSEWHERE}"),
        )


def compare_meanings(
    base: Named, others: Sequence[Named], tokenizers: Tokenizers, *, rows: int | None, all_rows: int | None, rowed: Sequence[str] = ()
) -> tuple[list[Difference], list[str]]:
    """Differences of ids below `rows` (of all where that is None): different tokens, or a token with different ids, in two folders; and
    notes about the rest. `all_rows` are those of the output: a tokenizer from elsewhere may have no ids beyond. `rowed` are the
    tensors with an entry for each token. The vocabulary of the base stays in memory, those of the others do not.

    Raises InputChanged when a tokenizer is another by now, OverBudget when there is no room.
    """
    found: list[Difference] = []
    notes: list[str] = []
    named = _Named({}, {})
    for other in {other.url: other for other in others}.values():
        ours, theirs = base.tokenizer, other.tokenizer
        if ours is None or theirs is None:
            if ours is not theirs:
                lacking = base.url if ours is None else other.url
                notes.append(f"{lacking} has no tokenizer, so its vocabulary could not be compared")
        elif other.is_model and tokenizers.same(ours, theirs):
            continue
        else:
            if not theirs.is_known and theirs.source == ours.source and theirs.digest != ours.digest:
                notes.append(
                    f"{other.url}: {theirs.source} is not the base's and cannot be read: nobody can tell whether rows mean the same"
                )
                continue
            one, two = tokenizers.vocabulary(ours), tokenizers.vocabulary(theirs)
            if not other.is_model and all_rows is not None:
                found += _beyond(other, two, all_rows)
            differences, noted = _differences(base, other, one, two, ours.digest == theirs.digest, rows, named, _left(rowed))
            found += differences
            notes += noted
            if theirs.key != ours.key:
                tokenizers.drop(theirs)
    return found, notes


def _beyond(folder: Named, vocabulary: Vocabulary, rows: int) -> Iterator[Difference]:
    beyond = [token for token, number in vocabulary.tokens.items() if number >= rows]
    if beyond:
        yield Difference(folder.url, f"{_count(beyond)} ids beyond the {rows:,} rows of the models, such as {_some(beyond)}", _ELSEWHERE)


def _differences(
    base: Named, other: Named, ours: Vocabulary, theirs: Vocabulary, alike: bool, rows: int | None, named: _Named, left: str
) -> tuple[list[Difference], list[str]]:
    """`alike` says that the vocabularies are the same bytes, so that only what is added to them can differ."""
    if alike and (ours.ids is None or theirs.ids is None):
        ours, theirs = Vocabulary(ours.source, {}, ours.special), Vocabulary(theirs.source, {}, theirs.special)
    if ours.ids is None or theirs.ids is None:
        why = "; ".join(f"{v.source}: {v.problem}" for v in (ours, theirs) if v.problem)
        why = f" ({why})" if why else ""
        if ours.source != theirs.source:
            return [], [f"{other.url} has its vocabulary in {theirs.source}, the base in {ours.source}; they could not be compared{why}"]
        remedy = (
            f"get the file once more from where it came, if it is damaged; use models with the same tokenizer: rows of the embeddings "
            f"would be added to rows of other tokens; {left}"
        )
        return [Difference(other.url, f"{theirs.source} differs from the base's and cannot be read{why}", remedy)], []

    def counts(number: int) -> bool:
        return rows is None or number < rows

    gone = {token: number for token, number in _every(ours) if theirs.number(token) != number}
    come = {token: number for token, number in _every(theirs) if ours.number(token) != number}
    here = {number: token for token, number in come.items()}
    moved, renamed, missing, part = [], [], [], []
    for token, number in gone.items():
        place, instead = come.get(token), here.get(number)
        if not counts(number if place is None else min(number, place)) or is_spare(token):
            continue
        if place is not None:
            moved.append(token)
        elif instead is not None and not is_spare(instead):
            if instead not in gone:
                renamed.append((token, instead))
        elif instead is None and token not in ours.special:
            missing.append(token)
        else:
            part.append(token)
    taken = {instead for _, instead in renamed}
    spares = {number for token, number in gone.items() if is_spare(token)}
    extra = []
    for token, number in come.items():
        if token in gone or token in taken or not counts(number) or is_spare(token):
            continue
        rival, place = named.tokens.setdefault(number, token), named.ids.setdefault(token, number)
        if place != number:
            moved.append(token)
        elif rival != token:
            renamed.append((rival, token))
        elif token in theirs.special or number in spares:
            part.append(token)
        else:
            extra.append(token)
    remedy = (
        f"use models with the same tokenizer, or `vocab: by-token`: rows of the embeddings would be added to rows of other tokens; {left}"
    )
    if not other.is_model:
        remedy = f"{_ELSEWHERE}, or set `vocab: by-token`: rows would be written with the names of other tokens"
    if rows is not None and other.is_model:  # told by tokens, their rows come from models that have them
        part += missing + extra
        missing, extra = [], []
    found = [
        Difference(other.url, f"{_count(tokens)} {problem}, such as {_some(tokens)}", remedy)
        for tokens, problem in ((moved, "other ids"), (missing, "no id here"), (extra, "no id in the base"))
        if tokens
    ]
    if renamed:
        examples = "; ".join(f"{shown(one)} and {shown(two)}" for one, two in renamed[:3])
        count = "1 id is" if len(renamed) == 1 else f"{len(renamed)} ids are"
        found.append(Difference(other.url, f"{count} of another token than elsewhere, such as {examples}", remedy))
    notes = []
    if part:
        count = "1 token is" if len(part) == 1 else f"{len(part)} tokens are"
        how = (
            "their rows are merged with those of the same number, which no token or a spare one has; `vocab: by-token` would take them "
            "whole; the tokenizer written decides"
            if rows is None
            else "their rows are taken whole where the others have no token of that number, and merged where they have a spare one"
        )
        notes.append(f"{other.url}: {count} not in both this model and the base (such as {_some(part)}): {how}")
    return found, notes


def _left(rowed: Sequence[str]) -> str:
    """The way out that keeps the rows of the base."""
    globs = ", ".join(json.dumps(glob.escape(name)) for name in rowed[:8]) + (", …" if len(rowed) > 8 else "")
    what = f"`exclude: [{globs}]`" if rowed else "`exclude` embeddings and output head"
    return f"or leave the rows alone: {what} and `tokenizer_from: base`"


def _every(vocabulary: Vocabulary) -> Iterator[tuple[str, int]]:
    for table in (vocabulary.ids or {}, vocabulary.special):
        yield from table.items()


def _count(tokens: Sequence[str]) -> str:
    return "1 token has" if len(tokens) == 1 else f"{len(tokens)} tokens have"


def _some(tokens: Sequence[str]) -> str:
    return ", ".join(map(shown, tokens[:3]))
