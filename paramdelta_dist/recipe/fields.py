"""Fields of a recipe: the checks of single values, and what they become."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    WrapValidator,
)

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.errors import ParamDeltaError
from paramdelta_dist.recipe.rules import is_rules
from paramdelta_dist.sizes import SIZE_PATTERN, parse_size
from paramdelta_dist.storage.urls import normalize, refuse_secrets

SMALLEST_SHARD = 1000
"""Fewer bytes are surely a forgotten unit."""

ENDPOINT = r"^https?://[^@/]+(/[^@?]*)?$"

MAX_FLOAT = sys.float_info.max

FLOATS = {spelling: dtype.name for dtype in DTYPES.values() if dtype.kind is Kind.FLOAT for spelling in (dtype.name, *dtype.aliases)}
"""Spellings of the dtypes that can be written, to their safetensors names."""


def as_value_error(function: Any) -> Any:
    def call(value: Any) -> Any:
        try:
            return function(value)
        except ParamDeltaError as error:
            raise ValueError(str(error)) from None

    return call


def checked_url(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("should be a path or URL")
    try:
        value.encode()
    except UnicodeEncodeError:  # a name of odd bytes on the command line; it could not be written down beside the output
        raise ValueError(f"{value!r} is not valid Unicode; rename the folder") from None
    return normalize(value)


def checked_prefixes(value: Any) -> Any:
    """The sections of `storage:`, whose keys travel with the recipe as URLs do."""
    for prefix in value if isinstance(value, dict) else ():
        refuse_secrets(str(prefix))
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("should be a size such as 5GB")
    size = parse_size(value)
    if size < SMALLEST_SHARD:
        raise ValueError(f"{value!r} is less than the {SMALLEST_SHARD} bytes a shard must have at least; is a unit missing, as in 5GB?")
    return size


def checked_dtype(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in FLOATS:
        raise ValueError(f"{str(value)[:60]!r} is not a dtype that can be written; use bfloat16, float16, float32 or float64")
    return FLOATS[value]


def list_of(what: str, key: str) -> Any:
    def check(value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"should be a list of one or more {what}, each starting with `- {key}:`")
        return value

    return check


def _unless_rules(value: Any, handler: Any) -> Any:
    return value if is_rules(value) else handler(value)


def checked_globs(value: Any) -> Any:
    patterns = value if isinstance(value, (list, tuple)) else (value,)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError("should be a glob on the names of tensors, such as '*.mlp.*', or a list of them")
    return tuple(patterns)


def checked_fields(value: Any) -> Any:
    names = value if isinstance(value, (list, tuple)) else (value,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("should be a field of config.json, such as num_experts or text_config.num_experts, or a list of them")
    return tuple(names)


def checked_tokenizer_source(value: Any) -> Any:
    if value is None or value in ("base", "post") or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError("should be base, post, the position of a delta counted from 0, or a URL")
    return checked_url(value)


TEXT = {"type": "string", "minLength": 1}

GLOBS = WithJsonSchema({"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}]})

_SIZE = {"anyOf": [{"type": "integer", "minimum": SMALLEST_SHARD}, {"type": "string", "pattern": SIZE_PATTERN}]}

Url = Annotated[str, BeforeValidator(as_value_error(checked_url)), WithJsonSchema(TEXT)]

Size = Annotated[int, BeforeValidator(as_value_error(_size)), WithJsonSchema(_SIZE)]

Weight = Annotated[float, Field(strict=True, allow_inf_nan=False), WrapValidator(_unless_rules), WithJsonSchema({})]
"""A number; or rules, which are a list and looked at with the method's card."""
