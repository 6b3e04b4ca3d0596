"""The JSON Schema of the recipe: it is the one that is published, accepts what the parser accepts, and refuses what a schema can refuse."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from paramdelta_dist import api
from paramdelta_dist.errors import RecipeError
from paramdelta_dist.methods import METHODS, Roles
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.schema import FILE, recipe_schema
from paramdelta_dist.recipe.yaml_text import Loader as _Loader
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests.docs.pages import DOCS, PAGES, REPOSITORY, blocks
from tests.terminal import call

SCHEMA = recipe_schema(METHODS)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


_WHOLE = re.compile(r"^(deltas|models):.*^output:", re.MULTILINE | re.DOTALL)
"""Pages show parts of recipes too."""


def fits(document):
    """As an editor sees it: what JSON can hold."""
    return VALIDATOR.is_valid(json.loads(json.dumps(document)))


def load(text):
    return yaml.load(text, Loader=_Loader)


def accepted(document):
    try:
        Recipe.model_validate(copy.deepcopy(document))
    except ValueError:
        return False
    return True


def recipes():
    """Every recipe that this repository shows to people."""
    for method in METHODS:
        yield f"methods {method.name}", method.example
    for page in (REPOSITORY / "README.md", *PAGES):
        for block in blocks(page):
            if block.language == "yaml" and _WHOLE.search(block.text):
                yield str(block), block.text
    for path in sorted((REPOSITORY / "deploy").rglob("*recipe*.yaml")):
        yield str(path.relative_to(REPOSITORY)), path.read_text()


RECIPES = dict(recipes())


def test_the_schema_is_one_and_is_the_one_that_is_published(tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads((DOCS / FILE).read_text()) == SCHEMA, "write it anew: paramdelta-dist schema > docs/recipe.schema.json"
    for options in ([], ["--json"]):
        done = call("schema", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == api.schema()


def test_there_are_recipes_to_hold_it_against():
    assert len(RECIPES) > len(METHODS) + 4
    assert {"README.md", "laptop.md", "nightly.md", "methods.md"} <= {name.partition(":")[0] for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_that_we_show_fits_it(name):
    parse_recipe(RECIPES[name], where=name)
    VALIDATOR.validate(json.loads(json.dumps(load(RECIPES[name]))))


BASIC = "base: /models/new\ndeltas:\n  - post: /models/post\noutput: /models/out\n"


@pytest.mark.parametrize(
    "text",
    [
        BASIC.replace("output", "outptu"),
        BASIC.replace("post: ", "psot: "),
        BASIC.replace("output: /models/out\n", ""),
        BASIC.replace("base: /models/new\n", ""),
        BASIC + "models: [{model: /a}]\n",
        BASIC + "method: tise\n",
        BASIC + "method: linear\n",
        BASIC + "method: ties\nparameters: {densty: 0.5}\n",
        BASIC + "method: ties\nparameters: {density: 1.5}\n",
        BASIC + "method: ties\nparameters: {density: half}\n",
        BASIC + "parameters: {density: 0.5}\n",
        BASIC + "shard_size: 10\n",
        BASIC + "shard_size: 5XB\n",
        BASIC + "dtype: int8\n",
        BASIC + "vocab: loose\n",
        BASIC + "allow_nonfinite: 2\n",
        BASIC + "tokenizer_from: -1\n",
        BASIC + "tokenizer_from: [0]\n",
        BASIC + "include: []\n",
        BASIC + "include: 5\n",
        BASIC + "storage: {'s3://': {endpiont: 'http://x'}}\n",
        BASIC + "storage: {'s3://': {endpoint: 'minio:9000'}}\n",
        BASIC + "storage: {'s3://': {endpoint: 'http://key:secret@minio:9000'}}\n",
        BASIC + "storage: {'s3://': {engine: boto}}\n",
        BASIC + "storage: {'s3://': {anonymous: 3}}\n",
        BASIC + "sweep: {weight: 0.5}\n",
        BASIC + "sweep: {weight: []}\n",
        BASIC + "sweep: {wieght: [0.5, 1]}\n",
        BASIC + "sweep: {weight: [0.5, 0.5]}\n",
        BASIC.replace("- post: /models/post", "- {post: /models/post, weight: heavy}"),
        BASIC.replace("- post: /models/post", "- {post: /models/post, weight: [{mach: x, value: 1}]}"),
        BASIC.replace("- post: /models/post", "- {post: /models/post, weight: [{component: head, value: 1}]}"),
        BASIC.replace("- post: /models/post", "- {post: /models/post, weight: [{layers: x-y, value: 1}]}"),
        BASIC.replace("- post: /models/post", "- {post: /models/post, weight: [{match: x}]}"),
        BASIC.replace("- post: /models/post", "- {post: /models/post, weight: [0.5]}"),
        BASIC.replace("/models/new", "''"),
        "deltas: []\nbase: /a\noutput: /b\n",
        "method: slerp\nparameters: {t: 0.5}\nmodels: [{model: /a}, {model: /b}, {model: /c}]\noutput: /o\n",
        "method: slerp\nmodels: [{model: /a}, {model: /b}]\noutput: /o\n",
        "method: karcher\nbase: /x\nmodels: [{model: /a}, {model: /b}]\noutput: /o\n",
        "[]",
        "5",
    ],
)
def test_what_the_parser_refuses_for_its_form_the_schema_refuses_too(text):
    with pytest.raises(RecipeError):
        parse_recipe(text, where="recipe.yaml")
    assert not fits(load(text))


@pytest.mark.parametrize(
    "text",
    [
        BASIC,
        BASIC + "dtype: bf16\nshard_size: 5 kib\ntokenizer_from: 0\ninclude: '*.mlp.*'\nexclude: ['a', b]\nvocab: by-token\n",
        BASIC + "shard_size: 1.5GiB\nstorage: {'': {}, 's3://x/': {endpoint: 'http://minio:9000/prefix', profile: lab}}\n",
        BASIC + "sweep: {weight: [0.5, 1, 1e-3], deltas.0.weight: [2]}\n".replace(", deltas.0.weight: [2]", ""),
        BASIC + "sweep: {deltas.0.weight: [0.25, 2]}\n",
        BASIC + "method: ties\nsweep: {density: [0.2, 0.5]}\n",
        BASIC.replace("/models/out", "s3://b/{date}-{inputs}"),
        BASIC.replace(
            "- post: /models/post",
            "- post: /models/post\n    weight: [{match: ['*'], layers: [0-3, 7, '16-'], component: [mlp], value: [0, 1]}, {value: 1}]",
        ),
        "method: slerp\nbase: /x\nparameters: {t: [0, 0.5, 1]}\nmodels: [{model: /a}]\noutput: /o\n",
    ],
)
def test_what_the_parser_takes_the_schema_takes(text):
    parse_recipe(text, where="recipe.yaml")
    VALIDATOR.validate(json.loads(json.dumps(load(text))))


def values_of(parameter):
    """Values inside, at and outside the ends of a range, of other types, gradients, rules."""
    ends = [end for end in (parameter.minimum, parameter.maximum) if abs(end) < 1e18]
    step = 1 if parameter.kind is int else 1e-3
    numbers = [0, 1, 2, 0.5, -0.25, *(end + by for end in ends for by in (-step, 0, step))]
    plain = [*numbers, True, "word", *parameter.choices, None, {"a": 1}]
    yield from plain
    for value in plain[:6]:
        yield from ([value], [value, value], [{"value": value}], [{"match": "*.mlp.*", "value": value}, {"value": value}])
    yield from ([], [{}], [{"value": 0.5, "mach": "x"}], [{"component": "mlp", "value": [0.5, 1]}], [{"layers": "0-3", "value": True}])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_parser_and_schema_agree_on_every_value_of_every_parameter(method):
    document = load(method.example)
    section = "deltas" if method.roles is Roles.DELTAS else "models"
    tried = 0
    for parameter in method.parameters:
        for value in values_of(parameter):
            whole = copy.deepcopy(document)
            whole.setdefault("parameters", {})[parameter.name] = value
            each = copy.deepcopy(document)
            each[section][0][parameter.name] = value
            for changed in (whole, each):
                if isinstance(value, float) and value.is_integer() and parameter.kind is int:
                    continue  # to a schema 1.0 is a whole number
                assert fits(changed) == accepted(changed), (parameter, value, changed)
                tried += 1
    assert tried > 50 or not method.parameters


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_parser_and_schema_agree_on_what_a_method_takes(method):
    for base in (True, False):
        for section in ("deltas", "models"):
            for count in range(5):
                document = {
                    key: value for key, value in load(method.example).items() if key not in ("base", "deltas", "models", "tokenizer_from")
                }
                own = {p.name: 0.5 for p in method.for_each if p.default is None}
                document |= {"base": "/m/base"} if base else {}
                document[section] = [{"post" if section == "deltas" else "model": f"/m/{n}", **own} for n in range(count)]
                assert fits(document) == accepted(document), document


def test_an_editor_finds_it_from_where_the_docs_say():
    said = (DOCS / "recipe.md").read_text()
    assert "# yaml-language-server: $schema=" in said
    assert Path(DOCS / FILE).exists()
