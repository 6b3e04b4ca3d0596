"""Values by rule in whole merges: each tensor gets what the plan says, to the float64 oracle; what has no effect is refused."""

import json

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.cli import tables
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import RecipeError, UsageError
from paramdelta_dist.planning.spans import find_spans
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests import oracle
from tests.models import ARCHITECTURES, make_models, recipe

RULES = [
    {"match": "*.layers.1.mlp.up_proj.*", "value": -0.5},
    {"component": ["attention"], "layers": "0-1", "value": [0.0, 1.0]},
    {"component": "mlp", "value": [1.0, 0.5]},
    {"component": "norm", "value": 0.0},
    {"value": 0.25},
]


def weight_of(name):
    """What RULES mean, written down by hand for three layers."""
    layer = int(name.split(".")[2]) if ".layers." in name else None
    if "layers.1.mlp.up_proj" in name:
        return -0.5
    if "self_attn" in name and layer is not None and layer < 2:
        return float(layer)
    if ".mlp." in name:
        return 1.0 - 0.25 * layer
    return 0.0 if "norm" in name else 0.25


def expected_with(models, weight):
    new, post, old = (oracle.load(folder) for folder in models)
    return {name: oracle.merge({name: tensor}, [(post, old, weight(name))])[name] for name, tensor in new.items()}


@pytest.fixture
def models(tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    return new, post, old


@pytest.mark.parametrize("tile", [3_000, 4 << 20])
def test_each_tensor_is_merged_with_the_weight_of_the_first_rule_that_matches(tmp_path, models, tile):
    merge_with(recipe(*models, tmp_path / "out", weight=RULES, shard_size="100KB"), Resources(workers=2, tile_size=tile))
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), expected_with(models, weight_of))


def test_rules_may_stand_with_a_delta_and_for_all_deltas(tmp_path, models):
    new, post, old = models
    deltas = ({"post": str(post), "base": str(old), "weight": [{"component": "mlp", "value": 0.5}]}, {"post": str(post), "base": str(old)})
    api.merge(recipe(new, post, old, tmp_path / "out", deltas=deltas, parameters={"weight": [{"component": "norm", "value": 0.75}]}))
    tensors = [oracle.load(folder) for folder in models]
    general = lambda name: 0.75 if "norm" in name else 1.0  # noqa: E731
    expected = {
        name: oracle.merge(
            {name: t}, [(tensors[1], tensors[2], 0.5 if ".mlp." in name else general(name)), (tensors[1], tensors[2], general(name))]
        )[name]
        for name, t in tensors[0].items()
    }
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), expected, share=1e-3)


def test_a_gradient_without_rules_spans_all_layers(tmp_path, models):
    api.merge(recipe(*models, tmp_path / "out", weight=[0.0, 1.0]))
    ramp = lambda name: float(name.split(".")[2]) / 2 if ".layers." in name else 0.0  # noqa: E731
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), expected_with(models, ramp))


def test_one_value_for_all_is_the_same_merge_however_it_is_written(tmp_path, models):
    plain = api.plan(recipe(*models, tmp_path / "out", weight=0.5))[0]
    ruled = api.plan(recipe(*models, tmp_path / "out", weight=[{"component": "mlp", "value": 0.5}, {"value": 0.5}]))[0]
    assert plain.fingerprint == ruled.fingerprint
    assert [len(list(find_spans(shard))) for shard in plain.shards] == [len(list(find_spans(shard))) for shard in ruled.shards]


def test_neighbours_with_different_values_share_no_run(tmp_path, models):
    made, _ = api.plan(recipe(*models, tmp_path / "out", weight=RULES))
    for shard in made.shards:
        for run in find_spans(shard):
            assert len({weight_of(part.tensor.name) for part in run.parts}) == 1
    another, _ = api.plan(recipe(*models, tmp_path / "out", weight=[{"component": "mlp", "value": 0.5}, {"value": 0.25}]))
    assert made.fingerprint != another.fingerprint


def test_excluded_tensors_are_the_bases_and_only_the_base_is_read_for_them(tmp_path, models):
    options = {"exclude": ["*embed_tokens*", "lm_head.weight"], "include": "*weight", "weight": 0.5}
    made, _ = api.plan(recipe(*models, tmp_path / "out", **options))
    api.merge(recipe(*models, tmp_path / "out", **options))
    left_out = lambda name: "embed_tokens" in name or name == "lm_head.weight"  # noqa: E731
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), expected_with(models, lambda name: 0.0 if left_out(name) else 0.5))
    sizes = {tensor.name: tensor.nbytes for shard in made.shards for tensor in shard.tensors}
    assert made.bytes_to_read == sum(size * (1 if left_out(name) else 3) for name, size in sizes.items())
    assert made.copied == 2
    assert made.fingerprint != api.plan(recipe(*models, tmp_path / "out", weight=0.5))[0].fingerprint


def test_an_excluded_tensor_is_written_in_the_dtype_of_the_recipe(tmp_path, models):
    api.merge(recipe(*models, tmp_path / "out", exclude="*embed_tokens*", dtype="float32"))
    got, base = oracle.load(tmp_path / "out"), oracle.load(models[0])
    assert torch.equal(got["model.embed_tokens.weight"], base["model.embed_tokens.weight"].float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weight": [{"match": "*.mpl.*", "value": 2}, {"value": 1}]},
            r"deltas.0.weight: \{match: \*.mpl.\*, value: 2\} matches no tensor",
        ),
        ({"weight": [{"layers": "7-", "value": 2}, {"value": 1}]}, "matches no tensor"),
        ({"exclude": "lm_haed*"}, "exclude: 'lm_haed\\*' matches no tensor"),
        ({"include": ["*", "nothing"]}, "include: 'nothing' matches no tensor"),
    ],
)
def test_a_rule_without_effect_is_refused_by_name(tmp_path, models, options, message):
    with pytest.raises(UsageError, match=message) as raised:
        api.plan(recipe(*models, tmp_path / "out", **options))
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("weight: [{component: mlps, value: 1}]", "line 5: deltas.0.weight: rule 1: component: 'mlps' is none"),
        ("weight: [{match: '*', value: heavy}]", "line 5: deltas.0.weight: rule 1: should be a finite number"),
        ("weight: []", "line 5: deltas.0.weight: "),
        ("weight: [1]", "line 5: deltas.0.weight: should be a finite number; a list is a gradient, of two or more numbers"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_line(line, message):
    text = f"base: /new\noutput: /out\ndeltas:\n  - post: /post\n    {line}\n"
    with pytest.raises(RecipeError) as raised:
        parse_recipe(text, where="r.yaml")
    assert message in str(raised.value)


def test_the_plan_lists_what_each_tensor_gets(tmp_path, models, capsys):
    made, report = api.plan(recipe(*models, tmp_path / "out", weight=RULES, exclude="lm_head.weight"))
    document = {**api.plan_document(made, api.plan_workers(made), report), "seconds_at_bandwidth": 1.0, "bandwidth": 10**9}
    document["tensor_list"] = api.tensor_documents(made)
    assert json.loads(json.dumps(document)) == document
    listed = {tensor["name"]: tensor for tensor in document["tensor_list"]}
    assert listed["model.layers.1.self_attn.q_proj.weight"]["terms"] == [{"model": str(models[1]), "weight": 1.0}]
    assert listed["model.layers.1.self_attn.q_proj.weight"]["component"] == "attention"
    assert listed["model.norm.weight"]["terms"] == []
    assert not listed["lm_head.weight"]["merged"]
    tables.plan_tables(document)
    out = capsys.readouterr().out
    assert "model.layers.2.mlp.down_proj.weight  BF16 64 × 160, mlp  post: weight 0.5" in out
    assert "lm_head.weight  BF16 503 × 64, lm_head  copied from the base" in out


def test_a_finished_merge_with_rules_is_verified_and_documented(tmp_path, models):
    api.merge(recipe(*models, tmp_path / "out", weight=RULES, exclude="lm_head.weight"))
    assert api.verify(str(tmp_path / "out"), deep=True, recompute=1.0)["ok"]
    assert "component: mlp" in (tmp_path / "out" / "README.md").read_text()
