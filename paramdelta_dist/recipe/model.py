"""The recipe: the YAML a user writes, checked into frozen values. The only module that knows pydantic.

Recipe text can run nothing, reads no environment variable and expands nothing but `~` in local paths.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.vocabulary import Answers
from paramdelta_dist.errors import ParamDeltaError, RecipeError
from paramdelta_dist.methods import METHODS, Method, Parameter, Roles, find_method
from paramdelta_dist.recipe.output_template import check_template, is_template
from paramdelta_dist.recipe.rules import is_rules, parse_value
from paramdelta_dist.sizes import SIZE_PATTERN, parse_size
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.urls import inside, normalize, redact, refuse_secrets

MAX_RECIPE = 1 << 20
"""Longest recipe that is read, in bytes."""
MOST_POINTS = 64
"""A sweep writes so many outputs at most."""
SMALLEST_SHARD = 1000
"""Fewer bytes are surely a forgotten unit."""
ENDPOINT = r"^https?://[^@/]+(/[^@?]*)?$"
MAX_FLOAT = sys.float_info.max

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


def _prefixes(value: Any) -> Any:
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


def _dtype(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in FLOATS:
        raise ValueError(f"{str(value)[:60]!r} is not a dtype that can be written; use bfloat16, float16, float32 or float64")
    return FLOATS[value]


def _list_of(what: str, key: str) -> Any:
    def check(value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"should be a list of one or more {what}, each starting with `- {key}:`")
        return value

    return check


def _unless_rules(value: Any, handler: Any) -> Any:
    return value if is_rules(value) else handler(value)


def _globs(value: Any) -> Any:
    patterns = value if isinstance(value, (list, tuple)) else (value,)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError("should be a glob on the names of tensors, such as '*.mlp.*', or a list of them")
    return tuple(patterns)


def _fields(value: Any) -> Any:
    names = value if isinstance(value, (list, tuple)) else (value,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("should be a field of config.json, such as num_experts or text_config.num_experts, or a list of them")
    return tuple(names)


def _tokenizer_source(value: Any) -> Any:
    if value is None or value in ("base", "post") or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError("should be base, post, the position of a delta counted from 0, or a URL")
    return _url(value)


def _sweep(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("should be lines of `parameter: [value, value, …]`")
    for key, values in value.items():
        if not isinstance(key, str) or not re.fullmatch(r"((deltas|models)\.\d+\.)?\w+", key):
            raise ValueError(f"{str(key)[:60]!r} should be a parameter of the method, or deltas.0.weight for that of one delta")
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"{key} should be a list of values")
        texts = [_swept(each) for each in values]
        for text, each in zip(texts, values, strict=True):
            if not isinstance(each, (bool, int, float, str)) or not re.fullmatch(r"[\w.+-]+", text, re.ASCII):
                raise ValueError(f"{key}: {text[:60]!r} is not a number or a word")
            if texts.count(text) > 1:
                raise ValueError(f"{key}: {text} is there twice")
    if (count := math.prod(len(values) for values in value.values())) > MOST_POINTS:
        raise ValueError(f"these are {count} points; a sweep has at most {MOST_POINTS}, because all of them are written at the same time")
    return {key: tuple(values) for key, values in value.items()}


def _swept(value: Any) -> str:
    """A value as it is written in the name of an output."""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


_TEXT = {"type": "string", "minLength": 1}
_GLOBS = WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]})
_SWEPT = {"anyOf": [{"type": ["number", "boolean"]}, {"type": "string", "pattern": r"^[A-Za-z0-9_.+-]+$"}]}
_SWEEP = {
    "type": "object",
    "propertyNames": {"pattern": r"^((deltas|models)\.\d+\.)?\w+$"},
    "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True, "items": _SWEPT},
}
_SIZE = {"anyOf": [{"type": "integer", "minimum": SMALLEST_SHARD}, {"type": "string", "pattern": SIZE_PATTERN}]}

Url = Annotated[str, BeforeValidator(_as_value_error(_url)), WithJsonSchema(_TEXT)]
Size = Annotated[int, BeforeValidator(_as_value_error(_size)), WithJsonSchema(_SIZE)]
Weight = Annotated[float, Field(strict=True, allow_inf_nan=False), WrapValidator(_unless_rules), WithJsonSchema({})]
"""A number; or rules, which are a list and looked at with the method's card."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class _Entry(_Section):
    """A delta or a model, with parameters of its own: `weight` and whatever else its method's card allows for each."""

    model_config = ConfigDict(extra="allow")

    weight: Weight = 1.0
    """Factor of this delta or model: a number, or rules that choose it by tensor."""

    @property
    def given(self) -> dict[str, Any]:
        """Its own parameters, as far as they are given."""
        weight = {"weight": self.weight} if "weight" in self.model_fields_set else {}
        return {**weight, **(self.model_extra or {})}


class Delta(_Entry):
    """What one post-training added: `weight` · (`post` − `base`)."""

    post: Url
    """The model after the post-training."""
    base: Url | None = None
    """The base that `post` grew from; None means the recipe's base."""


class Entry(_Entry):
    """A model that is merged as it is."""

    model: Url
    """A folder of a model."""


class StorageSection(_Section):
    """How to reach the URLs below one prefix. Secrets come from the environment and are no keys here."""

    engine: Literal["auto", "obstore", "fsspec"] = "auto"
    """What speaks to the store: obstore, fsspec, or whichever suits the URL."""
    endpoint: Annotated[str | None, Field(json_schema_extra={"pattern": ENDPOINT})] = None
    """Base URL of the service, without credentials; http:// allows unencrypted traffic."""
    region: str | None = None
    profile: str | None = None
    """Section of the AWS configuration files."""
    anonymous: bool = False
    """Send unsigned requests, for public buckets."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(ENDPOINT, value):
            raise ValueError("should be http(s)://host[:port], without credentials")
        return value


class VocabularySection(_Section):
    """What only a person knows of tensors that have the size of a vocabulary in a dimension."""

    tensors: Annotated[tuple[str, ...], BeforeValidator(_globs), _GLOBS] = ()
    """Globs on the names of those that have an entry for each token: a row, a column, or a number."""
    others: Annotated[tuple[str, ...], BeforeValidator(_globs), _GLOBS] = ()
    """Globs on the names of those that have not, and are merged by number."""


class Recipe(_Section):
    """Which models, which method, which weights, where to. URLs are normalized, sizes in bytes.

    What `base:`, `deltas:` and `models:` mean, and which parameters there are, is said on the method's card; a recipe that
    exists fits it.
    """

    method: str = "paramdelta"
    """How the models are merged; `paramdelta-dist methods` lists what there is."""
    parameters: dict[str, Any] = {}
    """Of the method, as given: for all deltas or models alike."""
    given_base: Annotated[str | None, BeforeValidator(_as_value_error(_url)), WithJsonSchema(_TEXT)] = Field(default=None, alias="base")
    """What `base:` says: for ParamΔ Θ'_base, the new base, which receives the deltas."""
    deltas: Annotated[tuple[Delta, ...], BeforeValidator(_list_of("deltas", "post"))] = ()
    entries: Annotated[tuple[Entry, ...], BeforeValidator(_list_of("models", "model"))] = Field(default=(), alias="models")
    """What `models:` says."""
    output: Url
    """A folder, or a template of one (see `template`) that becomes a folder when the plan is made."""
    dtype: Annotated[str | None, BeforeValidator(_dtype), WithJsonSchema({"enum": [*FLOATS, None]})] = None
    """Safetensors name of the dtype floating-point tensors are written in; None keeps the base's, tensor by tensor."""
    shard_size: Size = 5 * 10**9
    """Most bytes of tensor data in a shard, unless one tensor alone has more."""
    tokenizer_from: Annotated[
        str | int | None,
        BeforeValidator(_as_value_error(_tokenizer_source)),
        WithJsonSchema({"anyOf": [_TEXT, {"type": "integer", "minimum": 0}, {"type": "null"}]}),
    ] = None
    """base, post, the position of a delta, or a URL; None is the first delta's post."""
    include: Annotated[tuple[str, ...], BeforeValidator(_globs), _GLOBS] = ()
    """Globs on the names of tensors: only these are merged, the others copied from the base. None given, all are."""
    exclude: Annotated[tuple[str, ...], BeforeValidator(_globs), _GLOBS] = ()
    """Globs on the names of tensors that are copied from the base."""
    missing: Literal["error", "copy"] = "error"
    """What is done with tensors that not all models have: refused; or those of the base copied, and others left out."""
    accept: Annotated[tuple[str, ...], BeforeValidator(_fields), _GLOBS] = ()
    """Fields of config.json, by name or dotted path, in which the models may differ: the base's are written."""
    vocab: Literal["strict", "pad", "by-token"] = "strict"
    """What is done where vocabularies differ: refused; rows beyond the common ones whole from one model; rows by token."""
    vocabulary: VocabularySection = VocabularySection()
    """Which tensors have an entry for each token, where neither names nor sizes tell."""
    allow_nonfinite: bool = False
    """Whether NaN and infinity of the inputs are merged as they are; else they are an error."""
    storage: Annotated[dict[str, StorageSection], BeforeValidator(_as_value_error(_prefixes))] = {}
    """How to reach URLs, by the prefix they begin with; the longest that fits counts."""
    sweep: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_sweep), WithJsonSchema(_SWEEP)] = {}
    """Values to try of parameters: every combination is a merge of its own, into a folder of its own below `output`. What
    the rest of the recipe says is then the first of them."""

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _as_value_error(lambda name: find_method(name).name)(value)  # type: ignore[no-any-return]

    @field_validator("output")
    @classmethod
    def _known_template(cls, value: str) -> str:
        return _as_value_error(check_template)(value)  # type: ignore[no-any-return]

    @model_validator(mode="wrap")
    @classmethod
    def _fits_its_method(cls, value: Any, handler: Any) -> Recipe:
        if isinstance(value, dict) and value.get("sweep"):
            with suppress(ValueError):  # which the field's own validator raises again
                value = _at(value, {key: values[0] for key, values in _sweep(value["sweep"]).items()})
        misfits = list(_misfits(value)) if isinstance(value, dict) else []
        try:
            recipe: Recipe = handler(value)
        except ValidationError as error:  # all mistakes at once
            found = [(each["type"], each["loc"], each["msg"]) for each in error.errors(include_url=False, include_input=False)]
        else:
            if not misfits:
                return recipe
            found = []
        problems = [InitErrorDetails(type=PydanticCustomError(kind, "{message}", {"message": message}), loc=place, input=None)
                    for kind, place, message in (*misfits, *found)]  # fmt: skip
        raise ValidationError.from_exception_data("Recipe", problems, hide_input=True)

    @model_validator(mode="after")
    def _every_point_is_a_recipe(self) -> Recipe:
        if self.sweep and is_template(self.output):
            raise ValueError("sweep: its points are folders below `output`, which cannot be a template then; name a folder")
        try:
            _ = self.points
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise ValueError(f"sweep: {place}: {problem['msg']}") from None
        return self

    @model_validator(mode="after")
    def _places_differ(self) -> Recipe:
        if self.models:  # else it is refused in other words
            self._require_own_output()
        return self

    def _require_own_output(self) -> None:
        for url in (*self.models, self.tokenizer_url):
            if inside(self.output, url) or inside(url, self.output):
                raise ValueError(
                    f"output {redact(self.output)} and the input {redact(url)} are in each other; write to a folder of its own"
                )

    @property
    def base(self) -> str:
        """The model whose structure, config and copied tensors the output has: `base:`, or the first of `models:`."""
        return self.given_base or (self.entries[0].model if self.entries else "")

    @property
    def models(self) -> tuple[str, ...]:
        """Every model the merge reads, once, the base first."""
        urls = [self.base] if self.base else []
        for delta in self.deltas:
            urls += [delta.post, delta.base or self.base]
        return tuple(dict.fromkeys([*urls, *(entry.model for entry in self.entries)]))

    @property
    def tokenizer_url(self) -> str:
        """The model whose tokenizer, chat template and generation config are copied."""
        posts = [delta.post for delta in self.deltas] or [entry.model for entry in self.entries]
        source = 0 if self.tokenizer_from in (None, "post") else self.tokenizer_from
        if source == "base":
            return self.base
        if isinstance(source, int):
            if not 0 <= source < len(posts):
                noun = "delta" if self.deltas else "model"
                raise ValueError(f"tokenizer_from: there is no {noun} {source}; there are {len(posts)}, counted from 0")
            return posts[source]
        return str(source)

    @property
    def points(self) -> dict[str, Recipe]:
        """The merges of a sweep by the names of their folders, in the order of the combinations; none where nothing is swept."""
        if not self.sweep:
            return {}
        document = self.model_dump(by_alias=True, exclude_unset=True, exclude={"sweep"}, warnings=False)  # a weight may be rules
        return {
            name: Recipe.model_validate(_at(document, values) | {"output": f"{self.output}/{name}"})
            for name, values in self.swept_values.items()
        }

    @property
    def swept_values(self) -> dict[str, dict[str, Any]]:
        """What the sweep sets at each of its points, by the name of the point's folder."""
        if not self.sweep:
            return {}
        points = [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return {",".join(f"{key}={_swept(value)}" for key, value in point.items()): point for point in points}

    @property
    def has_rules(self) -> bool:
        """Whether any parameter may have another value for another tensor."""
        given = (self.parameters, *(delta.given for delta in self.deltas), *(entry.given for entry in self.entries))
        return any(is_rules(value) for values in given for value in values.values())

    @property
    def answers(self) -> Answers:
        """What it says of tensors that may have an entry for each token."""
        return Answers(self.vocabulary.tensors, self.vocabulary.others)

    @property
    def storage_config(self) -> StorageConfig:
        return StorageConfig({prefix: StoreSettings(**section.model_dump()) for prefix, section in self.storage.items()})

    def with_output(self, output: str) -> Recipe:
        """This recipe with another normalized output. Raises RecipeError when that is in an input, or an input in it."""
        recipe = self.model_copy(update={"output": output})
        try:
            recipe._require_own_output()
        except ValueError as error:
            raise RecipeError(str(error)) from None
        return recipe

    def as_document(self) -> dict[str, Any]:
        """The recipe as plain values, for cards and provenance: no defaults, no storage settings, URLs without secrets."""
        rest = self.model_dump(exclude_defaults=True, exclude={"storage", "method", "given_base", "deltas", "entries"})
        document: dict[str, Any] = {"method": self.method}
        if self.given_base:
            document["base"] = redact(self.given_base)
        weighted = any(parameter.name == "weight" for parameter in find_method(self.method).parameters)
        if self.deltas:
            document["deltas"] = [
                {
                    "post": redact(d.post),
                    **({"base": redact(d.base)} if d.base else {}),
                    **({"weight": d.weight} if weighted and "weight" not in self.parameters else {}),
                    **d.given,
                }
                for d in self.deltas
            ]
        if self.entries:
            document["models"] = [{"model": redact(entry.model), **entry.given} for entry in self.entries]
        document |= {key: list(value) if isinstance(value, tuple) else value for key, value in rest.items()} | {
            "output": redact(self.output)
        }
        if isinstance(self.tokenizer_from, str):
            document["tokenizer_from"] = redact(self.tokenizer_from)
        return document


def _at(document: Mapping[Any, Any], point: Mapping[str, Any]) -> dict[Any, Any]:
    """A recipe, as it is written, with values of parameters set. Raises ValueError where there is no place for one."""
    changed = copy.deepcopy(dict(document))
    for key, value in point.items():
        section, _, rest = key.partition(".")
        if rest:
            number, _, name = rest.partition(".")
            entries = changed.get(section)
            if not isinstance(entries, (list, tuple)) or int(number) >= len(entries) or not isinstance(entries[int(number)], dict):
                raise ValueError(f"sweep: {key}: there is no {section}.{number}, counted from 0")
            entries[int(number)][name] = value
            continue
        for role in ("deltas", "models"):
            entries = changed.get(role)
            for place, entry in enumerate(entries if isinstance(entries, (list, tuple)) else ()):
                if isinstance(entry, dict) and key in entry:
                    raise ValueError(f"sweep: {role}.{place} has a {key} of its own; leave it out there, or sweep {role}.{place}.{key}")
        parameters = changed.setdefault("parameters", {})
        if isinstance(parameters, dict):
            parameters[key] = value
    return changed


def of_deltas(recipe: Recipe) -> Recipe:
    """The recipe that adds every delta of `recipe` whole, whatever its method does with them: for who wants to read all of them.

    Models that are merged as they are count as deltas of the recipe's base, or where there is none of the first of them.
    """
    deltas = [{"post": delta.post, "base": delta.base or recipe.base} for delta in recipe.deltas]
    deltas += [{"post": entry.model} for entry in recipe.entries if entry.model != recipe.base]
    if not deltas:
        raise RecipeError("the recipe has no model besides its base")
    rest: dict[str, Any] = {"shard_size": recipe.shard_size, "storage": recipe.storage, "tokenizer_from": "base", "missing": recipe.missing}
    if recipe.accept:
        rest["accept"] = recipe.accept
    if recipe.vocabulary != VocabularySection():
        rest["vocabulary"] = recipe.vocabulary.model_dump(exclude_defaults=True)
    return Recipe.model_validate({"base": recipe.base, "deltas": deltas, "output": "memory://nothing-is-written", **rest})


def weights_of(recipe: Recipe) -> list[float | None]:
    """The weight of each delta of `of_deltas(recipe)`, 1 where none is given; None where rules choose it tensor by tensor."""
    entries = [*recipe.deltas, *(entry for entry in recipe.entries if entry.model != recipe.base)]
    general = recipe.parameters.get("weight", 1.0)
    given = [entry.given.get("weight", general) for entry in entries]
    return [float(weight) if _is_number(weight) else None for weight in given]


_Misfit = tuple[str, tuple[str | int, ...], str]
"""Kind, place and description of what a recipe says that its method does not know."""


def _misfits(document: dict[Any, Any]) -> Iterator[_Misfit]:
    """Where a recipe, as it was written, and its method's card differ. What has the wrong type is left to others to refuse."""
    name = document.get("method", "paramdelta")
    if not isinstance(name, str):
        return
    try:
        method = find_method(name)
    except ParamDeltaError:
        return
    yield from _wrong_roles(document, method)
    every = {parameter.name: parameter for parameter in method.parameters}
    own = {parameter.name: parameter for parameter in method.for_each}
    general = document.get("parameters", {})
    general = general if isinstance(general, dict) else {}
    for name, value in general.items():
        yield from _wrong_value(("parameters", name), value, every, f"parameters of {method.name}")
    section, keys = ("deltas", Delta) if method.roles is Roles.DELTAS else ("models", Entry)
    given = document.get(section)
    entries = [(n, entry) for n, entry in enumerate(given) if isinstance(entry, dict)] if isinstance(given, (list, tuple)) else []
    fixed = [key for key in keys.model_fields if key != "weight"]
    for number, entry in entries:
        for name, value in entry.items():
            if name in fixed or (name == "weight" and not (_is_number(value) or is_rules(value))):
                continue
            if name in every and name not in own:
                yield "of_all", (section, number, name), "is for all alike; write it under `parameters:`"
                continue
            yield from _wrong_value((section, number, name), value, own, f"keys here for {method.name}", fixed)
    for parameter in method.parameters:
        by_each = parameter.per_model and entries and all(parameter.name in entry for _, entry in entries)
        if parameter.default is None and parameter.name not in general and not by_each:
            yield "needed", ("parameters", parameter.name), f"is missing: {parameter.meaning}, {parameter.range}"


def _wrong_roles(document: dict[Any, Any], method: Method) -> Iterator[_Misfit]:
    """What is missing of, or too much for, what the method works on."""
    deltas = method.roles is Roles.DELTAS
    section, other = ("deltas", "models") if deltas else ("models", "deltas")
    if other in document:
        takers = ", ".join(each.name for each in METHODS if (each.roles is Roles.DELTAS) != deltas)
        takes = "`base:` and `deltas:`" if deltas else "`models:`"
        yield "role", (other,), f"{method.name} takes {takes}; `{other}:` is for {takers}"
    if deltas and "base" not in document:
        yield "missing", ("base",), ""
    if section not in document:
        if other not in document:
            yield "missing", (section,), ""
        return
    count, based = len(document[section]) if isinstance(document[section], (list, tuple)) else 0, "base" in document
    if count == 0:
        return
    if method.roles is Roles.PAIR:
        if count + based != 2 and not (method.accepts_base and based and count == 2):
            more = ", or `base:` and two entries, to merge what they add to it" if method.accepts_base else ""
            yield "role", (section,), f"{method.name} merges two models: give `base:` and one entry here, or two entries{more}"
        return
    if not deltas and based and not method.accepts_base:
        yield "role", ("base",), f"{method.name} has no base; a model that takes part belongs into `models:`"
    if count < method.min_models or (method.max_models is not None and count > method.max_models):
        number = f"exactly {method.min_models}" if method.min_models == method.max_models else f"{method.min_models} or more"
        yield "role", (section,), f"{method.name} takes {number}, {count} {'is' if count == 1 else 'are'} given"


def _wrong_value(
    place: tuple[str | int, ...], value: Any, known: dict[str, Parameter], what: str, fixed: Sequence[str] = ()
) -> Iterator[_Misfit]:
    name = place[-1]
    if not isinstance(name, str):
        return
    if name not in known:
        owners = [method.name for method in METHODS if any(parameter.name == name for parameter in method.parameters)]
        near = [] if owners else difflib.get_close_matches(name, [*fixed, *known], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join([*fixed, *known]) or 'none'}"
        hint += f" ({name} is of {', '.join(owners)})" if owners else ""
        yield "unknown", place, hint
        return
    try:
        parse_value(value, known[name].check)
    except ValueError as error:
        yield "parameter", place, str(error)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT


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
    if problem["type"] == "unknown":
        return f"{prefix}unknown key {key!r}; {problem['msg']}"
    if problem["type"] == "missing":
        return f"{prefix}{key!r} is missing"
    if problem["type"] == "model_type" and len(place) == 2 and place[0] in ("deltas", "models"):
        return f"{prefix}{key}: {_WORDS['model_type']}, such as `{'post' if place[0] == 'deltas' else 'model'}: URL`"
    message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{prefix}{key}: {message}" if key else f"{prefix}{message}"


def _known_keys(parent: tuple[Any, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {"deltas": Delta, "models": Entry, "storage": StorageSection, "vocabulary": VocabularySection}
    section = sections.get(str(parent[0]), Recipe) if parent else Recipe
    return [field.alias or name for name, field in section.model_fields.items()]


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
