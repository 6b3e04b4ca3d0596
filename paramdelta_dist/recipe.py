"""The recipe: the YAML a user writes, checked into frozen values. The only module that knows pydantic.

Recipe text can run nothing, reads no environment variable and expands nothing but `~` in local paths.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.errors import ParamDeltaError, RecipeError
from paramdelta_dist.sizes import parse_size
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.urls import inside, normalize, redact

MAX_RECIPE = 1 << 20
"""Longest recipe that is read, in bytes."""
SMALLEST_SHARD = 1000
"""Fewer bytes are surely a forgotten unit."""

FLOATS = {spelling: dtype.name for dtype in DTYPES.values() if dtype.kind is Kind.FLOAT for spelling in (dtype.name, *dtype.aliases)}
"""Spellings of the dtypes that can be written, to their safetensors names."""


def _as_value_error(function: Any) -> Any:
    def call(value: Any) -> Any:
        try:
            return function(value)
        except ParamDeltaError as error:
            raise ValueError(str(error)) from None

    return call


def _url(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("should be a path or URL")
    try:
        value.encode()
    except UnicodeEncodeError:  # a name of odd bytes on the command line; it could not be written down beside the output
        raise ValueError(f"{value!r} is not valid Unicode; rename the folder") from None
    return normalize(value)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("should be a size such as 5GB")
    size = parse_size(value)
    if size < SMALLEST_SHARD:
        raise ValueError(f"{value!r} is less than the {SMALLEST_SHARD} bytes a shard must have at least; is a unit missing, as in 5GB?")
    return size


def _dtype(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in FLOATS:
        raise ValueError(f"{str(value)[:60]!r} is not a dtype that can be written; use bfloat16, float16, float32 or float64")
    return FLOATS[value]


def _deltas(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("should be a list of one or more deltas, each starting with `- post:`")
    return value


def _tokenizer_source(value: Any) -> Any:
    if value is None or value in ("base", "post") or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError("should be base, post, the position of a delta counted from 0, or a URL")
    return _url(value)


Url = Annotated[str, BeforeValidator(_as_value_error(_url))]
Size = Annotated[int, BeforeValidator(_as_value_error(_size))]
Weight = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class Delta(_Section):
    """What one post-training added: `weight` · (`post` − `base`)."""

    post: Url
    base: Url | None = None
    """The base that `post` grew from; None means the recipe's base."""
    weight: Weight = 1.0


class StorageSection(_Section):
    """How to reach the URLs below one prefix. Secrets come from the environment and are no keys here."""

    engine: Literal["auto", "obstore", "fsspec"] = "auto"
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^@/]+(/[^@?]*)?$", value):
            raise ValueError("should be http(s)://host[:port], without credentials")
        return value


class Recipe(_Section):
    """Which models, which method, which weights, where to. URLs are normalized, sizes in bytes."""

    method: str = "paramdelta"
    base: Url
    """Θ'_base: the new base, which receives the deltas."""
    deltas: Annotated[tuple[Delta, ...], BeforeValidator(_deltas)]
    output: Url
    dtype: Annotated[str | None, BeforeValidator(_dtype)] = None
    """Safetensors name of the dtype floating-point tensors are written in; None keeps the base's, tensor by tensor."""
    shard_size: Size = 5 * 10**9
    """Most bytes of tensor data in a shard, unless one tensor alone has more."""
    tokenizer_from: Annotated[str | int | None, BeforeValidator(_as_value_error(_tokenizer_source))] = None
    """base, post, the position of a delta, or a URL; None is the first delta's post."""
    allow_nonfinite: bool = False
    storage: dict[str, StorageSection] = {}

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        from paramdelta_dist.methods import find_method

        return _as_value_error(lambda name: find_method(name).name)(value)  # type: ignore[no-any-return]

    @model_validator(mode="after")
    def _places_differ(self) -> Recipe:
        for url in (*self.models, self.tokenizer_url):
            if inside(self.output, url) or inside(url, self.output):
                raise ValueError(
                    f"output {redact(self.output)} and the input {redact(url)} are in each other; write to a folder of its own"
                )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Every model the merge reads, once, the base first."""
        urls = [self.base]
        for delta in self.deltas:
            urls += [delta.post, delta.base or self.base]
        return tuple(dict.fromkeys(urls))

    @property
    def tokenizer_url(self) -> str:
        """The model whose tokenizer, chat template and generation config are copied."""
        source = 0 if self.tokenizer_from in (None, "post") else self.tokenizer_from
        if source == "base":
            return self.base
        if isinstance(source, int):
            if not 0 <= source < len(self.deltas):
                raise ValueError(f"tokenizer_from: there is no delta {source}; there are {len(self.deltas)}, counted from 0")
            return self.deltas[source].post
        return str(source)

    @property
    def storage_config(self) -> StorageConfig:
        return StorageConfig({prefix: StoreSettings(**section.model_dump()) for prefix, section in self.storage.items()})

    def as_document(self) -> dict[str, Any]:
        """The recipe as plain values, for cards and provenance: no defaults, no storage settings, URLs without secrets."""
        document = self.model_dump(exclude_defaults=True, exclude={"storage"})
        document = {"method": self.method, **document, "base": redact(self.base), "output": redact(self.output)}
        document["deltas"] = [
            {"post": redact(d.post), **({"base": redact(d.base)} if d.base else {}), "weight": d.weight} for d in self.deltas
        ]
        if isinstance(self.tokenizer_from, str):
            document["tokenizer_from"] = redact(self.tokenizer_from)
        return document


def with_all_deltas(recipe: Recipe) -> Recipe:
    """The recipe with weight 1 for every delta, so that none is left out of what is read."""
    return recipe.model_copy(update={"deltas": tuple(delta.model_copy(update={"weight": 1.0}) for delta in recipe.deltas)})


class _Loader(yaml.SafeLoader):
    """Plain YAML values only; a key given twice, an alias and a tag are errors rather than surprises."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        for kind, found in (("aliases (*name)", isinstance(event, yaml.AliasEvent)), ("tags (!name)", getattr(event, "tag", None))):
            if found:
                raise RecipeError(f"line {event.start_mark.line + 1}: {kind} are not allowed in a recipe")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(  # 1e-3 and -.5 are numbers, as in YAML 1.2; to PyYAML they are text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+[eE][-+]?\d+|(\d+\.\d*|\.\d+)([eE][-+]?\d+)?)$"),
    list("-+.0123456789"),
)


def parse_recipe(text: str, *, where: str) -> Recipe:
    """The recipe in `text`; `where` names its file in messages.

    Raises RecipeError with every problem, each with its line, key and, for an unknown key, the nearest known one.
    """
    if len(text) > MAX_RECIPE:
        raise RecipeError(f"{where}: {len(text)} characters; a recipe has at most {MAX_RECIPE}")
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            _refuse_duplicate_keys(root)
            document = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {_yaml_problem(error)}") from None
    except RecursionError:
        raise RecipeError(f"{where}: nested too deeply; a recipe has a handful of levels") from None
    except (ValueError, ArithmeticError) as error:  # such as the 99th of a month, or an endless number
        raise RecipeError(f"{where}: not valid YAML: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{where}: a recipe is a list of `key: value` lines, starting with `base:`, `deltas:` and `output:`")
    return _validated(document, where=where, lines=_lines(root))


def recipe_from_flags(*, base: str, deltas: list[str], output: str) -> Recipe:
    """The recipe that `--base`, `--delta POST[:BASE][:WEIGHT]` and `--output` mean."""
    document = {"base": base, "deltas": [_delta_flag(text) for text in deltas], "output": output}
    return _validated(document, where="command line", lines={})


_COLON = re.compile(r":(?!//)")
_BEFORE_PORT = re.compile(r"(?!(s3a?|gs|gcs|az|azure|abfss?|hf):)[^:]*://[^/:]*$", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_WEIGHT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _delta_flag(text: str) -> dict[str, Any]:
    """Split at the colons that separate, not those of `scheme://` or of a port."""
    if _PASSWORD.search(text):
        raise RecipeError("--delta: credentials do not belong in a URL; put them in the environment or a profile")
    parts: list[str] = []
    for piece in _COLON.split(text):
        if parts and _BEFORE_PORT.match(parts[-1]) and re.match(r"\d+(/|$)", piece):
            parts[-1] += ":" + piece
        else:
            parts.append(piece)
    delta: dict[str, Any] = {"weight": float(parts.pop())} if len(parts) > 1 and _WEIGHT.fullmatch(parts[-1]) else {}
    if len(parts) > 2 or not all(parts):
        raise RecipeError(f"--delta {text}: write POST, POST:BASE or POST:BASE:WEIGHT; for paths that contain colons use a recipe file")
    return {"post": parts[0], **({"base": parts[1]} if len(parts) == 2 else {}), **delta}


def _validated(document: dict[Any, Any], *, where: str, lines: dict[tuple[Any, ...], int]) -> Recipe:
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        problems = [_explained(problem, lines) for problem in error.errors(include_url=False, include_input=False)]
        problems = list(dict.fromkeys(problem for problem in problems if problem))
        raise RecipeError(f"{where}:" + ("\n  ".join(["", *problems]) if len(problems) > 1 else f" {problems[0]}")) from None


_WORDS = {
    "string_type": "should be text",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "dict_type": "should be lines of `key: value`",
    "model_type": "should be lines of `key: value`",
}
"""What pydantic's kinds of error mean in a recipe."""


def _explained(problem: Any, lines: dict[tuple[Any, ...], int]) -> str:
    place = tuple(part for part in problem["loc"] if part != "[key]")
    key = ".".join(str(part) for part in place)
    line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
    prefix = f"line {line}: " if line else ""
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{prefix}unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{prefix}{key!r} is missing"
    message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{prefix}{key}: {message}" if key else f"{prefix}{message}"


def _known_keys(parent: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    if parent and parent[0] == "deltas":
        section = Delta
    elif parent and parent[0] == "storage":
        section = StorageSection
    return list(section.model_fields)


def _refuse_duplicate_keys(node: Any) -> None:
    for mapping in _nodes(node):
        if isinstance(mapping, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in mapping.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise RecipeError(f"line {key.start_mark.line + 1}: a key should be a word, not a list or mapping")
                if key.value in seen:
                    raise RecipeError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
                seen.add(key.value)


def _nodes(node: Any) -> Iterator[Any]:
    stack = [node] if node is not None else []
    while stack:
        current = stack.pop()
        yield current
        if isinstance(current, yaml.MappingNode):
            stack += [part for pair in current.value for part in pair]
        elif isinstance(current, yaml.SequenceNode):
            stack += current.value


def _lines(root: Any) -> dict[tuple[Any, ...], int]:
    """Line of each key, by its path."""
    found: dict[tuple[Any, ...], int] = {}
    stack: list[tuple[tuple[Any, ...], Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key.value, str):
                    here = (*path, key.value)
                    found[here] = key.start_mark.line + 1
                    stack.append((here, value))
        elif isinstance(node, yaml.SequenceNode):
            for position, value in enumerate(node.value):
                here = (*path, position)
                found[here] = value.start_mark.line + 1
                stack.append((here, value))
    return found


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
