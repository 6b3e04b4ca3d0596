"""Merges of models that lie in two layouts: experts apart and together, plain and quantised; the base's is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramdelta_dist import api
from paramdelta_dist.recipe.model import Recipe
from tests import oracle
from tests.quantised import SCHEMES, mxfp4, numbers, save

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "torch_dtype": "bfloat16",
    "num_experts": 4,
    "num_hidden_layers": 2,
}
EXPERTS, INNER, HIDDEN = 4, 64, 96


def apart(seed, base=None):
    """A model with experts apart, or one that grew from it."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (32, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(2):
        for expert in range(EXPERTS):
            name = f"model.layers.{layer}.mlp.experts.{expert}"
            shapes |= {f"{name}.gate_proj.weight": (INNER, HIDDEN), f"{name}.up_proj.weight": (INNER, HIDDEN)}
            shapes |= {f"{name}.down_proj.weight": (HIDDEN, INNER)}
    drawn = {name: torch.randn(shape, generator=random) * 0.05 for name, shape in shapes.items()}
    return {name: (tensor if base is None else base[name].float() + 0.2 * tensor).bfloat16() for name, tensor in drawn.items()}


def together(tensors):
    """The same with the experts of a layer in one tensor."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts"
        held = [[tensors[f"{name}.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")] for e in range(EXPERTS)]
        found[f"{name}.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in held])
        found[f"{name}.down_proj"] = torch.stack([down for _, _, down in held])
    return found


OLD = apart(1)
POST, NEW = apart(2, OLD), apart(3, OLD)
AS = {"apart": lambda tensors: tensors, "together": together}


def merged(tmp_path, **more):
    given = {"post": str(tmp_path / "post"), "base": str(tmp_path / "old"), "weight": 0.7}
    recipe = Recipe(base=str(tmp_path / "new"), deltas=(given,), output=str(tmp_path / "out"), **more)
    _, report = api.plan(recipe)
    api.merge(recipe)
    return report


@pytest.mark.parametrize("base", AS)
@pytest.mark.parametrize("post", AS)
@pytest.mark.parametrize("old", AS)
@pytest.mark.parametrize("method", ["paramdelta", "ties"])
def test_the_numbers_are_the_same_in_any_layout_and_the_bases_is_written(tmp_path, base, post, old, method):
    for name, layout, tensors in (("new", base, NEW), ("post", post, POST), ("old", old, OLD)):
        save(tmp_path / name, AS[layout](tensors), config=CONFIG)
    report = merged(tmp_path, **({"method": method, "parameters": {"density": 0.5}} if method == "ties" else {}))
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made.keys() == AS[base](NEW).keys()
    if method == "paramdelta":
        oracle.assert_same(made, AS[base](oracle.merge(NEW, [(POST, OLD, 0.7)])))
    if base != post:
        assert any("experts" in note for note in report.notes), report.notes


@pytest.mark.parametrize("scheme", ["fp8 in blocks", "fp8 in blocks, E8M0", "FBGEMM", "int4"])
@pytest.mark.parametrize("post", AS)
def test_experts_that_are_quantised_apart_take_deltas_of_plain_ones(tmp_path, scheme, post):
    save(tmp_path / "new", NEW, scheme, config=CONFIG)
    save(tmp_path / "old", AS[post](OLD), config=CONFIG)
    save(tmp_path / "post", AS[post](POST), config=CONFIG)
    merged(tmp_path)
    base, made = numbers(tmp_path / "new"), numbers(tmp_path / "out")
    assert oracle.load(tmp_path / "out").keys() == oracle.load(tmp_path / "new").keys()
    for name, tensor in made.items():
        exact = base[name] + 0.7 * (POST[name].double() - OLD[name].double())
        assert (tensor - exact).abs().max() <= exact.abs().max() / (7 if scheme == "int4" else 16), name


def test_quantised_experts_together_give_every_byte_of_posts_whose_experts_lie_apart(tmp_path):
    """Blocks of scales do not cross experts, so that codes and scales pass through from one layout to the other."""
    made = SCHEMES["fp8 in blocks"][0]
    for name, tensors in (("new", OLD), ("old", OLD), ("post", POST)):
        save(tmp_path / name, tensors, "fp8 in blocks", config=CONFIG)
    fused = {name: t for name, t in together(OLD).items() if "experts" not in name}
    for name, tensor in together(OLD).items():
        if "experts" in name:
            fused |= made(name, tensor)
    save_file(fused, tmp_path / "new" / "model.safetensors")
    given = {"post": str(tmp_path / "post"), "base": str(tmp_path / "old"), "weight": 1.0}
    api.merge(Recipe(base=str(tmp_path / "new"), deltas=(given,), output=str(tmp_path / "out")))
    expected = {name: t for name, t in together(POST).items() if "experts" not in name}
    for name, tensor in together(POST).items():
        if "experts" in name:
            expected |= made(name, tensor)
    oracle.assert_same(load_file(tmp_path / "out" / "model.safetensors"), expected)


OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4, "num_hidden_layers": 1}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}


def oss(seed, base=None):
    """Experts of gpt-oss as plain numbers: [experts, in, out], `down_proj` a square."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"gate_up_proj": (4, 64, 128), "down_proj": (4, 64, 64)}
    drawn = {f"model.layers.0.mlp.experts.{name}": torch.randn(shape, generator=random) * 0.05 for name, shape in shapes.items()}
    drawn["model.norm.weight"] = torch.ones(64)
    return {name: (tensor if base is None else base[name].float() + 0.2 * tensor).bfloat16() for name, tensor in drawn.items()}


def save_oss(folder, tensors, *, quantised):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OSS | {"torch_dtype": "bfloat16"} | (MXFP4 if quantised else {})))
    held = {}
    for name, tensor in tensors.items():
        experts = quantised and "experts" in name
        held |= mxfp4(name, tensor.transpose(1, 2).contiguous(), "gpt-oss") if experts else {name: tensor}
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "model.safetensors")


def plain_oss(folder):
    return {name: tensor.transpose(1, 2) if tensor.ndim == 3 else tensor for name, tensor in numbers(folder).items()}


@pytest.mark.parametrize("post", [False, True], ids=["a plain post", "a quantised post"])
def test_experts_of_gpt_oss_are_written_as_plain_numbers_the_other_way_round(tmp_path, post):
    """A square matrix that lies the wrong way would load, and be a wrong model."""
    old, new, tuned = oss(1), oss(3, oss(1)), oss(2, oss(1))
    save_oss(tmp_path / "new", new, quantised=True)
    save_oss(tmp_path / "old", old, quantised=post)
    save_oss(tmp_path / "post", tuned, quantised=post)
    merged(tmp_path, quantization="none")
    read = plain_oss if post else load_plain
    expected = oracle.merge(plain_oss(tmp_path / "new"), [(read(tmp_path / "post"), read(tmp_path / "old"), 0.7)], torch.bfloat16)
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in made.items()} == {name: tensor.shape for name, tensor in new.items()}
    assert all(made[name].equal(expected[name]) for name in expected)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def load_plain(folder):
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("base", [False, True], ids=["a plain base", "a quantised base"])
def test_experts_of_gpt_oss_take_deltas_that_lie_the_other_way_round(tmp_path, base):
    old, new, tuned = oss(1), oss(3, oss(1)), oss(2, oss(1))
    save_oss(tmp_path / "new", new, quantised=base)
    save_oss(tmp_path / "old", old, quantised=not base)
    save_oss(tmp_path / "post", tuned, quantised=not base)
    merged(tmp_path)
    ours, theirs = (plain_oss, load_plain) if base else (load_plain, plain_oss)
    exact = oracle.merge(ours(tmp_path / "new"), [(theirs(tmp_path / "post"), theirs(tmp_path / "old"), 0.7)], torch.float64)
    made = ours(tmp_path / "out")
    for name, tensor in exact.items():
        near = (made[name] - tensor).abs().max() <= tensor.abs().max() / 3 if base else made[name].equal(tensor.bfloat16().double())
        assert near, name
