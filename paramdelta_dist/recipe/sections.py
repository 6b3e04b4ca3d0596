"""Sections of a recipe: its entries, storage and vocabulary, each a frozen value."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
)

from paramdelta_dist.recipe.fields import (
    ENDPOINT,
    GLOBS,
    Url,
    Weight,
    checked_globs,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class _Entry(Section):
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
    """What one post-training added: `weight` · (`post` − `base`), or what an adapter holds."""

    post: Url = ""
    """The model after the post-training; left out where there is an `adapter`."""
    adapter: Url = ""
    """A folder with a LoRA adapter, in place of `post`."""
    base: Url | None = None
    """The base that `post` or `adapter` grew from; None means the recipe's base."""

    @property
    def source(self) -> str:
        """The folder that the delta is read from: a model, or an adapter."""
        return self.post or self.adapter


class Entry(_Entry):
    """A model that is merged as it is."""

    model: Url
    """A folder of a model."""


class StorageSection(Section):
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


class VocabularySection(Section):
    """What only a person knows of tensors that have the size of a vocabulary in a dimension."""

    tensors: Annotated[tuple[str, ...], BeforeValidator(checked_globs), GLOBS] = ()
    """Globs on the names of those that have an entry for each token: a row, a column, or a number."""
    others: Annotated[tuple[str, ...], BeforeValidator(checked_globs), GLOBS] = ()
    """Globs on the names of those that have not, and are merged by number."""
