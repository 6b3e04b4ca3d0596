"""The recipe: the YAML that people write, as checked and frozen values."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from paramdelta_dist.checkpoint.vocabulary import Answers
from paramdelta_dist.errors import RecipeError
from paramdelta_dist.methods import find_method
from paramdelta_dist.recipe.fields import (
    FLOATS,
    GLOBS,
    TEXT,
    Size,
    Url,
    as_value_error,
    checked_dtype,
    checked_fields,
    checked_globs,
    checked_prefixes,
    checked_tokenizer_source,
    checked_url,
    list_of,
)
from paramdelta_dist.recipe.fit import find_misfits
from paramdelta_dist.recipe.grid import SWEEP, at_point, checked_sweep, text_of
from paramdelta_dist.recipe.output_template import check_template, is_template
from paramdelta_dist.recipe.rules import is_rules
from paramdelta_dist.recipe.sections import Delta, Entry, Section, StorageSection, VocabularySection
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.urls import inside, redact


class Recipe(Section):
    """Which models, which method, which weights, where to. URLs are normalized, sizes in bytes.

    What `base:`, `deltas:` and `models:` mean, and which parameters there are, is said on the method's card; a recipe that
    exists fits it.
    """

    method: str = "paramdelta"
    """How the models are merged; `paramdelta-dist methods` lists what there is."""
    parameters: dict[str, Any] = {}
    """Of the method, as given: for all deltas or models alike."""
    given_base: Annotated[str | None, BeforeValidator(as_value_error(checked_url)), WithJsonSchema(TEXT)] = Field(
        default=None, alias="base"
    )
    """What `base:` says: for ParamΔ Θ'_base, the new base, which receives the deltas."""
    deltas: Annotated[tuple[Delta, ...], BeforeValidator(list_of("deltas", "post"))] = ()
    entries: Annotated[tuple[Entry, ...], BeforeValidator(list_of("models", "model"))] = Field(default=(), alias="models")
    """What `models:` says."""
    output: Url
    """A folder, or a template of one (see `template`) that becomes a folder when the plan is made."""
    dtype: Annotated[str | None, BeforeValidator(checked_dtype), WithJsonSchema({"enum": [*FLOATS, None]})] = None
    """Safetensors name of the dtype floating-point tensors are written in; None keeps the base's, tensor by tensor."""
    shard_size: Size = 5 * 10**9
    """Most bytes of tensor data in a shard, unless one tensor alone has more."""
    tokenizer_from: Annotated[
        str | int | None,
        BeforeValidator(as_value_error(checked_tokenizer_source)),
        WithJsonSchema({"anyOf": [TEXT, {"type": "integer", "minimum": 0}, {"type": "null"}]}),
    ] = None
    """base, post, the position of a delta, or a URL; None is the first post that a delta has, else the base."""
    quantization: Literal["keep", "none"] = "keep"
    """What is done with tensors that are quantised in the base: written in the base's own scheme, or as plain numbers."""
    include: Annotated[tuple[str, ...], BeforeValidator(checked_globs), GLOBS] = ()
    """Globs on the names of tensors: only these are merged, the others copied from the base. None given, all are."""
    exclude: Annotated[tuple[str, ...], BeforeValidator(checked_globs), GLOBS] = ()
    """Globs on the names of tensors that are copied from the base."""
    missing: Literal["error", "copy"] = "error"
    """What is done with tensors that not all models have: refused; or those of the base copied, and others left out."""
    accept: Annotated[tuple[str, ...], BeforeValidator(checked_fields), GLOBS] = ()
    """Fields of config.json, by name or dotted path, in which the models may differ: the base's are written."""
    vocab: Literal["strict", "pad", "by-token"] = "strict"
    """What is done where vocabularies differ: refused; rows beyond the common ones whole from one model; rows by token."""
    vocabulary: VocabularySection = VocabularySection()
    """Which tensors have an entry for each token, where neither names nor sizes tell."""
    allow_nonfinite: bool = False
    """Whether NaN and infinity of the inputs are merged as they are; else they are an error."""
    storage: Annotated[dict[str, StorageSection], BeforeValidator(as_value_error(checked_prefixes))] = {}
    """How to reach URLs, by the prefix they begin with; the longest that fits counts."""
    sweep: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(checked_sweep), WithJsonSchema(SWEEP)] = {}
    """Values to try of parameters: every combination is a merge of its own, into a folder of its own below `output`. What
    the rest of the recipe says is then the first of them."""

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return as_value_error(lambda name: find_method(name).name)(value)  # type: ignore[no-any-return]

    @field_validator("output")
    @classmethod
    def _known_template(cls, value: str) -> str:
        return as_value_error(check_template)(value)  # type: ignore[no-any-return]

    @model_validator(mode="wrap")
    @classmethod
    def _fits_its_method(cls, value: Any, handler: Any) -> Recipe:
        if isinstance(value, dict) and value.get("sweep"):
            with suppress(ValueError):  # which the field's own validator raises again
                value = at_point(value, {key: values[0] for key, values in checked_sweep(value["sweep"]).items()})
        misfits = list(find_misfits(value)) if isinstance(value, dict) else []
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
            self._require_one_meaning()
        return self

    def _require_one_meaning(self) -> None:
        """Raise ValueError where one folder is taken for a model and for an adapter, or for an adapter of two models."""
        adapters = self.adapters
        whole = {self.base, *adapters.values(), *(delta.post for delta in self.deltas), *(entry.model for entry in self.entries)}
        for delta in self.deltas:
            if delta.adapter in whole - {""}:
                raise ValueError(f"{redact(delta.adapter)} is an adapter in one place and a model in another; it can be one of them")
            if delta.adapter and (delta.base or self.base) != adapters[delta.adapter]:
                raise ValueError(f"the adapter {redact(delta.adapter)} has two bases; it grew from one of them")

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
        """Every model and adapter the merge reads, once, the base first."""
        urls = [self.base] if self.base else []
        for delta in self.deltas:
            urls += [delta.source, delta.base or self.base]
        return tuple(dict.fromkeys([*urls, *(entry.model for entry in self.entries)]))

    @property
    def adapters(self) -> dict[str, str]:
        """Those of `models` that are adapters, each with the model that it grew from."""
        return {delta.adapter: delta.base or self.base for delta in self.deltas if delta.adapter}

    @property
    def tokenizer_url(self) -> str:
        """The model whose tokenizer, chat template and generation config are copied."""
        posts = [delta.source for delta in self.deltas] or [entry.model for entry in self.entries]
        source = self.tokenizer_from
        if source in (None, "post"):
            first = next((number for number, url in enumerate(posts) if url not in self.adapters), None)
            if first is None and source == "post":
                raise ValueError("tokenizer_from: no delta has a post; write base, or the URL of a folder with a tokenizer")
            source = "base" if first is None else first
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
            name: Recipe.model_validate(at_point(document, values) | {"output": f"{self.output}/{name}"})
            for name, values in self.swept_values.items()
        }

    @property
    def swept_values(self) -> dict[str, dict[str, Any]]:
        """What the sweep sets at each of its points, by the name of the point's folder."""
        if not self.sweep:
            return {}
        points = [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return {",".join(f"{key}={text_of(value)}" for key, value in point.items()): point for point in points}

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
                    **({"adapter": redact(d.adapter)} if d.adapter else {"post": redact(d.post)}),
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
