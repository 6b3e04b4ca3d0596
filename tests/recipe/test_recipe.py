"""Recipes: what a user may write, and that every mistake is one message which names the line, the key and the way out."""

import os
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.recipe.flags import recipe_from_flags
from paramdelta_dist.recipe.sections import Delta
from paramdelta_dist.recipe.yaml_text import MAX_RECIPE, parse_recipe
from paramdelta_dist.storage import StoreSettings

DESIGN = """\
method: paramdelta                              # the default
base: s3://models/Llama-3.1-70B                 # Θ'_base: the new base; receives the deltas
deltas:
  - post: s3://models/Llama-3-70B-Instruct      # Θ_post
    base: s3://models/Llama-3-70B               # Θ_base of this post; left out, it is the recipe's base
    weight: 1.0                                 # α; a number, or rules by tensor name / layer range
output: s3://models/Llama-3.1-70B-ParamDelta
dtype: bfloat16                                 # left out: every tensor keeps the base's dtype
shard_size: 5GB
tokenizer_from: post                            # base | post | a delta's index | a URL; default: the first delta's post
"""

SHORT = """\
base: /models/new
deltas:
  - post: /models/post
output: /models/out
"""


def parsed(text):
    return parse_recipe(textwrap.dedent(text), where="recipe.yaml")


def refused(text, *named):
    """The message with which a recipe is refused; every part of `named` is in it."""
    with pytest.raises(RecipeError) as refusal:
        parsed(text)
    return checked(refusal.value, "recipe.yaml:", *named)


def checked(error, *named):
    message = str(error)
    assert error.exit_code == 2
    for part in named:
        assert part in message
    for noise in (
        "type=",
        "input_value",
        "pydantic",
        "validation",
        "Traceback",
        "Value error",
        "Input should",
        "dictionary",
        "tuple",
        "None",
    ):
        assert noise not in message
    return message


def with_line(line, text=SHORT):
    return text + line + "\n"


def with_delta(line):
    return SHORT.replace("  - post: /models/post\n", f"  - post: /models/post\n    {line}\n")


def test_the_recipe_of_the_design_is_read():
    recipe = parsed(DESIGN)
    assert recipe.method == "paramdelta"
    assert recipe.base == "s3://models/Llama-3.1-70B"
    assert recipe.deltas == (Delta(post="s3://models/Llama-3-70B-Instruct", base="s3://models/Llama-3-70B", weight=1.0),)
    assert recipe.output == "s3://models/Llama-3.1-70B-ParamDelta"
    assert recipe.dtype == "BF16"
    assert recipe.shard_size == 5 * 10**9
    assert recipe.tokenizer_url == "s3://models/Llama-3-70B-Instruct"
    assert recipe.models == ("s3://models/Llama-3.1-70B", "s3://models/Llama-3-70B-Instruct", "s3://models/Llama-3-70B")


def test_the_defaults():
    recipe = parsed(SHORT)
    assert recipe.method == "paramdelta"
    assert recipe.deltas == (Delta(post="/models/post", base=None, weight=1.0),)
    assert recipe.models == ("/models/new", "/models/post")
    assert recipe.dtype is None
    assert recipe.shard_size == 5 * 10**9
    assert recipe.tokenizer_url == "/models/post"
    assert not recipe.allow_nonfinite
    assert recipe.storage_config.for_url("s3://any/where") == StoreSettings()


def test_any_number_of_deltas_each_with_its_own_base():
    lines = "".join(f"  - {{post: /p{n}, base: /b{n}, weight: {n / 10}}}\n" for n in range(40))
    recipe = parsed(f"base: /new\noutput: /out\ndeltas:\n{lines}")
    assert [(d.post, d.base, d.weight) for d in recipe.deltas] == [(f"/p{n}", f"/b{n}", n / 10) for n in range(40)]
    assert len(recipe.models) == 81


def test_a_recipe_may_be_json():
    assert parsed('{"base": "/new", "deltas": [{"post": "/p", "weight": 1e-3}], "output": "/out"}').deltas[0].weight == 1e-3


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("1", 1.0),
        ("0", 0.0),
        ("-2", -2.0),
        ("0.5", 0.5),
        ("-.5", -0.5),
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("1.5e+2", 150.0),
        ("-1e-2", -0.01),
        ("+1", 1.0),
    ],
)
def test_a_weight_is_any_finite_number(text, weight):
    value = parsed(with_delta(f"weight: {text}")).deltas[0].weight
    assert value == weight
    assert type(value) is float


@pytest.mark.parametrize(
    "text", ["abc", "true", "no", "", "null", "'1'", "[1]", "{a: 1}", "1,5", "1/2", "1e", "2001-01-01", "1" + "0" * 400]
)
def test_a_weight_that_is_no_number_is_refused(text):
    refused(with_delta(f"weight: {text}"), "line 4", "deltas.0.weight", "number")


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "1e999"])
def test_a_weight_that_is_not_finite_is_refused(text):
    assert refused(with_delta(f"weight: {text}")) == "recipe.yaml: line 4: deltas.0.weight: should be a finite number"


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        ("bsae: /x", "base"),
        ("delta: []", "deltas"),
        ("outptu: /x", "output"),
        ("shardsize: 5GB", "shard_size"),
        ("d_type: bf16", "dtype"),
        ("tokenizer: base", "tokenizer_from"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest_known_one(typo, near):
    assert refused(with_line(typo), "line 5", f"unknown key '{typo.partition(':')[0]}'").endswith(f"did you mean {near!r}?")


def test_an_unknown_key_far_from_all_lists_the_known_ones():
    assert refused(with_line("zzz: 1")).endswith(
        "known keys: method, parameters, base, deltas, models, output, dtype, shard_size, "
        "tokenizer_from, quantization, include, exclude, missing, accept, vocab, vocabulary, allow_nonfinite, storage, sweep"
    )


def test_an_unknown_key_in_a_delta_is_named_with_its_place():
    assert refused(with_delta("wieght: 2")) == "recipe.yaml: line 4: unknown key 'deltas.0.wieght'; did you mean 'weight'?"


def test_an_unknown_key_in_a_storage_section_is_named_and_its_value_is_not_shown():
    text = with_line("storage:\n  s3://models:\n    endpont: http://user:SECRET@host")
    message = refused(text, "line 7", "'storage.s3://models.endpont'", "did you mean 'endpoint'?")
    assert "SECRET" not in message
    assert "SECRET" not in refused(with_line("storage:\n  s3://models:\n    secret_access_key: SECRET"), "unknown key")


@pytest.mark.parametrize("key", ["1", "2.5", "true", "~", "2001-01-01"])
def test_a_key_that_is_no_word_is_unknown(key):
    with pytest.raises(RecipeError, match="unknown key"):
        parsed(with_line(f"{key}: x"))


@pytest.mark.parametrize("key", ["? [a, b]\n", "? {a: b}\n", "{a: b}", "[a]"])
def test_a_key_that_is_a_list_or_mapping_is_refused(key):
    refused(with_line(f"{key}: x"), "line 5", "a key should be a word")


def test_every_missing_key_is_named():
    assert refused("method: paramdelta") == "recipe.yaml:\n  'base' is missing\n  'deltas' is missing\n  'output' is missing"
    assert refused("base: /a\noutput: /b\ndeltas:\n  - weight: 1") == "recipe.yaml: line 4: 'deltas.0.post' is missing"


def test_every_mistake_is_named_at_once():
    text = """\
        base: /new
        dtyp: bf16
        deltas:
          - post: /p
            weight: much
          - pots: /q
        output: 7
        shard_size: 3 potatoes
        """
    message = refused(text)
    assert message.count("\n") == 6
    for part in (
        "line 2: unknown key 'dtyp'",
        "line 5: deltas.0.weight",
        "line 6: 'deltas.1.post' is missing",
        "line 6: unknown key 'deltas.1.pots'",
    ):
        assert part in message
    assert "line 7: output: should be a path or URL" in message
    assert "line 8: shard_size: '3 potatoes' is not a size" in message


@pytest.mark.parametrize("deltas", ["{post: /p}", "[]", "/p", "", "5", "true"])
def test_deltas_that_are_no_list_are_refused(deltas):
    refused(f"base: /new\noutput: /out\ndeltas: {deltas}", "line 3", "deltas: should be a list of one or more deltas", "`- post:`")


@pytest.mark.parametrize("delta", ["/p", "5", "[/p]", ""])
def test_a_delta_that_is_no_mapping_is_refused(delta):
    refused(f"base: /new\noutput: /out\ndeltas:\n  - {delta}", "line 4", "deltas.0: should be lines of `key: value`, such as `post: URL`")


def test_a_model_that_is_no_mapping_is_refused():
    refused("method: linear\noutput: /out\nmodels: [/p]", "line 3", "models.0: should be lines of `key: value`, such as `model: URL`")


def test_a_parameter_of_another_method_is_told_from_a_typo():
    ties = "method: ties\nbase: /new\noutput: /out\ndeltas:\n  - post: /post\nparameters:\n  "
    refused(ties + "densty: 1", "line 7", "unknown key 'parameters.densty'; did you mean 'density'?")
    refused(ties + "gamma: 1", "line 7", "parameters of ties: weight, density, trim, normalize, lambda (gamma is of breadcrumbs, ")


@pytest.mark.parametrize("size", ["0", "-1", "10", "999", "10 B", "0.0GB"])
def test_a_shard_size_that_holds_nothing_is_refused(size):
    refused(with_line(f"shard_size: {size}"), "line 5", "shard_size", "less than")


@pytest.mark.parametrize("size", ["5XB", "GB", "big", "-5GB", "'5 GB of data'"])
def test_a_shard_size_that_is_no_size_is_refused(size):
    refused(with_line(f"shard_size: {size}"), "line 5", "shard_size", "is not a size; write a number with a unit, such as 5GB")


@pytest.mark.parametrize("size", ["true", "5.5", "[5GB]", "", "5e9"])
def test_a_shard_size_of_another_type_is_refused(size):
    refused(with_line(f"shard_size: {size}"), "line 5", "shard_size: should be a size such as 5GB")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bfloat16", "BF16"),
        ("bf16", "BF16"),
        ("BF16", "BF16"),
        ("float16", "F16"),
        ("fp32", "F32"),
        ("F64", "F64"),
        ("", None),
        ("~", None),
    ],
)
def test_a_dtype_may_be_spelt_as_people_do(text, name):
    assert parsed(with_line(f"dtype: {text}")).dtype == name


@pytest.mark.parametrize("dtype", ["int8", "fp8", "F8_E4M3", "float8_e4m3fn", "bool", "5", "true", "[bf16]", "auto", "x" * 5000])
def test_a_dtype_that_cannot_be_written_is_refused(dtype):
    message = refused(with_line(f"dtype: {dtype}"), "line 5", "dtype", "use bfloat16, float16, float32 or float64")
    assert len(message) < 300


def test_an_unknown_method_names_the_nearest():
    refused(with_line("method: parmdelta"), "line 5", "there is no method 'parmdelta'; did you mean 'paramdelta'?")
    refused(with_line("method: TIES"), "line 5", "there is no method 'TIES'; did you mean 'ties'?")
    refused(with_line("method: 5"), "line 5: method: should be text")


@pytest.mark.parametrize("value", ["maybe", "[true]", "2", ""])
def test_a_switch_is_true_or_false(value):
    refused(with_line(f"allow_nonfinite: {value}"), "line 5: allow_nonfinite: should be true or false")


@pytest.mark.parametrize(
    "text",
    [
        "base: /x\nbase: /y",
        "base: /x\ndeltas: [{post: /p, post: /q}]",
        "storage:\n  s3://x:\n    region: a\n    region: b",
        "'base': /x\nbase: /y",
        "1: a\n'1': b",
    ],
)
def test_a_key_given_twice_is_refused(text):
    refused(text, "line ", "is given twice")


@pytest.mark.parametrize(
    ("text", "line"),
    [("base: &a /x\noutput: *a", 2), ("a: &a [1, 2]\nb: [*a, *a]", 2), ("base: /x\n<<: *b", 2), ("*a : x", 1)],
)
def test_aliases_are_refused(text, line):
    refused(text, f"line {line}: aliases (*name) are not allowed")


def test_the_billion_laughs_are_refused_at_once():
    lines = ['a0: &a0 ["lol"]'] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    refused("\n".join(lines), "line 2: aliases")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch /tmp/owned']",
        "!!python/name:os.system",
        "!!python/object/new:os.system [x]",
        "!!python/module:os",
        "!mine x",
        "!!timestamp x",
        "!!bool x",
        "!!int ''",
        "!!float x",
        "!!binary x",
        "!!set {a}",
        "!!str /x",
        "! /x",
        "!<tag:yaml.org,2002:int> x",
        "!!map {}",
        "!!seq []",
    ],
)
def test_tags_are_refused(value):
    refused(f"output: /x\nbase: {value}", "line 2: tags (!name) are not allowed")


@pytest.mark.parametrize(
    "text",
    [
        "base: " + "[" * 100_000,
        "base: " + "{a: " * 100_000,
        "base: " + "[" * 500 + "]" * 500,
        "deltas: " + "[" * 200 + "]" * 200 + "\nbase: /x\noutput: /y",
        "? " * 5000,
        "- " * 5000,
        "dtype: " + "[" * 200 + "]" * 200,
        "storage: " + "{a: " * 200 + "1" + "}" * 200,
    ],
    ids=["lists", "mappings", "closed lists", "closed deltas", "keys", "block lists", "closed dtype", "closed storage"],
)
def test_nesting_at_any_depth_is_refused(text):
    assert len(refused(text)) < 1000


@pytest.mark.parametrize(
    "text",
    ["", "   \n\n", "# only a comment\n", "---\n", "- base: /x\n", "just text", "5", "true", "[]", "null"],
    ids=repr,
)
def test_what_is_no_mapping_is_refused_with_the_first_keys(text):
    refused(text, "`base:`, `deltas:` and `output:`")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: /x\ndeltas:\n\t- post: /p", "line 3"),
        ("base: 'unclosed", "line 1"),
        ("base: [unclosed", "line 1"),
        ("base: /x\n  output: /y", "line 2"),
        ("a: b: c", "line 1"),
        ("%YAML 9.9\n---\na: b", "line 1"),
        ("a: b\n---\nc: d", "line 2"),
        ("\0\1\2", "not valid YAML"),
        ("@base: /x", "line 1"),
        ("base: \x1b[2J", "not valid YAML"),
        ("day: 2001-99-99", "not valid YAML"),
        ("dtype: 1" + ":10" * 300 + ".5", "not valid YAML"),
        ("dtype: " + "9" * 5000, "not valid YAML"),
        ("dtype: 0x_", "not valid YAML"),
    ],
    ids=range(14),
)
def test_broken_yaml_is_refused(text, named):
    assert refused(text, "not valid YAML", named).isprintable()


def test_a_recipe_of_two_megabytes_is_refused_unread():
    refused("# " + "x" * (2 << 20), f"at most {MAX_RECIPE}")


@pytest.mark.parametrize(
    ("base", "output"),
    [
        ("/models/a", "/models/a"),
        ("/models/a", "/models/a/"),
        ("/models/a", "/models/./b/../a"),
        ("/models/a", "/models/a/out"),
        ("/models/a", "/models"),
        ("/models/a", "/"),
        ("s3://b/a", "s3://b/a"),
        ("s3://b/a", "s3://b/a/out"),
        ("s3://b/a", "s3://b"),
        ("file:///models/a", "/models/a"),
        ("out/a", "./out"),
    ],
)
@pytest.mark.parametrize("role", ["base", "post", "its base", "tokenizer"])
def test_an_output_in_an_input_or_around_it_is_refused(base, output, role):
    places = {"base": "/n", "post": "/p", "its base": "/b", "tokenizer": "/t"} | {role: base}
    text = f"""\
        base: {places["base"]}
        deltas:
          - post: {places["post"]}
            base: {places["its base"]}
        output: {output}
        tokenizer_from: {places["tokenizer"]}
        """
    refused(text, "are in each other; write to a folder of its own")


def test_an_output_in_an_input_behind_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    refused(SHORT.replace("/models/new", str(tmp_path / "model")).replace("/models/out", str(tmp_path / "link" / "out")), "in each other")


def test_neighbours_with_a_common_start_of_name_are_apart():
    recipe = parsed("base: s3://b/model\noutput: s3://b/model-merged\ndeltas: [{post: s3://b/mode}]")
    assert recipe.output == "s3://b/model-merged"


TWO = "base: /new\noutput: /out\ndeltas: [{post: /p0, base: /b0}, {post: /p1}]\n"


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("base", "/new"),
        ("post", "/p0"),
        ("0", "/p0"),
        ("1", "/p1"),
        ("~", "/p0"),
        ("/elsewhere/", "/elsewhere"),
        ("s3://b/tok", "s3://b/tok"),
        ("'1'", "1"),
    ],
)
def test_the_tokenizer_comes_from(source, url):
    assert parsed(with_line(f"tokenizer_from: {source}", TWO)).tokenizer_url == (url if "/" in url else os.path.abspath(url))


@pytest.mark.parametrize("source", ["2", "5", "-1"])
def test_a_tokenizer_from_a_delta_that_is_not_there_is_refused(source):
    refused(with_line(f"tokenizer_from: {source}", TWO), f"tokenizer_from: there is no delta {source}; there are 2, counted from 0")


@pytest.mark.parametrize("source", ["true", "1.5", "[0]", "{a: b}", "2001-01-01"])
def test_a_tokenizer_from_something_else_is_refused(source):
    refused(with_line(f"tokenizer_from: {source}", TWO), "line 4: tokenizer_from: should be base, post, the position of a delta")


@pytest.mark.parametrize("source", ["''", "'  '", "s3://key:SECRET@bucket/tok"])
def test_a_tokenizer_from_a_bad_place_is_refused(source):
    assert "SECRET" not in refused(with_line(f"tokenizer_from: {source}", TWO), "line 4: tokenizer_from:")


@pytest.mark.parametrize("value", ["", "''", "' '", "5", "true", "[/x]", "{a: /x}", "'/x\\0'", '"/x\\0"'])
@pytest.mark.parametrize("key", ["base", "output"])
def test_a_place_that_is_none_is_refused(key, value):
    if value == "'/x\\0'":  # a backslash and a zero, which is a name like any other
        assert getattr(parsed(f"{key}: {value}\n" + "".join(line for line in SHORT.splitlines(True) if not line.startswith(key))), key)
        return
    text = f"{key}: {value}\n" + "".join(line for line in SHORT.splitlines(True) if not line.startswith(key))
    refused(text, f"line 1: {key}:")


def test_environment_variables_are_not_expanded_and_the_home_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    recipe = parsed("base: ~/new\noutput: $HOME/$SECRET\ndeltas: [{post: '%SECRET%', base: s3://b/$SECRET}, {post: '{{SECRET}}'}]")
    assert recipe.base == f"{tmp_path}/home/new"
    assert recipe.output == f"{tmp_path}/$HOME/$SECRET"
    assert [(d.post, d.base) for d in recipe.deltas] == [(f"{tmp_path}/%SECRET%", "s3://b/$SECRET"), (f"{tmp_path}/{{{{SECRET}}}}", None)]


def test_storage_settings_apply_below_their_prefix():
    text = """\
        storage:
          s3://models:
            {endpoint: "http://127.0.0.1:9000", region: eu-west-1, profile: lab, engine: fsspec}
          s3://models/public: {anonymous: true}
        """
    config = parsed(with_line(textwrap.dedent(text))).storage_config
    assert config.for_url("s3://models/x") == StoreSettings("fsspec", "http://127.0.0.1:9000", "eu-west-1", "lab", False)
    assert config.for_url("s3://models/public/x") == StoreSettings(anonymous=True)
    assert config.for_url("gs://models/x") == StoreSettings()


@pytest.mark.parametrize(
    "endpoint",
    ["http://user:SECRET@host:9000", "https://SECRET@host", "host:9000", "ftp://host", "''", "http://", "http://host/?key=SECRET"],
)
def test_an_endpoint_that_is_no_plain_url_is_refused(endpoint):
    message = refused(
        with_line(f"storage:\n  s3://x:\n    endpoint: {endpoint}"),
        "line 7",
        "endpoint: should be http(s)://host[:port], without credentials",
    )
    assert "SECRET" not in message


@pytest.mark.parametrize(
    "endpoint", ["http://host", "https://host:9000", "http://127.0.0.1:9000/", "https://host/path", "http://[::1]:9000"]
)
def test_an_endpoint_is_a_plain_url(endpoint):
    recipe = parsed(with_line(f'storage:\n  s3://x:\n    endpoint: "{endpoint}"'))
    assert recipe.storage_config.for_url("s3://x").endpoint == endpoint


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("storage: [a]", "storage: should be lines of `key: value`"),
        ("storage:\n  s3://x: fast", "storage.s3://x: should be lines of `key: value`"),
        ("storage:\n  5: {region: x}", "storage.5: should be text"),
        ("storage:\n  s3://x: {engine: curl}", "should be 'auto', 'obstore' or 'fsspec'"),
        ("storage:\n  s3://x: {region: 5}", "storage.s3://x.region: should be text"),
        ("storage:\n  s3://x: {anonymous: maybe}", "should be true or false"),
    ],
)
def test_storage_settings_of_another_type_are_refused(text, named):
    refused(with_line(text), named)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:SECRET@bucket/x",
        "https://user:SECRET@host/x",
        "gs://SECRET@bucket/x",
        "sftp://user:SECRET@host/x",
        "https://host/x?token=SECRET",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    assert "SECRET" not in refused(SHORT.replace("/models/new", url), "line 1: base:")


def test_what_is_kept_of_a_recipe_names_no_users_and_no_storage_settings():
    text = """\
        base: sftp://ALICE@host/new
        deltas: [{post: sftp://ALICE@host/post, base: sftp://ALICE@host/old, weight: 0.5}]
        output: sftp://ALICE@host/out
        tokenizer_from: sftp://ALICE@host/tok
        storage: {"sftp://ALICE@host": {profile: ALICE}}
        """
    document = parsed(text).as_document()
    assert "ALICE" not in str(document)
    assert document["tokenizer_from"] == "sftp://host/tok"
    assert document["deltas"] == [{"post": "sftp://host/post", "base": "sftp://host/old", "weight": 0.5}]


@given(st.one_of(st.text(max_size=200), st.text("abc:-?[]{}!&*#|>'\"%@`,\n\t ~<=0123456789.", max_size=60)))
@settings(deadline=None, max_examples=400)
def test_any_text_is_a_recipe_or_refused(text):
    with pytest.raises(RecipeError):
        parse_recipe(text, where="recipe.yaml")


words = st.sampled_from(["1e5", "~", "0x_", "=", "<<", "12:30:45"])
keys = st.sampled_from(["post", "weight", "region"])
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.dates().map(str), st.text(max_size=5), words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), keys), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["method", "base", "deltas", "output", "dtype", "shard_size", "tokenizer_from", "allow_nonfinite", "storage", "x"]),
        values,
    )
)
@settings(deadline=None, max_examples=300)
def test_any_values_are_a_recipe_or_refused(document):
    import yaml

    try:
        parse_recipe(yaml.safe_dump({"base": "/b", "output": "/o", "deltas": [{"post": "/p"}], **document}), where="recipe.yaml")
    except RecipeError as error:
        assert "Traceback" not in str(error)  # noqa: PT017


def flags(*deltas, base="/new", output="/out"):
    return [(d.post, d.base, d.weight) for d in recipe_from_flags(base=base, deltas=list(deltas), output=output).deltas]


@pytest.mark.parametrize(
    ("text", "delta"),
    [
        ("/p", ("/p", None, 1.0)),
        ("/p:/b", ("/p", "/b", 1.0)),
        ("/p:/b:1.0", ("/p", "/b", 1.0)),
        ("/p:0.5", ("/p", None, 0.5)),
        ("/p:1", ("/p", None, 1.0)),
        ("/p:-0.5", ("/p", None, -0.5)),
        ("/p:/b:-2", ("/p", "/b", -2.0)),
        ("/p:+1e-3", ("/p", None, 1e-3)),
        ("/p:.5", ("/p", None, 0.5)),
        ("/p:0", ("/p", None, 0.0)),
        ("s3://b/p", ("s3://b/p", None, 1.0)),
        ("s3://b/p:s3://b/o", ("s3://b/p", "s3://b/o", 1.0)),
        ("s3://b/p:s3://b/o:0.25", ("s3://b/p", "s3://b/o", 0.25)),
        ("s3://b/p:2", ("s3://b/p", None, 2.0)),
        ("gs://b/p:/local/b:0.5", ("gs://b/p", "/local/b", 0.5)),
        ("/p:hf://org/b", ("/p", "hf://org/b", 1.0)),
        ("http://host:9000/x", ("http://host:9000/x", None, 1.0)),
        ("http://host:9000/x:0.5", ("http://host:9000/x", None, 0.5)),
        ("http://host:9000/x:http://host:9001/y", ("http://host:9000/x", "http://host:9001/y", 1.0)),
        ("http://host:9000/x:http://other/y:-1", ("http://host:9000/x", "http://other/y", -1.0)),
        ("/p:https://host:80/y:3", ("/p", "https://host:80/y", 3.0)),
        ("s3://b/p:http://host:9000/y:1.5", ("s3://b/p", "http://host:9000/y", 1.5)),
        ("http://host/x:2", ("http://host/x", None, 2.0)),
        ("s3://bucket:2", ("s3://bucket", None, 2.0)),
    ],
)
def test_a_delta_flag_means(text, delta):
    assert flags(text) == [delta]


def test_several_delta_flags_keep_their_order():
    assert flags("/p:0.5", "/q:/b:-1", "/r") == [("/p", None, 0.5), ("/q", "/b", -1.0), ("/r", None, 1.0)]


@pytest.mark.parametrize(
    "text",
    [
        "/a:/b:/c",
        "/a:/b:1.0:2",
        "/a:/b:1.0:x",
        "/a:b:c:d",
        ":0.5",
        "/a::0.5",
        ":",
        "/a:",
        "/a:/b:",
        ":/b",
        "",
        "s3://a:s3://b:s3://c",
        "/a:/b:0.5x",
    ],
)
def test_a_delta_flag_of_another_form_is_refused(text):
    with pytest.raises(RecipeError, match="--delta") as refusal:
        flags(text)
    checked(refusal.value, "POST:BASE:WEIGHT")


def test_flags_are_held_to_the_same_rules_as_a_file():
    for arguments, named in (
        ({"deltas": ["/p:1e999"]}, "deltas.0.weight: should be a finite number"),
        ({"deltas": ["/new/x"], "output": "/new/x/y"}, "in each other"),
        ({"deltas": ["/p"], "base": ""}, "base: an empty string"),
        ({"deltas": ["s3://k:SECRET@b/x"]}, "--delta: credentials"),
        ({"deltas": ["/p:s3://k:SECRET@b/x:/y:/z"]}, "--delta: credentials"),
    ):
        with pytest.raises(RecipeError) as refusal:
            recipe_from_flags(**{"base": "/new", "output": "/out", **arguments})
        assert "SECRET" not in checked(refusal.value, named)
