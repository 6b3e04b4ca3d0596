"""The recipe as a JSON Schema, for editors and CI: made from the models that check recipes and from the cards of the methods.

What a schema cannot say (that an output lies in no input, that rules match a tensor, how many points a sweep has) is left to `check`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from paramdelta_dist.checkpoint.components import Component
from paramdelta_dist.methods import Method, Parameter, Roles
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.sections import Delta, Entry, StorageSection, VocabularySection

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "recipe.schema.json"
_DEFAULT = Recipe.model_fields["method"].default
_TEXTS = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}]}
_LAYERS = {"type": ["integer", "string"], "minimum": 0, "pattern": r"^\s*\d+(\s*-\s*\d*)?\s*$"}
_COMPONENT = {"enum": [component.value for component in Component]}


def recipe_schema(methods: Sequence[Method]) -> dict[str, Any]:
    """A JSON Schema of the recipes that may use these methods, as plain values."""
    schema = Recipe.model_json_schema(by_alias=True, mode="validation")
    defs: dict[str, Any] = schema.pop("$defs")
    for section, cls in (("Delta", Delta), ("Entry", Entry), ("StorageSection", StorageSection), ("VocabularySection", VocabularySection)):
        defs[section] = _described(defs[section], cls)
    defs["Delta"] |= {"oneOf": [{"required": ["post"]}, {"required": ["adapter"]}]}
    for entry in ("Delta", "Entry"):
        defs[entry].pop("additionalProperties", None)  # which parameters there are, its method says
        defs[entry]["properties"].pop("weight")
    schema = _described(schema, Recipe)
    schema["properties"]["method"]["enum"] = [method.name for method in methods]
    for section, entry in (("deltas", "Delta"), ("models", "Entry")):
        schema["properties"][section] |= {"minItems": 1, "items": {"$ref": f"#/$defs/{entry}"}}
    values = _Values(defs)
    ways = [{"if": _chosen(method), "then": _way(method, values)} for method in methods]
    defs["match"] = {"description": "Globs on the names of tensors.", **_TEXTS}
    defs["layers"] = {"description": "Layers counted from 0: 7, 0-15, 16-; or several.", **_one_or_more(_LAYERS)}
    defs["component"] = {"description": "Parts of a model, or one.", **_one_or_more(_COMPONENT)}
    head = {"$schema": DIALECT, "$id": FILE, "title": "A recipe of paramdelta-dist"}
    return {**head, **schema, "allOf": ways, "$defs": dict(sorted(defs.items()))}


class _Values:
    """What a parameter may be, each kind of it once among the definitions: a value; a gradient of numbers; rules."""

    def __init__(self, defs: dict[str, Any]) -> None:
        self._defs = defs

    def of(self, parameter: Parameter) -> dict[str, Any]:
        name = parameter.range
        if name not in self._defs:
            one: dict[str, Any] = _value(parameter)
            if parameter.kind is float:
                one = {"anyOf": [one, {"type": "array", "items": one, "minItems": 2, "description": "A gradient over the layers."}]}
            self._defs[name] = {
                "anyOf": [one, {"type": "array", "items": _rule(one), "minItems": 1, "description": "Rules; the first counts."}]
            }
        default = {} if parameter.default is None else {"default": parameter.default}
        return {"description": f"{parameter.meaning}: {parameter.range}", **default, "$ref": f"#/$defs/{_pointer(name)}"}


def _value(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind is bool:
        return {"type": "boolean"}
    if parameter.kind is str:
        return {"enum": list(parameter.choices)}
    value: dict[str, Any] = {"type": "integer" if parameter.kind is int else "number"}
    if parameter.minimum > -math.inf:
        value["exclusiveMinimum" if parameter.exclusive_minimum else "minimum"] = parameter.minimum
    if parameter.maximum < math.inf:
        value["maximum"] = parameter.maximum
    return value


def _rule(value: dict[str, Any]) -> dict[str, Any]:
    conditions = {name: {"$ref": f"#/$defs/{name}"} for name in ("match", "layers", "component")}
    return {"type": "object", "properties": {**conditions, "value": value}, "required": ["value"], "additionalProperties": False}


def _one_or_more(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _pointer(name: str) -> str:
    """A name as a part of a JSON pointer in the fragment of a URL."""
    return name.replace("~", "~0").replace("/", "~1").replace(" ", "%20")


def _chosen(method: Method) -> dict[str, Any]:
    chosen: dict[str, Any] = {"properties": {"method": {"const": method.name}}}
    return chosen if method.name == _DEFAULT else {**chosen, "required": ["method"]}


def _way(method: Method, values: _Values) -> dict[str, Any]:
    """What a recipe says to one method."""
    deltas = method.roles is Roles.DELTAS
    section, other, cls = ("deltas", "models", Delta) if deltas else ("models", "deltas", Entry)
    own = {parameter.name: values.of(parameter) for parameter in method.for_each}
    fixed: dict[str, Any] = {name: True for name in cls.model_fields if name != "weight"}
    given = {"items": {"properties": {**fixed, **own}, "additionalProperties": False}}
    general = {parameter.name: values.of(parameter) for parameter in method.parameters}
    parameters = {"properties": general, "additionalProperties": False}
    of_one = "|".join(re.escape(name) for name in (*fixed, *own))
    swept = {"anyOf": [{"enum": list(general)}, {"pattern": rf"^{section}\.\d+\.({of_one})$"}]}
    way: dict[str, Any] = {
        "description": method.title,
        "properties": {"parameters": parameters, section: given, other: False, "sweep": {"propertyNames": swept}},
        "required": ["base", "deltas"] if deltas else ["models"],
    }
    if not deltas and not method.accepts_base and method.roles is not Roles.PAIR:
        way["properties"]["base"] = False
    if method.roles is Roles.PAIR:
        way |= {"if": {"required": ["base"]}, "then": _count(section, 1, 1 + method.accepts_base), "else": _count(section, 2, 2)}
    else:
        given |= _count(section, method.min_models, method.max_models)["properties"][section]
    if needed := [_needed(parameter, section) for parameter in method.parameters if parameter.default is None]:
        way["allOf"] = needed
    return way


def _count(section: str, least: int, most: int | None) -> dict[str, Any]:
    return {"properties": {section: {"minItems": least, **({} if most is None else {"maxItems": most})}}}


def _needed(parameter: Parameter, section: str) -> dict[str, Any]:
    """That a parameter without a default is given: for all, for each, or by the sweep."""
    for_all = {"required": ["parameters"], "properties": {"parameters": {"required": [parameter.name]}}}
    ways: list[dict[str, Any]] = [for_all, {"required": ["sweep"]}]
    if parameter.per_model:
        ways.append({"properties": {section: {"items": {"required": [parameter.name]}}}})
    return {"anyOf": ways}


def _described(schema: dict[str, Any], cls: type) -> dict[str, Any]:
    """With what is written below each field of the model, and without the titles that pydantic makes of names."""
    docs = _docs(cls)
    schema = {key: value for key, value in schema.items() if key != "title"}
    properties: dict[str, Any] = {}
    for name, field in cls.model_fields.items():  # type: ignore[attr-defined]
        shape = schema["properties"][field.alias or name]
        described = {"description": docs[name]} if name in docs else {}
        dropped = ("title", "default") if shape.get("default", 0) in (None, "", [], {}) else ("title",)
        properties[field.alias or name] = {**described, **{key: value for key, value in shape.items() if key not in dropped}}
    return {**schema, "properties": properties, "description": inspect.getdoc(cls)}


def _docs(cls: type) -> dict[str, str]:
    """The text below each field of a model, and of the models it is made from."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if each.__module__ != cls.__module__:
            continue
        [node] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        lines = node.body if isinstance(node, ast.ClassDef) else []
        for field, text in itertools.pairwise(lines):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)):
                continue
            if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                found[field.target.id] = inspect.cleandoc(text.value.value).replace("\n", " ")
    return found
