"""mergekit configs as recipes: each documented form means the same here, differences are told, and what has no equal is refused."""

import json
import re

import pytest
import yaml

from paramdelta_dist import api
from paramdelta_dist.errors import RecipeError
from paramdelta_dist.importing import KNOWN, import_mergekit
from paramdelta_dist.methods import METHODS
from paramdelta_dist.recipe import parse_recipe
from tests import oracle
from tests.models import ARCHITECTURES, make_models
from tests.terminal import call


def imported(config, output="/out"):
    """The recipe, and the notes as one text."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    made = import_mergekit(text, where="m.yml", output=output)
    return yaml.safe_load(made.text), "\n".join(made.notes)


def refused(config):
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    with pytest.raises(RecipeError) as raised:
        import_mergekit(text, where="m.yml", output="/out")
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_linear():
    recipe, notes = imported("""
        models:
          - {model: psmathur/orca_mini_v3_13b, parameters: {weight: 1.0}}
          - {model: /models/other, parameters: {weight: 0.3}}
        merge_method: linear
        dtype: float16
    """)
    assert recipe == {
        "method": "linear",
        "models": [{"model": "hf://psmathur/orca_mini_v3_13b", "weight": 1.0}, {"model": "/models/other", "weight": 0.3}],
        "output": "/out",
        "dtype": "float16",
    }
    assert "mergekit computes in float16, rounding in between; here in float32" in notes
    assert "hf://psmathur/orca_mini_v3_13b of the Hugging Face hub" in notes
    assert "takes config and tokenizer from any of its models" in notes


SLERP = """
    slices:
      - sources:
          - {model: /models/a, layer_range: [0, 32]}
          - {model: /models/b, layer_range: [0, 32]}
    merge_method: slerp
    base_model: /models/a
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
        - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
        - value: 0.5 # fallback for rest of tensors
    dtype: bfloat16
"""


def test_slerp_with_gradients_and_filters():
    recipe, notes = imported(SLERP)
    assert recipe == {
        "method": "slerp",
        "parameters": {
            "t": [
                {"match": "*self_attn*", "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
                {"match": "*mlp*", "value": [1.0, 0.5, 0.7, 0.3, 0.0]},
                {"value": 0.5},
            ]
        },
        "base": "/models/a",
        "models": [{"model": "/models/b"}],
        "output": "/out",
        "dtype": "bfloat16",
        "tokenizer_from": "base",
    }
    assert "exactly 32 layers" in notes
    assert "filters: one that decides about no tensor is an error here" in notes


TIES = """
    models:
      - model: /models/orca
        parameters:
          density: [1, 0.7, 0.1] # density gradient
          weight: 1.0
      - model: /models/wizard
        parameters:
          density: 0.33
          weight:
            - {filter: mlp, value: 0.5}
            - value: 0
    merge_method: ties
    base_model: /models/llama
    parameters: {normalize: true, int8_mask: true}
    dtype: float16
"""


def test_ties_with_gradients_by_model():
    recipe, notes = imported(TIES)
    assert recipe["parameters"] == {"normalize": "weight"}
    assert recipe["base"] == "/models/llama"
    assert recipe["deltas"] == [
        {"post": "/models/orca", "weight": 1.0, "density": [1.0, 0.7, 0.1]},
        {"post": "/models/wizard", "weight": [{"match": "*mlp*", "value": 0.5}, {"value": 0}], "density": 0.33},
    ]
    assert "int8_mask" in notes


def test_ties_without_normalize_divides_by_the_weights_as_mergekit_does():
    config = yaml.safe_load(TIES)
    del config["parameters"]
    assert imported(config)[0]["parameters"] == {"normalize": "weight"}
    config["parameters"] = {"normalize": False}
    assert imported(config)[0]["parameters"] == {"normalize": "none"}


def deltas(method, each, shared=None, **more):
    models = [{"model": f"/models/{name}", "parameters": dict(each)} for name in ("x", "y")]
    return {"merge_method": method, "base_model": "/models/base", "models": models, "parameters": shared or {}, **more}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (deltas("task_arithmetic", {"weight": 0.4}, {"lambda": 0.5, "normalize": False}), {"lambda": 0.5}),
        (deltas("dare_ties", {"weight": 0.5, "density": 0.53}), {"rescale": "l1", "normalize": "none"}),
        (deltas("dare_linear", {"weight": 0.5, "density": 0.53}, {"rescale": False, "lambda": 1.1}), {"rescale": "none", "lambda": 1.1}),
        (deltas("della", {"weight": 1, "density": 0.7, "epsilon": 0.1}), {"rescale": "l1", "normalize": "weight"}),
        (deltas("della_linear", {"weight": 1, "density": 0.7}), {"rescale": "l1"}),
        (deltas("breadcrumbs", {"weight": 1, "density": 0.9, "gamma": 0.01}), {}),
        (deltas("breadcrumbs_ties", {"weight": 1, "density": 0.9}, {"normalize": True}), {"normalize": "weight"}),
        (deltas("model_stock", {}, {"filter_wise": True}), {"filter_wise": True}),
        (deltas("sce", {}, {"select_topk": 0.1}), {"select_topk": 0.1}),
        (deltas("ram", {}, {"epsilon": "1e-5"}), {"epsilon": 1e-5}),
        (deltas("ramplus_tl", {}, {"r": 0.2, "alpha": 0.3}), {"r": 0.2, "alpha": 0.3}),
    ],
)
def test_methods_on_deltas(config, parameters):
    recipe, _ = imported(config)
    own = config["models"][0]["parameters"]
    assert recipe["method"] == config["merge_method"]
    assert recipe.get("parameters", {}) == parameters
    assert recipe["deltas"] == [{"post": f"/models/{name}", **own} for name in ("x", "y")]


def test_a_base_that_is_listed_among_the_models_is_no_delta():
    config = deltas("ties", {"weight": 1.0, "density": 0.5})
    config["models"].insert(0, {"model": "/models/base"})
    assert [delta["post"] for delta in imported(config)[0]["deltas"]] == ["/models/x", "/models/y"]


def test_two_model_methods_and_means_of_directions():
    pair = {"base_model": "/models/a", "models": [{"model": "/models/a"}, {"model": "/models/b"}]}
    assert imported({"merge_method": "nearswap", "parameters": {"t": 0.001}, **pair})[0]["models"] == [{"model": "/models/b"}]
    assert imported({"merge_method": "arcee_fusion", **pair})[0]["base"] == "/models/a"
    two = [{"model": f"/models/{name}", "parameters": {"weight": 0.5}} for name in "ab"]
    nuslerp, _ = imported(
        {"merge_method": "nuslerp", "base_model": "/models/base", "models": two, "parameters": {"nuslerp_flatten": False}}
    )
    assert (nuslerp["base"], len(nuslerp["models"]), nuslerp["parameters"]) == ("/models/base", 2, {"nuslerp_flatten": False})
    assert "base" not in imported({"merge_method": "nuslerp", "models": two})[0]
    assert imported({"merge_method": "karcher", "models": two[:2], "parameters": {"max_iter": 5}})[0]["parameters"] == {"max_iter": 5}
    assert imported({"merge_method": "multislerp", "models": two})[0]["models"] == [
        {"model": "/models/a", "weight": 0.5},
        {"model": "/models/b", "weight": 0.5},
    ]


def test_slices_that_go_through_the_layers_are_rules_by_layer():
    recipe, _ = imported("""
        slices:
          - sources: [{model: /m/a, layer_range: [0, 8]}, {model: /m/b, layer_range: [0, 8], parameters: {weight: [0, 1]}}]
            parameters: {weight: 0.5}
          - sources: [{model: /m/a, layer_range: [8, 16]}, {model: /m/b, layer_range: [8, 16]}]
            parameters: {weight: [{filter: mlp, value: 2}, {value: 3}]}
        merge_method: task_arithmetic
        base_model: /m/a
    """)
    assert recipe["deltas"] == [
        {
            "post": "/m/b",
            "weight": [
                {"layers": "0-7", "value": [0.0, 1.0]},
                {"match": "*mlp*", "layers": "8-15", "value": 2},
                {"layers": "8-15", "value": 3},
                {"component": "embedding", "value": 0},
                {"value": 3},
            ],
        }
    ]


def test_the_tokenizer_follows_its_source():
    def keys(**more):
        recipe, notes = imported(deltas("task_arithmetic", {"weight": 1}, **more))
        return recipe.get("tokenizer_from"), recipe.get("vocab"), notes

    assert keys()[:2] == ("base", None)
    assert keys(tokenizer_source="base")[:2] == ("base", "by-token")
    assert keys(tokenizer_source="/models/x")[:2] == (None, "by-token")  # the default: the first delta's post
    assert keys(tokenizer_source="/models/y")[:2] == ("/models/y", "by-token")
    source, vocab, notes = keys(tokenizer={"source": "/elsewhere"})
    assert (source, vocab) == ("/elsewhere", "by-token")
    assert "padding" in notes
    assert "tokenizer_source union" in refused(deltas("task_arithmetic", {"weight": 1}, tokenizer_source="union"))
    assert "tokenizer.pad_to_multiple_of" in refused(
        deltas("task_arithmetic", {"weight": 1}, tokenizer={"source": "base", "pad_to_multiple_of": 64})
    )


def test_the_dtype_written_is_the_one_mergekit_writes():
    assert imported(deltas("task_arithmetic", {"weight": 1}, dtype="float32", out_dtype="bfloat16"))[0]["dtype"] == "bfloat16"
    assert "dtype" not in imported(deltas("task_arithmetic", {"weight": 1}))[0]


def test_references_to_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    entries = [
        "org/here",
        "org/hub@v1.0",
        {"model": {"path": "org/hub", "revision": "main"}},
        "./relative",
        "s3://bucket/model",
    ]
    config = {"merge_method": "linear", "models": [{"model": entry, "parameters": {"weight": 1}} for entry in entries]}
    assert [entry["model"] for entry in imported(config)[0]["models"]] == [
        "org/here",
        "hf://org/hub@v1.0",
        "hf://org/hub@main",
        "./relative",
        "s3://bucket/model",
    ]


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"merge_method": "passthrough", "models": [{"model": "/a"}]}, ["passthrough stacks layers"]),
        ({"merge_method": "voodoo", "models": [{"model": "/a"}]}, ["merge_method 'voodoo' is not known; known are linear"]),
        (deltas("ties", {"weight": 1}, {"rescale": True, "lamda": 1}), ["rescale: true has no equal here", "parameters.lamda"]),
        (deltas("dare_linear", {"weight": 1}, {"normalize": True}), ["normalize: true has no equal here: divide the weights"]),
        (deltas("ties", {"density": 0.5}), ["/models/x: weight is missing", "/models/y: weight is missing"]),
        ({**deltas("ties", {"weight": 1}), "base_model": None}, ["base_model is missing, which ties needs"]),
        (deltas("slerp", {}, {"t": 0.5}), ["slerp merges two models, of which base_model is one; 2 others are listed"]),
        (deltas("ties", {"weight": 1}, unknown=1, modules={"text": {}}), ["unknown key 'unknown'", "modules: "]),
        (
            {
                "merge_method": "linear",
                "models": [{"model": "/a+lora/b", "parameters": {"weight": 1}}, {"model": "/a", "parameters": {"weight": 1}}],
            },
            ["a model with a LoRA"],
        ),
        (deltas("ties", {"weight": [True, False]}), ["a gradient of anything but numbers"]),
        (deltas("ties", {"weight": 1}, chat_template="{{ x }}"), ["chat_template"]),
    ],
)
def test_what_cannot_be_mapped_is_refused_all_at_once(config, problems):
    message = refused(config)
    assert message.startswith("m.yml: this cannot be mapped to a recipe:")
    assert all(problem in message for problem in problems)


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([[[0, 24], [0, 24]], [[8, 32], [8, 32]]], "slices.1: layer_range [8, 32] does not go on at layer 24"),
        ([[[0, 24], [8, 32]]], "slices.0: puts together layers of different numbers"),
        ([[[4, 24], [4, 24]]], "slices.0: layer_range [4, 24] does not go on at layer 0"),
    ],
)
def test_frankenmerges_are_refused(spans, problem):
    slices = [{"sources": [{"model": m, "layer_range": span} for m, span in zip("ab", part, strict=True)]} for part in spans]
    assert problem in refused({"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}})


def test_slices_of_other_models_are_refused():
    slices = [{"sources": [{"model": m, "layer_range": span}]} for m, span in (("/a", [0, 8]), ("/b", [8, 16]))]
    assert "slices.1: has other models" in refused({"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}})


def test_text_that_is_no_config_is_refused():
    for text in ("", "- a", "a: [", "1"):
        with pytest.raises(RecipeError, match=r"m\.yml: not"):
            import_mergekit(text, where="m.yml", output="/out")


def test_every_method_that_is_mapped_is_here_and_every_recipe_is_valid():
    assert {known.method for known in KNOWN.values()} <= {method.name for method in METHODS}
    for config in (SLERP, TIES):
        made = import_mergekit(config, where="m.yml", output="/out")
        assert parse_recipe(made.text, where="r.yaml").output == "/out"


def run(*arguments, cwd):
    return call("import", *arguments, cwd=cwd)


def test_the_command_prints_the_recipe_and_tells_the_differences(tmp_path):
    (tmp_path / "m.yml").write_text(TIES)
    done = run("m.yml", "--output", "s3://b/out", cwd=tmp_path)
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["output"] == "s3://b/out"
    assert "differences from mergekit:\n  - int8_mask" in done.stderr
    written = run("m.yml", "-o", "recipe.yaml", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, "")
    assert "method: ties" in (tmp_path / "recipe.yaml").read_text()
    again = run("m.yml", "-o", "recipe.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "recipe.yaml is there already" in again.stderr
    document = json.loads(run("m.yml", "--json", cwd=tmp_path).stdout)
    assert document["notes"]
    assert yaml.safe_load(document["recipe"])["method"] == "ties"
    (tmp_path / "bad.yml").write_text("merge_method: passthrough\nslices: []\n")
    bad = run("bad.yml", cwd=tmp_path)
    assert bad.returncode == 2
    assert "passthrough" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_an_imported_recipe_merges_what_the_config_says(tmp_path):
    """Gradients and filters of a task arithmetic, to the float64 oracle."""
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    weight = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.5}, {"value": [0.25, 0.75]}]
    config = {"merge_method": "task_arithmetic", "base_model": str(old), "dtype": "float32", "out_dtype": "bfloat16",
              "models": [{"model": str(post), "parameters": {"weight": weight}}, {"model": str(new), "parameters": {"weight": -0.5}}],
              "parameters": {"lambda": 0.5}}  # fmt: skip
    made = import_mergekit(yaml.safe_dump(config), where="m.yml", output=str(tmp_path / "out"))
    api.merge(parse_recipe(made.text, where="r.yaml"))

    def expected(name):
        layer = re.search(r"layers\.(\d)", name)
        t = int(layer[1]) / 2 if layer else 0.0
        return t if "self_attn" in name else 0.5 if "mlp" in name else 0.25 + 0.5 * t

    tensors = [oracle.load(folder) for folder in (old, post, new)]
    want = {
        name: oracle.merge({name: t}, [(tensors[1], tensors[0], 0.5 * expected(name)), (tensors[2], tensors[0], -0.25)])[name]
        for name, t in tensors[0].items()
    }
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), want, share=1e-3)
