"""Ids of tokens in a config: those of the tokenizer that is written beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.tokenizer import Vocabulary
from paramdelta_dist.checkpoint.vocabulary import has_codes, vocabulary_fields
from paramdelta_dist.checkpoint.written import Written

_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_ID = re.compile(
    rf".*_token_(id|ids|index|indices)|({'|'.join(_ROLES)}|eod|eot)_(id|ids|index)"
    r"|(im|img|image|video|vision|audio)_(start|end|newline|patch|pad|bos|eos|sep|break|context|row|col)_(id|index|token)"
)
"""Fields that hold ids of tokens."""
_LISTS = re.compile(r"(begin_)?suppress_tokens|bad_words_ids")
"""Fields that say what is never made: a token that is not there needs no place among them."""
_OTHERS = re.compile(r"forced_decoder_ids|force_words_ids|vocabulary_map|lang_to_id|task_to_id")
_OFFSET = re.compile(r"(.*_)?(token|vocab)_offset")
"""Fields that hold the first id of a run that goes on to the last one."""
_ROLE = re.compile(rf"({'|'.join(_ROLES)}|decoder_start|forced_bos|forced_eos)_token_id")
"""Fields that any conversation needs: its beginning and its end."""
_EVERY_MODEL = ("bos", "eos", "pad")
"""Roles that every config has a field for, written or not."""
_OF_CODES = re.compile(r"codec|codebook|(.*_)?audio_(code|stream)|(.*_)?tts_codec|t2u_|vocoder_|unit_|tag_|subs_")
"""Fields whose numbers are no ids of text, wherever they stand."""
_OF_MEDIA = re.compile(r"(audio|speech|sound|mel|image|img|vision|visual|video)_")
"""Fields of which both can be: a token that stands for a picture among words, and a code that begins one."""
_SUSPECT = re.compile(r".*_(id|ids|index|indices|token|tokens)")
_COUNTS = re.compile(r"(.*_)?(num|max|min|n|per|layers?|heads?|experts?|ignore|class|label|soft|hidden)(_.*)?")
_BEHIND = 64
"""Codes that begin and end others have the numbers behind theirs."""
_LARGE = 1000
"""Numbers below are likely to count something else, as layers."""
_LOST = object()
_DEEP = 16
"""Levels of sections in which ids are looked for."""


class SpecialIds(NamedTuple):
    """The changes to ids of tokens in the base's config."""

    changes: dict[str, Any]
    """Fields, by dotted name, that the tokenizer that is written makes wrong, and what they should be."""
    problems: tuple[tuple[str, str], ...] = ()
    """Problems that cannot be put right, each with its remedy."""
    notes: tuple[str, ...] = ()


class TokensMoved(NamedTuple):
    """Those of the tokenizers, read when they are asked for."""

    moved: Callable[[], tuple[Vocabulary, Vocabulary] | None]
    """The base's and the one that is written; None where they give every id to the same token, or cannot be read."""
    written: Callable[[], Vocabulary | None]
    """The one that is written; None where there is none."""


def follows_tokenizer(name: str) -> bool:
    """Whether a field of a config, by its dotted name, holds ids of tokens."""
    leaf = name.rpartition(".")[2]
    return _OF_CODES.match(leaf) is None and any(kind.fullmatch(leaf) for kind in (_ID, _LISTS, _OTHERS, _OFFSET))


def special_ids(
    base: Mapping[str, Any] | None,
    sizes: Container[int],
    written: Written,
    vocabularies: TokensMoved,
    accepted: Callable[[str], bool],
) -> SpecialIds:
    """The ids of tokens that the base's config should have beside the tokenizer of `written`.

    What the config of that folder says counts. Where it says nothing, ids of what begins and ends a text are those that its
    generation_config.json and its tokenizer name, and any other is that of the token that the base means. Numbers of codes stay, and
    those of fields that are `accepted`; what may be either, and would not be the same as both, is a problem. `sizes` are those that
    tensors of the base have: a vocabulary of codes that none has is none.
    """
    return _Ids(base or {}, sizes, written, vocabularies, accepted).found()


class _Ids:
    def __init__(
        self,
        base: Mapping[str, Any],
        sizes: Container[int],
        written: Written,
        vocabularies: TokensMoved,
        accepted: Callable[[str], bool],
    ) -> None:
        self._written, self._vocabularies, self._accepted = written, vocabularies, accepted
        self._ours, self._theirs = dict(_fields(base)), dict(_fields(written.config or {}))
        self._sections = {"", *_sections(base)}
        self._counted = [field for field in vocabulary_fields(base) if field.words or field.size in sizes]
        words = {field.size for field in self._counted if field.words}
        codes = {*(field.size for field in self._counted if field.words is False), *filter(sizes.__contains__, _sizes(base))}
        self._most_codes = max(codes - words, default=0)
        self.changes: dict[str, Any] = {}
        self.problems: list[tuple[str, str]] = []
        self.notes: list[str] = []

    @cached_property
    def _tokens(self) -> tuple[Vocabulary, Vocabulary] | None:
        return self._vocabularies.moved()

    def found(self) -> SpecialIds:
        for name in sorted(self._ours.keys() | self._theirs.keys()):
            if self._accepted(name):
                continue
            value = self._ours.get(name)
            found = self._of_field(name, value)
            if found != value:
                self.changes[name] = found
        if self._written.config is None:
            for role in _EVERY_MODEL:
                self._add_role(f"{role}_token_id")
        return SpecialIds(self.changes, tuple(dict.fromkeys(self.problems)), tuple(dict.fromkeys(self.notes)))

    def _of_field(self, name: str, value: Any) -> Any:
        section, _, leaf = name.rpartition(".")
        theirs = self._theirs_of(name)
        if not follows_tokenizer(name):
            self._ask_about_a_suspect(name, value, theirs)
            return value
        if name not in self._ours and section not in self._sections:
            return value
        codes = self._is_of_codes(section, leaf, value if value is not None else theirs)
        if codes or (value is None and (theirs is None or codes is None)):
            return value
        if theirs is not None:
            if codes is None and theirs != value:
                self._ask(name, f"{shown(value)} here and {shown(theirs)} in {self._written.url}")
                return value
            return theirs
        role = leaf.removesuffix("_token_id")
        if codes is False and role in _ROLES:
            return self._of_role(name, role, value)
        return self._translated(name, value, unsure=codes is None)

    def _theirs_of(self, name: str) -> Any:
        """The value of a field in the config of the folder, wherever in it, if it is one value."""
        if name in self._theirs or not follows_tokenizer(name) or name not in self._ours:
            return self._theirs.get(name)
        leaf = name.rpartition(".")[2]
        values = [v for other, v in self._theirs.items() if other.rpartition(".")[2] == leaf and not has_codes(other.rpartition(".")[0])]
        values = [value for value in values if value is not None]
        return values[0] if values and all(value == values[0] for value in values) else None

    def _is_of_codes(self, section: str, leaf: str, value: Any) -> bool | None:
        """Whether the numbers of a field are codes and no ids of text; None where they may be either."""
        if _OF_CODES.match(leaf):
            return True
        inside = self._has_codes(section)
        if not inside and not _OF_MEDIA.match(leaf):
            return False
        own = (field.size for field in self._counted if inside and field.name.rpartition(".")[0] == section)
        most = max(self._most_codes, *own, 0)
        beyond = min(_numbers(value), default=-1) > most + _BEHIND
        if inside and _ROLE.fullmatch(leaf):
            return not (beyond and most)
        return False if beyond or not most else None

    def _has_codes(self, section: str) -> bool:
        """Whether a section of the config is one of codes, by its name or by what it counts."""
        if has_codes(section):
            return True
        own = [field for field in self._counted if section and field.name.rpartition(".")[0] == section]
        several = len({field.size for field in self._counted if field.words}) > 1
        plain = len(self._tokens[0].ids or ()) if own and several and self._tokens else 0
        return bool(own) and all(field.words is False or field.size < plain for field in own)

    def _add_role(self, leaf: str) -> None:
        """A role that a folder with nothing but a tokenizer names, and that the base's config says nothing of."""
        role = leaf.removesuffix("_token_id")
        here = [name for name in self._ours if name.rpartition(".")[2] == leaf and not self._has_codes(name.rpartition(".")[0])]
        if self._accepted(leaf) or any(self._ours[name] is not None for name in here):
            return
        found = self._named(leaf, role)
        if found is not None:
            self.changes |= dict.fromkeys(here or [leaf], found)

    def _named(self, name: str, role: str) -> Any:
        """The token that generation_config.json and the tokenizer name for a role; None where they do not."""
        said = self._written.generation.get(f"{role}_token_id")
        if _is_id(said) or (isinstance(said, list) and said and all(map(_is_id, said))):
            return said
        token = self._written.names.get(role)
        if token is None:
            return None
        vocabulary = self._vocabularies.written()
        number = vocabulary.number(token) if vocabulary else None
        if number is None and (vocabulary is None or vocabulary.ids is None):
            self.notes.append(
                f"{self._written.url}: the id of its {role}_token {shown(token)} cannot be read: {name} of config.json is the base's"
            )
        elif number is None and role == "eos":
            self.problems.append(
                (
                    f"eos_token is {shown(token)}, which has no id in the tokenizer: nothing written with it would end",
                    "name a token of it as eos_token in tokenizer_config.json, or set `tokenizer_from: base`",
                )
            )
        elif number is None:
            self.notes.append(f"{self._written.url}: its {role}_token {shown(token)} has no id there: {name} is not taken from it")
        return number

    def _of_role(self, name: str, role: str, value: Any) -> Any:
        found = self._named(name, role)
        if found is None:
            return self._translated(name, value)
        kept, lost = self._moved(name, value)
        several = isinstance(kept, list) and not lost and set(_numbers(found)) <= set(_numbers(kept))
        return kept if several else found

    def _translated(self, name: str, value: Any, *, unsure: bool = False) -> Any:
        """The numbers of the tokens that the base means, in the tokenizer that is written."""
        leaf = name.rpartition(".")[2]
        if self._tokens is None:
            return value
        if _OFFSET.fullmatch(leaf):
            return self._run(name, value)
        found, lost = self._moved(name, value)
        if unsure and (lost or found != value):
            self._ask(name, f"{shown(value)}, which as the id of a token would be {shown(found)} in {self._written.url}")
            return value
        if not lost or _LISTS.fullmatch(leaf):
            return found
        named = ", ".join("no token" if token is None else shown(token) for token in lost[:3])
        if _ROLE.fullmatch(leaf) and (leaf != "eos_token_id" or _numbers(found)):
            self.notes.append(
                f"{shown(name)} of the base's config is the id of {named}, which the tokenizer in {self._written.url} has not: left out"
            )
            return found
        self.problems.append(
            (
                f"{shown(name)} of the base's config.json is the id of {named}, which the tokenizer in {self._written.url} has not",
                f"set `tokenizer_from: base`, or to a model that has it; if nothing needs it, write `accept: [{name}]` into the recipe, "
                "which keeps the number",
            )
        )
        return value

    def _moved(self, name: str, value: Any) -> tuple[Any, list[str | None]]:
        """A value with the new numbers of its tokens, and those that have none."""
        if self._tokens is None:
            return value, []
        ours, theirs = self._tokens
        wanted = set(_numbers(value))
        texts, taken = _texts(ours, wanted), _texts(theirs, wanted)
        lost: list[str | None] = []

        def move(number: Any) -> Any:
            if not _is_id(number):
                return number
            token = texts.get(number)
            place = (None if number in taken else number) if token is None else theirs.number(token)
            if place is None:
                lost.append(token)
                return _LOST
            return place

        return _mapped(value, move, placed=name.endswith("forced_decoder_ids")), lost

    def _run(self, name: str, first: Any) -> Any:
        """An offset, where all tokens from there on stay where they are."""
        ours, theirs = self._tokens or (None, None)
        if ours is None or theirs is None or not _is_id(first):
            return first
        for one, other in ((ours, theirs), (theirs, ours)):
            for table in (one.ids or {}, one.special):
                if any(number >= first and other.number(token) not in (number, None) for token, number in table.items()):
                    self._ask(name, f"{first}, and tokens from there on have other ids in {self._written.url}")
                    return first
        return first

    def _ask_about_a_suspect(self, name: str, value: Any, theirs: Any) -> None:
        """A field of no known name that holds the number of an added token, which then moves."""
        section, _, leaf = name.rpartition(".")
        if theirs == value or self._tokens is None or self._is_of_codes(section, leaf, value):
            return
        added = {number: token for token, number in self._tokens[0].special.items()}
        for number in _numbers(value):
            if number in added and self._tokens[1].number(added[number]) != number:
                self._ask(name, f"{number}, the id of {shown(added[number])}, which has another in {self._written.url}")

    def _ask(self, name: str, what: str) -> None:
        self.problems.append(
            (
                f"{shown(name)} of config.json is {what}: nobody can tell whether it speaks of tokens of the tokenizer",
                f"set `tokenizer_from: base`; or if it does not, write `accept: [{name}]` into the recipe, which keeps the number",
            )
        )


def _fields(section: Mapping[str, Any], prefix: str = "", level: int = 0) -> Iterator[tuple[str, Any]]:
    """Fields at any depth that hold ids, or may, by dotted name."""
    for key, value in section.items():
        if not isinstance(key, str) or "." in key:
            continue
        if follows_tokenizer(key) and (value is None or _numbers(value)):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and level < _DEEP:
            yield from _fields(value, f"{prefix}{key}.", level + 1)
        elif _SUSPECT.fullmatch(key) and not _COUNTS.fullmatch(key) and max(_numbers(value), default=0) >= _LARGE:
            yield f"{prefix}{key}", value


def _sections(section: Mapping[str, Any], prefix: str = "", level: int = 0) -> Iterator[str]:
    """Sections at any depth, by dotted name."""
    for key, value in section.items():
        if isinstance(value, Mapping) and level < _DEEP:
            yield f"{prefix}{key}"
            yield from _sections(value, f"{prefix}{key}.", level + 1)


def _sizes(section: Mapping[str, Any], prefix: str = "", level: int = 0) -> Iterator[int]:
    """Fields that count codes and are no vocabulary by their name."""
    for key, value in section.items():
        if isinstance(value, Mapping) and level < _DEEP:
            yield from _sizes(value, f"{prefix}{key}.", level + 1)
        elif _is_id(value) and (key == "codebook_size" or (key == "num_embeddings" and has_codes(prefix))):
            yield value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _numbers(value: Any) -> list[int]:
    """The ids in a value; of pairs of a place and an id, the places as well."""
    if _is_id(value):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [number for part in parts for number in (part if isinstance(part, list) else [part]) if _is_id(number)]


def _mapped(value: Any, move: Callable[[Any], Any], *, placed: bool) -> Any:
    """A value of the same form: a number, a list of them or of lists of them, or a table; of `placed` ids the places stay. What is
    lost is left out; None where all of it is."""
    if isinstance(value, Mapping):
        return {key: found for key, part in value.items() if (found := move(part)) is not _LOST} or None
    if not isinstance(value, list):
        found = move(value)
        return None if found is _LOST else found
    made = [[*part[:placed], *map(move, part[placed:])] if isinstance(part, list) else move(part) for part in value]
    return [part for part in made if part is not _LOST and not (isinstance(part, list) and _LOST in part)] or None


def _texts(vocabulary: Vocabulary, wanted: set[int]) -> dict[int, str]:
    """The tokens of these numbers."""
    found: dict[int, str] = {}
    for table in (vocabulary.ids or {}, vocabulary.special):
        found |= {number: token for token, number in table.items() if number in wanted}
    return found
