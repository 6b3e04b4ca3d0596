"""mergekit configs as recipes: each documented form means the same here, differences are told, and what has no equal is refused."""

import json
import re

import pytest
import yaml

from paramdelta_dist import api
from paramdelta_dist.errors import RecipeError
from paramdelta_dist.methods import METHODS
from paramdelta_dist.recipe.mergekit import import_mergekit
from paramdelta_dist.recipe.mergekit_methods import KNOWN
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests import oracle
from tests.models import ARCHITECTURES, make_models
from tests.terminal import call


def imported(config, output="/out"):
    """The recipe, and the notes as one text."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    (made,) = import_mergekit(text, where="m.yml", output=output)
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
    assert "mergekit computes of numbers rounded to float16 first, in float32; here in float32" in notes
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
        ({"merge_method": "passthrough", "models": [{"model": "/a"}, {"model": "/b"}]}, ["passthrough stacks layers"]),
        ({"merge_method": "voodoo", "models": [{"model": "/a"}]}, ["merge_method 'voodoo' is not known; known are linear"]),
        (deltas("ties", {"weight": 1}, {"rescale": True}), ["rescale: true has no equal here"]),
        (deltas("dare_linear", {"weight": 1}, {"normalize": True}), ["normalize: true has no equal here: divide the weights"]),
        (deltas("ties", {"density": 0.5}), ["/models/x: weight is missing", "/models/y: weight is missing"]),
        ({**deltas("ties", {"weight": 1}), "base_model": None}, ["base_model is missing, which ties needs"]),
        (deltas("slerp", {}, {"t": 0.5}), ["slerp merges two models, of which base_model is one; 2 others are listed"]),
        (deltas("ties", {"weight": 1}, modules={"text": {}}), ["one of models, slices and modules; there are models and modules"]),
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


def test_a_module_around_all_is_read_like_its_content():
    config = yaml.safe_load(SLERP)
    module = {"slices": config.pop("slices"), "parameters": config.pop("parameters")}
    assert imported({**config, "modules": {"default": module}})[0] == imported(SLERP)[0]
    # of several modules that are merged alike, one is as good as all; parameters of a module come before those of the config
    made, notes = imported({**config, "modules": {"text": module, "vision": module}, "parameters": {"t": 1}})
    assert made == imported(SLERP)[0] | {"parameters": made["parameters"]}
    assert made["parameters"]["t"][-1] == {"value": 0.5}
    assert "taken to be all of the model" in notes
    other = {**module, "parameters": {"t": 0.1}}
    assert "text, vision are merged in different ways" in refused({**config, "modules": {"text": module, "vision": other}})


def test_a_slice_without_layers_is_the_whole_model_and_numbers_are_read_as_mergekit_reads_them():
    sources = [{"model": "/models/a"}, {"model": "/models/b"}]
    config = {"merge_method": "slerp", "base_model": "/models/a", "parameters": {"t": "0.5"}}
    whole = imported({**config, "slices": [{"sources": sources}]})[0]
    spans = [{**source, "layer_range": ["0", 32.0]} for source in sources]
    assert whole == imported({**config, "slices": [{"sources": spans}]})[0]
    assert whole == imported({**config, "models": sources})[0]
    by_slice = {key: value for key, value in config.items() if key != "base_model"}
    assert imported({**by_slice, "slices": [{"sources": spans, "base_model": "/models/a"}]})[0] == whole


@pytest.mark.parametrize(("yes", "no"), [(1, 0), (1.0, 0.0), ("yes", "off"), ("TRUE", "F"), ("'1'", "'0'")])
def test_numbers_and_words_for_switches(yes, no):
    def given(value):
        return imported(deltas("ties", {"weight": 1}, {"normalize": yaml.safe_load(str(value))}))[0]["parameters"]["normalize"]

    assert (given(yes), given(no)) == ("weight", "none")
    assert imported(deltas("task_arithmetic", {"weight": True}, {"normalize": 0}))[0]["deltas"][0]["weight"] == 1.0
    assert "'maybe' should be true or false" in refused(deltas("ties", {"weight": 1}, {"normalize": "maybe"}))


def test_what_mergekit_passes_over_is_told_and_left_out():
    entry = {"model": "/models/a", "merge_method": "linear", "parameters": {"weight": 1}}
    made, notes = imported({"merge_method": "linear", "models": [entry], "verbose": True, "parameters": {"lamda": 1}})
    assert made["models"] == [{"model": "/models/a", "weight": 1}]
    for told in ("models.0.merge_method: mergekit 0.1.5 has no such key there", "verbose: mergekit", "parameter lamda has no effect"):
        assert told in notes
    made, notes = imported("merge_method: ties\nmerge_method: linear\nmodels: [{model: /a, parameters: {weight: 1}}]\n")
    assert made["method"] == "linear"
    assert "merge_method stands there 2 times; the last counts" in notes


def test_several_configs_write_each_to_a_folder_of_its_own_and_read_each_other():
    text = yaml.safe_dump_all([
        {"merge_method": "slerp", "base_model": "first", "models": [{"model": "first"}, {"model": "/m/c"}], "parameters": {"t": 0.5}},
        {**deltas("ties", {"weight": 1}), "name": "first"},
    ])  # fmt: skip
    first, last = import_mergekit(text, where="m.yml", output="s3://b/out/")
    assert (first.name, yaml.safe_load(first.text)["output"]) == ("first", "s3://b/out/first")
    assert (last.name, yaml.safe_load(last.text)["base"]) == ("1", "s3://b/out/first")
    assert "merge that one first" in "".join(last.notes)
    round_ = [{"merge_method": "linear", "models": [{"model": other, "parameters": {"weight": 1}}], "name": name}
              for name, other in (("a", "b"), ("b", "a"))]  # fmt: skip
    assert "made of one another" in refused(yaml.safe_dump_all(round_))
    assert "name '../x'" in refused(yaml.safe_dump_all([{"name": "../x"}, {}]))


def test_a_tokenizer_source_that_says_it_is_a_model():
    made, _ = imported(deltas("task_arithmetic", {"weight": 1}, tokenizer_source="model:org/tok"))
    assert (made["tokenizer_from"], made["vocab"]) == ("hf://org/tok", "by-token")


def test_one_model_passed_through_is_that_model_times_a_scale():
    config = {"merge_method": "passthrough", "models": [{"model": "/a", "parameters": {"scale": 0.5}}]}
    assert imported(config)[0] == {
        "method": "linear", "parameters": {"normalize": False}, "models": [{"model": "/a", "weight": 0.5}], "output": "/out"
    }  # fmt: skip


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "della", "della_linear", "breadcrumbs"])
def test_a_density_of_zero_keeps_nothing_and_one_above_one_everything(method, tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    config = {"merge_method": method, "base_model": str(old), "parameters": {"normalize": False, "rescale": 0}, "models": [
        {"model": str(post), "parameters": {"weight": 0.5, "density": 0}}, {"model": str(new), "parameters": {"weight": 0.25, "density": 3}}
    ]}  # fmt: skip
    (made,) = import_mergekit(yaml.safe_dump(config), where="m.yml", output=str(tmp_path / "out"))
    api.merge(parse_recipe(made.text, where="r.yaml"))
    tensors = [oracle.load(folder) for folder in (old, new)]
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), oracle.merge(tensors[0], [(tensors[1], tensors[0], 0.25)]), share=1e-3)


ALIASES = "a: &a [1]\n" + "".join(f"{y}: &{y} [{','.join(['*' + x] * 10)}]\n" for x, y in zip("abcdefg", "bcdefgh", strict=True))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (SLERP.replace("layer_range: [0, 32]", "layer_range: 32"), "layer_range should be two whole numbers"),
        ("merge_method: slerp\nbase_model: /a\nparameters: {t: 0.5}\n", "one of models, slices and modules; there is none"),
        ("merge_method: linear\nmodels: [{model: /a, parameters: [{weight: 1}]}]\n", "models.0.parameters: should be lines of"),
        ("merge_method: linear\nmodels: [{model: /a, parameters: {weight: [.nan]}}]\n", "m.yml"),
        ("merge_method: karcher\nmodels: [{model: /a}, {model: /b}]\nparameters: {max_iter: .inf}\n", "should be a whole number"),
        ("merge_method: linear\nmodules: {default: 3}\n", "modules: should be lines of"),
        ("merge_method: linear\nmodules: {default: {}}\n", "modules.default: there should be one of models and slices"),
        ("merge_method: linear\nslices: 3\n", "slices: should be a list"),
        ("merge_method: linear\nslices: [3]\n", "slices.0: should have `sources:`"),
        ("merge_method: [linear]\nmodels: {a: 1}\n", "merge_method \"['linear']\" is not known"),
        (deltas("ties", {"weight": 1}, dtype="int64"), "dtype 'int64' cannot be written"),
        (deltas("ties", {"weight": 1, "density": [2, 0]}), "a gradient of shares that leaves 0 to 1"),
        (deltas("ties", {"weight": 1}, tokenizer="base"), "tokenizer: should be lines of"),
        (deltas("ties", {"weight": {"a": 1}}), "should be a value, a gradient, or a list"),
        (ALIASES, "written out it has more than"),
    ],
)  # fmt: skip
def test_every_mistake_is_said_of_the_file_that_the_person_has(config, problem):
    message = refused(config)
    assert problem in message
    assert "recipe made of" not in message
    assert "line " not in message


def test_what_the_recipe_refuses_is_said_in_the_words_of_the_config():
    message = refused(deltas("sce", {}, {"select_topk": 2}))
    assert message.startswith("m.yml: ")
    assert "select_topk" in message
    message = refused(deltas("breadcrumbs", {"weight": 1, "density": 0.5, "gamma": -1}))
    assert "model /models/x: gamma" in message
    assert "deltas" not in message


def test_text_that_is_no_config_is_refused():
    for text in ("", "- a", "a: [", "1"):
        with pytest.raises(RecipeError, match=r"m\.yml: not"):
            import_mergekit(text, where="m.yml", output="/out")


def test_every_method_that_is_mapped_is_here_and_every_recipe_is_valid():
    assert {known.method for known in KNOWN.values()} <= {method.name for method in METHODS}
    for config in (SLERP, TIES):
        (made,) = import_mergekit(config, where="m.yml", output="/out")
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
    (tmp_path / "two.yml").write_text(f"name: one\n{TIES}---\n{TIES}".replace("\n    ", "\n"))
    two = run("two.yml", "-o", "r.yaml", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert "2 recipes: merge them in this order" in two.stderr
    assert [yaml.safe_load((tmp_path / f"r-{name}.yaml").read_text())["output"] for name in ("one", "2")] == ["merged/one", "merged/2"]


def test_an_imported_recipe_merges_what_the_config_says(tmp_path):
    """Gradients and filters of a task arithmetic, to the float64 oracle."""
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    weight = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.5}, {"value": [0.25, 0.75]}]
    config = {"merge_method": "task_arithmetic", "base_model": str(old), "dtype": "float32", "out_dtype": "bfloat16",
              "models": [{"model": str(post), "parameters": {"weight": weight}}, {"model": str(new), "parameters": {"weight": -0.5}}],
              "parameters": {"lambda": 0.5}}  # fmt: skip
    (made,) = import_mergekit(yaml.safe_dump(config), where="m.yml", output=str(tmp_path / "out"))
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
