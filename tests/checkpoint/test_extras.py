"""Tensors that not all models have, and fields of configs that decide nothing: merged all the same, or refused with a way on that works."""

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.errors import HomologyError, UsageError
from tests import oracle
from tests.models import recipe, save_model

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_experts_per_tok": 8, "num_experts": 4}


def models(root, more=None, having=("new", "post", "old"), configs=None, own=None):
    """new, post and old, of which some have more tensors."""
    folders = []
    for seed, name in enumerate(("new", "post", "old")):
        torch.manual_seed(seed)
        tensors = {"model.layers.0.mlp.up_proj.weight": torch.randn(4, 4), "model.norm.weight": torch.randn(4)}
        tensors |= {key: value.clone() for key, value in (more or {}).items()} if name in having else {}
        tensors |= (own or {}).get(name, {})
        folders.append(save_model(root / name, tensors, config={**CONFIG, **(configs or {}).get(name, {})}))
    return folders


DERIVED = {
    "a.position_ids": torch.arange(8).reshape(1, 8),
    "h.0.attn.bias": torch.ones(1, 1, 4, 4),
    "h.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "bn.num_batches_tracked": torch.tensor(7),
    "swin.relative_position_index": torch.arange(4),
}


@pytest.mark.parametrize("having", [("new",), ("post", "old"), ("post",)])
def test_what_follows_from_the_config_is_the_bases_or_left_out_whoever_has_it(tmp_path, having):
    folders = models(tmp_path, DERIVED, having)
    result = api.merge(recipe(*folders, tmp_path / "out"))
    got = oracle.load(tmp_path / "out")
    assert {name for name in DERIVED if name in got} == (set(DERIVED) if "new" in having else set())
    assert any("`exclude`" in note for note in result.report["notes"])


def test_counters_that_differ_are_the_bases(tmp_path):
    own = {name: {"bn.num_batches_tracked": torch.tensor(count)} for name, count in (("new", 1), ("post", 2), ("old", 3))}
    api.merge(recipe(*models(tmp_path, own=own), tmp_path / "out"))
    assert oracle.load(tmp_path / "out")["bn.num_batches_tracked"] == 1


def test_a_bias_of_attention_is_merged_like_any_other(tmp_path):
    folders = models(
        tmp_path, own={name: {"h.0.attn.bias": torch.full((4,), value)} for name, value in (("new", 1.0), ("post", 3.0), ("old", 2.0))}
    )
    api.merge(recipe(*folders, tmp_path / "out"))
    assert torch.equal(oracle.load(tmp_path / "out")["h.0.attn.bias"], torch.full((4,), 2.0))


OTHERS = {"more.fc.weight": torch.ones(4, 8), "other.table": torch.arange(4), "z.wave": torch.ones(2, dtype=torch.complex64)}


@pytest.mark.parametrize("having", [("new",), ("post", "old"), ("old",), ("new", "post")])
@pytest.mark.parametrize("way", [{"exclude": ["more.*", "other.*", "z.*"]}, {"missing": "copy"}])
def test_both_ways_that_a_refusal_of_a_missing_tensor_names_end_with_a_merge(tmp_path, having, way):
    folders = models(tmp_path, OTHERS, having)
    with pytest.raises(HomologyError, match=r"`exclude`.*`missing: copy`"):
        api.merge(recipe(*folders, tmp_path / "out"))
    result = api.merge(recipe(*folders, tmp_path / "out", **way))
    got = oracle.load(tmp_path / "out")
    assert all(torch.equal(got[name], value) for name, value in OTHERS.items() if "new" in having)
    assert len(got) == (5 if "new" in having else 2)
    if "missing" in way:
        assert any("3 tensors" in note and "`missing: copy`" in note for note in result.report["notes"])


def test_integers_that_differ_are_refused_with_exclude_as_the_way_out(tmp_path):
    folders = models(tmp_path, own={name: {"some.table": torch.tensor([value])} for name, value in (("new", 1), ("post", 2), ("old", 1))})
    with pytest.raises(HomologyError, match="exclude"):
        api.merge(recipe(*folders, tmp_path / "out"))
    api.merge(recipe(*folders, tmp_path / "kept", exclude="some.*"))
    assert oracle.load(tmp_path / "kept")["some.table"].tolist() == [1]


def test_models_that_share_no_tensor_are_refused_even_where_missing_ones_are_copied(tmp_path):
    new, _, _ = models(tmp_path)
    strange = save_model(tmp_path / "strange", {"a": torch.ones(2)}, config=CONFIG)
    with pytest.raises(HomologyError, match="no tensor of it has the name of one in the base"):
        api.plan(recipe(new, strange, new, tmp_path / "out", missing="copy"))


def test_a_rule_may_match_what_is_not_merged_and_not_what_is_nowhere(tmp_path):
    folders = models(tmp_path, DERIVED, ("post", "old"))
    rules = [{"match": "*position_ids", "value": 0.5}, {"value": 1}]
    api.plan(recipe(*folders, tmp_path / "out", weight=rules))
    with pytest.raises(UsageError, match="matches no tensor of any model"):
        api.plan(recipe(*folders, tmp_path / "out", exclude="nowhere"))


def test_what_is_missing_and_accepted_is_part_of_the_fingerprint_where_it_is_set(tmp_path):
    folders = models(tmp_path)
    plain, copying, accepting = (
        api.plan(recipe(*folders, tmp_path / "out", **more))[0].fingerprint
        for more in ({}, {"missing": "copy"}, {"accept": ["num_experts"]})
    )
    assert len({plain, copying, accepting}) == 3
    assert plain == api.plan(recipe(*folders, tmp_path / "out", missing="error"))[0].fingerprint


@pytest.mark.parametrize(
    "config",
    [
        {"num_experts_per_tok": 16},
        {"architectures": ["FSDPLlamaForCausalLM"]},
        {"architectures": ["FSDP2LlamaForCausalLM"]},
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "llama"}},
    ],
)
def test_fields_that_decide_no_tensor_are_noted(tmp_path, config):
    report = api.check(recipe(*models(tmp_path, configs={"new": config}), tmp_path / "out"))
    assert not report.mismatches
    assert any(next(iter(config)) in note for note in report.notes)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("qwen2_5_vl", "qwen2"), ("qwen3_vl_moe", "qwen3_moe"), ("gemma3", "gemma3_text"), ("glm4v", "glm4"), ("qwen2_audio", "qwen2")],
)
def test_a_language_model_fits_what_wraps_it(tmp_path, ours, theirs):
    configs = {"new": {"model_type": ours, "architectures": ["A"]}, "post": {"model_type": theirs}, "old": {"model_type": theirs}}
    assert not api.check(recipe(*models(tmp_path, configs=configs), tmp_path / "out")).mismatches


@pytest.mark.parametrize("field", ["num_experts", "model_type"])
def test_accept_is_named_lets_a_field_differ_and_stands_in_the_card(tmp_path, field):
    folders = models(tmp_path, configs={"post": {field: "mistral"}})
    with pytest.raises(HomologyError, match=rf"`accept: \[{field}\]`"):
        api.merge(recipe(*folders, tmp_path / "out"))
    api.merge(recipe(*folders, tmp_path / "out", accept=[field]))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"accept:\n- {field}" in card
    assert "as `accept` allows" in card
