"""Merges of adapters, from the folders that peft saved to a finished output: what peft merges, rounded once."""

import pytest
import torch
from safetensors.torch import load_file

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.recipe.model import Recipe
from tests.adapters import EXPERTS, FUSED, apart, gpt2, gpt_oss, llama, qwen_moe, trained, without

OSS = {"r": 2, "target_modules": [], "target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
CASES = {
    "ranks by module": (llama, {}, {"r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 3}, "use_rslora": True}),
    "embeddings": (llama, {}, {"r": 4, "target_modules": ["embed_tokens", "v_proj"]}),
    "a head and biases": (llama, {}, {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "bias": "all"}),
    "transposed weights": (gpt2, {}, {"r": 4, "target_modules": ["c_attn", "c_proj"]}),
    "experts apart": (qwen_moe, {}, EXPERTS),
    "experts together": (qwen_moe, FUSED, EXPERTS),
    "experts transposed": (gpt_oss, {}, OSS),
}


def merged(base, deltas, output, **more):
    api.merge(Recipe.model_validate({"base": str(base), "deltas": deltas, "output": str(output), **more}))
    return {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_on_its_own_base_is_what_peft_merges(tmp_path, case):
    make, save, config = CASES[case]
    base, adapter, expected = trained(tmp_path, make(), save=save, **config)
    found, theirs = merged(base, [{"adapter": str(adapter)}], tmp_path / "out"), load_file(expected / "model.safetensors")
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_on_another_base_it_adds_the_same_and_half_of_it_half(tmp_path):
    base, adapter, expected = trained(tmp_path, llama(), r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    torch.manual_seed(11)
    llama().save_pretrained(tmp_path / "new")
    delta = {"adapter": str(adapter), "base": str(base), "weight": 0.5}
    found = merged(tmp_path / "new", [delta], tmp_path / "out")
    old, tuned, new = (load_file(folder / "model.safetensors") for folder in (base, expected, tmp_path / "new"))
    for name, tensor in new.items():
        wanted = tensor.double() + 0.5 * (tuned[name].double() - old[name].double())
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-6, msg=name)


def test_in_bfloat16_the_sum_is_rounded_once(tmp_path):
    base, adapter, expected = trained(tmp_path, llama(), r=4, target_modules=["q_proj", "down_proj"])
    found = merged(base, [{"adapter": str(adapter)}], tmp_path / "out", dtype="bfloat16")
    for name, tensor in load_file(expected / "model.safetensors").items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=2**-8, atol=1e-6, msg=name)
        assert found[name].dtype == torch.bfloat16


@pytest.mark.parametrize("tile", [512, 5_000])
def test_the_bytes_are_the_same_whatever_the_tiles_and_workers(tmp_path, tile):
    base, adapter, _ = trained(tmp_path, qwen_moe(), **EXPERTS)
    one = merged(base, [{"adapter": str(adapter)}], tmp_path / "one")
    recipe = Recipe.model_validate(
        {"base": str(base), "deltas": [{"adapter": str(adapter)}], "output": str(tmp_path / "other"), "shard_size": 20_000}
    )
    merge_with(recipe, Resources(workers=3, tile_size=tile))
    other = {name: tensor for file in (tmp_path / "other").glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_factors_of_some_matrices_of_experts_add_the_same_whether_these_lie_apart_or_together(tmp_path):
    model = qwen_moe()
    model.save_pretrained(tmp_path / "split")
    model.save_pretrained(tmp_path / "fused", **FUSED)
    adapter = apart(tmp_path / "adapter", only=lambda path: "gate_proj" not in path)
    without(adapter, target_modules=["up_proj", "down_proj"])
    split, fused = (merged(tmp_path / kind, [{"adapter": str(adapter)}], tmp_path / f"out {kind}") for kind in ("split", "fused"))
    before = load_file(tmp_path / "split/model.safetensors")
    for layer in range(2):
        experts = f"model.layers.{layer}.mlp.experts"
        for expert in range(4):
            gate, up, down = (split[f"{experts}.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            assert torch.equal(fused[f"{experts}.gate_up_proj"][expert], torch.cat([gate, up]))
            assert torch.equal(fused[f"{experts}.down_proj"][expert], down)
            assert torch.equal(gate, before[f"{experts}.{expert}.gate_proj.weight"])
            assert not torch.equal(up, before[f"{experts}.{expert}.up_proj.weight"])


def test_figures_of_an_adapter_are_those_of_its_products(tmp_path):
    base, adapter, expected = trained(tmp_path, llama(), r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    recipe = Recipe.model_validate({"base": str(base), "deltas": [{"adapter": str(adapter)}], "output": str(tmp_path / "out")})
    (found,) = api.analyze(recipe, str(tmp_path / "figures"))["deltas"]
    old, tuned = (load_file(folder / "model.safetensors") for folder in (base, expected))
    exact = torch.cat([(tuned[name].double() - old[name].double()).flatten() for name in old])
    assert found["norm"] == pytest.approx(exact.norm().item(), rel=1e-5)
    assert found["max_abs"] == pytest.approx(exact.abs().max().item(), rel=1e-4)
    assert api.merge(recipe, report_page=True).state == "merged"


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs"])
def test_other_methods_take_adapters_as_deltas(tmp_path, method):
    base, adapter, expected = trained(tmp_path, llama(), r=4, target_modules=["q_proj", "down_proj"])
    model = {"post": str(expected), "base": str(base)}
    given = {"parameters": {"density": 0.5}} | ({"method": method})
    one = merged(base, [{"adapter": str(adapter)}], tmp_path / "one", **given)
    other = merged(base, [model], tmp_path / "other", **given)
    for name, tensor in other.items():
        near = torch.isclose(one[name], tensor, rtol=1e-5, atol=1e-6)
        assert near.float().mean() > 0.995, name  # the smallest that are kept are told apart by the last bits
