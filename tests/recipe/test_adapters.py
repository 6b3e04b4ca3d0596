"""Adapters in recipes: a delta is a post minus its base or what an adapter holds, and mergekit's base with a LoRA is the second."""

import pytest
import yaml

from paramdelta_dist.errors import RecipeError
from paramdelta_dist.recipe.mergekit import import_mergekit
from paramdelta_dist.recipe.of_deltas import of_deltas
from paramdelta_dist.recipe.yaml_text import parse_recipe


def parsed(deltas, **more):
    return parse_recipe(yaml.safe_dump({"base": "/new", "deltas": deltas, "output": "/out", **more}), where="r.yaml")


def refused(deltas, *said, **more):
    with pytest.raises(RecipeError) as raised:
        parsed(deltas, **more)
    assert all(part in str(raised.value) for part in said), raised.value


def test_an_adapter_takes_the_place_of_a_post_and_its_base_is_the_recipes_where_none_is_given():
    recipe = parsed([{"adapter": "/a", "weight": 0.5}, {"post": "/p", "base": "/old"}, {"adapter": "/b", "base": "/old"}])
    assert recipe.models == ("/new", "/a", "/p", "/old", "/b")
    assert recipe.adapters == {"/a": "/new", "/b": "/old"}
    assert [delta.source for delta in recipe.deltas] == ["/a", "/p", "/b"]
    assert recipe.as_document()["deltas"] == [
        {"adapter": "/a", "weight": 0.5},
        {"post": "/p", "base": "/old", "weight": 1.0},
        {"adapter": "/b", "base": "/old", "weight": 1.0},
    ]
    assert of_deltas(recipe).adapters == recipe.adapters


def test_the_tokenizer_is_that_of_the_first_post_or_of_the_base_where_there_is_none():
    assert parsed([{"adapter": "/a"}, {"post": "/p"}]).tokenizer_url == "/p"
    assert parsed([{"adapter": "/a"}, {"post": "/p"}], tokenizer_from="post").tokenizer_url == "/p"
    assert parsed([{"adapter": "/a"}]).tokenizer_url == "/new"
    assert parsed([{"adapter": "/a"}], tokenizer_from=0).tokenizer_url == "/a"
    refused([{"adapter": "/a"}], "no delta has a post", tokenizer_from="post")


def test_a_delta_is_one_of_both():
    refused([{"weight": 1.0}], "'deltas.0.post' is missing")
    refused([{"post": "/p", "adapter": "/a"}], "line 3: deltas.0.adapter: excludes `post`")
    refused([{"adapter": 5}], "deltas.0.adapter", "should be a path or URL")


def test_a_folder_is_an_adapter_or_a_model_and_an_adapter_has_one_base():
    refused([{"adapter": "/a"}, {"post": "/a"}], "/a is an adapter in one place and a model in another")
    refused([{"adapter": "/a", "base": "/a"}], "/a is an adapter in one place and a model in another")
    refused([{"adapter": "/a"}, {"adapter": "/a", "base": "/old"}], "the adapter /a has two bases")
    assert parsed([{"adapter": "/a"}, {"adapter": "/a", "base": "/new"}]).adapters == {"/a": "/new"}
    refused([{"adapter": "/out/a"}], "in each other")


def test_a_sweep_of_an_adapters_weight_keeps_it_an_adapter():
    points = parsed([{"adapter": "/a"}], sweep={"deltas.0.weight": [0.5, 1.0]}).points
    assert [point.adapters for point in points.values()] == [{"/a": "/new"}] * 2


def imported(models, method="task_arithmetic", **more):
    config = {"merge_method": method, "base_model": "/base", "models": models, **more}
    (made,) = import_mergekit(yaml.safe_dump(config), where="m.yml", output="/out")
    return yaml.safe_load(made.text), "\n".join(made.notes)


@pytest.mark.parametrize(
    "model", ["/base+/lora", {"model": "/base", "lora": "/lora"}, {"model": {"path": "/base"}, "lora": {"path": "/lora"}}]
)
def test_mergekits_base_with_a_lora_is_a_delta_by_an_adapter(model):
    recipe, notes = imported([{"model": model, "parameters": {"weight": 0.5}}, {"model": "/post", "parameters": {"weight": 1}}])
    assert recipe["deltas"] == [{"adapter": "/lora", "weight": 0.5}, {"post": "/post", "weight": 1}]
    assert "here the LoRA's product is the delta" in notes
    assert recipe["tokenizer_from"] == "base"


def test_loras_of_the_hub_are_of_the_hub():
    config = {"merge_method": "ties", "base_model": "o/base", "models": [{"model": "o/base+o/lora", "parameters": {"weight": 1}}]}
    (made,) = import_mergekit(yaml.safe_dump(config), where="m.yml", output="/out")
    recipe = yaml.safe_load(made.text)
    assert (recipe["base"], recipe["deltas"][0]["adapter"]) == ("hf://o/base", "hf://o/lora")


@pytest.mark.parametrize(
    ("models", "more"),
    [
        ([{"model": "/post+/lora", "parameters": {"weight": 1}}], {}),
        ([{"model": "/base+/lora", "parameters": {"weight": 1}}, {"model": "/b", "parameters": {"weight": 1}}], {"method": "linear"}),
        ([{"model": "/base+/lora"}], {"method": "slerp", "parameters": {"t": 0.5}}),
        ([{"model": "/post", "parameters": {"weight": 1}}], {"base_model": "/base+/lora"}),
        ([{"model": "/post", "parameters": {"weight": 1}}], {"tokenizer_source": "/post+/lora"}),
    ],
)
def test_any_other_model_with_a_lora_is_refused_with_the_way_to_merge_it(models, more):
    with pytest.raises(RecipeError, match="is a model with a LoRA, and no delta of base_model alone; merge the LoRA into it first"):
        imported(models, **more)
