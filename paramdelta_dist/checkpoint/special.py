"""Ids of special tokens in a config: those of the tokenizer that is written beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from paramdelta_dist.checkpoint.config import flat_config
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.vocabulary import has_codes
from paramdelta_dist.errors import HomologyError

_ID = re.compile(r".*_token_(id|ids|index)")
_ROLE = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|decoder_start|forced_bos|forced_eos)_token_id")
"""The fields of ids that any conversation has: of its beginning and its end."""
_OF_CODES = re.compile(r"codec|codebook|audio_code|tts_codec")


def special_ids(
    base: Mapping[str, Any] | None,
    writer: Mapping[str, Any] | None,
    tokens: tuple[Mapping[str, int], Mapping[str, int]] | None,
    source: str,
) -> dict[str, Any]:
    """Fields of the base's config, by dotted name, that another tokenizer makes wrong, and what they should be.

    What the config of the model whose tokenizer is written (`writer`) says counts. Where it says nothing and rows have moved, the token
    that the base means is looked up: `tokens` are ids by token of the base and of what is written. Raises HomologyError where that has
    no such token, unless it is one of those that end a conversation and the like, which is then none.
    """
    ours, theirs = flat_config(base), flat_config(writer)
    changes: dict[str, Any] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        section, _, leaf = name.rpartition(".")
        if not _ID.fullmatch(leaf) or (name not in ours and section and not any(each.startswith(f"{section}.") for each in ours)):
            continue
        value = ours.get(name)
        if theirs.get(name) is not None:
            found = theirs[name]
        elif tokens is None or value is None or has_codes(section) or _OF_CODES.match(leaf):
            continue
        else:
            found = _translated(name, value, tokens, source)
        if found != value:
            changes[name] = found
    return changes


def _translated(name: str, value: Any, tokens: tuple[Mapping[str, int], Mapping[str, int]], source: str) -> Any:
    many = isinstance(value, list)
    wanted = set(value if many else [value]) if all(isinstance(each, int) for each in (value if many else [value])) else set()
    texts = {number: token for token, number in tokens[0].items() if number in wanted}
    made = []
    for number in value if many else [value]:
        token = texts.get(number)
        place = number if token is None else tokens[1].get(token)
        if place is not None:
            made.append(place)
        elif not _ROLE.fullmatch(name.rpartition(".")[2]):
            raise HomologyError(
                f"config.json of the base: {shown(name)} is the id of {shown(token)}, which the tokenizer in {source} has not: set "
                "`tokenizer_from: base`, or to a model that has it"
            )
    return made if many and made else made[0] if made else None
