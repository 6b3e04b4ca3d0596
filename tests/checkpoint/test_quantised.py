"""Codes and scales are told by their names, whatever dtype they are kept in; and plain models are not taken for quantised ones."""

import json

import pytest
import torch
from safetensors.torch import load_file

from paramdelta_dist import api
from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.quantised import find_quantised
from paramdelta_dist.errors import HomologyError
from paramdelta_dist.storage import StorageConfig
from tests.models import ARCHITECTURES, make_models, recipe, save_model

U8, I8, I32, F8 = torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn


def ints(*shape, dtype=U8):
    return torch.arange(torch.Size(shape).numel()).remainder(100).reshape(shape).to(dtype)


ONE = torch.ones(())
SCHEMES = {
    "MXFP4": {"m.experts.down_proj_blocks": ints(2, 8, 1, 16), "m.experts.down_proj_scales": ints(2, 8, 1)},
    "MXFP4, original names": {"block.0.mlp.mlp1_weight.blocks": ints(2, 8, 1, 16), "block.0.mlp.mlp1_weight.scales": ints(2, 8, 1)},
    "MXFP4 packed": {"m.w1.weight_packed": ints(8, 4), "m.w1.weight_scale": ints(8, 1)},
    "NVFP4": {
        "m.a.weight": ints(8, 4), "m.a.weight_scale": ints(8, 1).to(F8), "m.a.weight_scale_2": ONE, "m.a.input_scale": ONE.clone()
    },
    "int4 packed": {
        "m.a.weight_packed": ints(8, 1, dtype=I32), "m.a.weight_scale": torch.ones(8, 1), "m.a.weight_shape": ints(2, dtype=torch.int64)
    },
    "packed, of no known scheme": {"m.a_packed": ints(8, 4), "m.a_scale": torch.ones(8)},
    "fp4 experts as I8": {"m.w1.weight": ints(8, 4, dtype=I8), "m.w1.scale": torch.ones(8, 1)},
    "bitsandbytes 4 bit": {"m.a.weight": ints(32, 1), "m.a.weight.absmax": torch.rand(1), "m.a.weight.quant_map": torch.rand(16)},
    "bitsandbytes state": {"m.a.weight": ints(32, 1), "m.a.weight.quant_state.bitsandbytes__nf4": ints(40)},
    "bitsandbytes 8 bit": {"m.a.weight": ints(8, 8, dtype=I8), "m.a.SCB": torch.rand(8)},
    "GPTQ": {
        "m.a.qweight": ints(4, 8, dtype=I32), "m.a.scales": torch.rand(1, 8), "m.a.qzeros": ints(1, 1, dtype=I32),
        "m.a.g_idx": ints(8, dtype=I32),
    },
    "zeros alone": {"m.a.qzeros": ints(1, 1, dtype=I32)},
    "blocks alone": {"m.down_proj_blocks": ints(2, 8, 1, 16)},
    "FP8 in blocks": {"m.a.weight": torch.zeros(4, 4).to(F8), "m.a.weight_scale_inv": torch.ones(1, 1)},
    "FP8, fused": {"m.gate_up_proj": torch.zeros(2, 4, 4).to(F8), "m.gate_up_proj_scale_inv": torch.ones(2, 1, 1)},
    "FP8 without a scale": {"m.a.weight": torch.zeros(4, 4).to(F8)},
    "a scale beside a wide weight": {"m.a.weight": torch.zeros(4, 4), "m.a.weight_scale_inv": torch.ones(1, 1)},
    "int8 with zero points": {
        "m.a.weight": ints(8, 8, dtype=I8), "m.a.weight_scale": torch.ones(8, 1), "m.a.weight_zero_point": ints(8, 1, dtype=I8)
    },
    "HQQ": {"m.a.W_q": ints(8, 4), "m.a.scale": torch.ones(8), "m.a.zero": torch.ones(8)},
    "quanto": {"m.a.weight._data": ints(8, 4, dtype=I8), "m.a.weight._scale": torch.ones(8, 1)},
    "AWQ": {"m.a.qweight": ints(16, 1, dtype=I32), "m.a.scales": torch.rand(2, 8), "m.a.qzeros": ints(2, 1, dtype=I32)},
    "GPTQ without an order": {"m.a.qweight": ints(2, 8, dtype=I32), "m.a.scales": torch.rand(1, 8), "m.a.qzeros": ints(1, 1, dtype=I32)},
    "NVFP4, compressed-tensors": {
        "m.a.weight_packed": ints(8, 8), "m.a.weight_scale": ints(8, 1).to(F8), "m.a.weight_global_scale": torch.ones(1)
    },
    "MXFP8": {"m.a.weight": torch.zeros(4, 32).to(F8), "m.a.weight_scale": ints(4, 1)},
    "FP8 of a tensor": {"m.a.weight": torch.zeros(4, 4).to(F8), "m.a.weight_scale": torch.ones(()), "m.a.input_scale": torch.ones(1)},
    "FP8 of ModelOpt and no input scale": {"m.a.weight": torch.zeros(4, 4).to(F8), "m.a.weight_scale": torch.ones(4, 1)},
    "torchao": {"m.a._weight_qdata": ints(8, 4, dtype=I8), "m.a._weight_scale": torch.ones(8, 1)},
    "torchao, int4": {"m.a._weight_qdata": ints(8, 4, dtype=I32), "m.a._weight_scale": torch.ones(8, 1), "m.a._weight_zero_point": ONE},
    "torchao, fp8": {"m.a._weight_qdata": torch.zeros(8, 4).to(F8), "m.a._weight_scale": torch.ones(8, 1)},
    "MLX": {"m.a.weight": ints(8, 1, dtype=torch.uint32), "m.a.scales": torch.ones(8, 1), "m.a.biases": torch.ones(8, 1)},
    "EXL3": {"m.a.trellis": ints(1, 1, 48, dtype=torch.int16), "m.a.suh": torch.ones(16), "m.a.svh": torch.ones(16)},
    "EXL2": {
        "m.a.q_weight": ints(4, 8, dtype=I32), "m.a.q_scale": ints(1, 1, dtype=I32), "m.a.q_scale_max": torch.ones(1),
        "m.a.q_groups": ints(2, dtype=torch.int16), "m.a.q_invperm": ints(8, dtype=I32)
    },
    "BitNet": {"m.a.weight": ints(8, 4), "m.a.weight_scale": torch.ones(1)},
    "EETQ": {"m.a.weight": ints(8, 8, dtype=I8), "m.a.weight_scales": torch.ones(8)},
}  # fmt: skip
NAMED = {
    "MXFP4": "MXFP4",
    "MXFP4, original names": "MXFP4",
    "MXFP4 packed": "MXFP4 of compressed-tensors",
    "NVFP4": "NVFP4 of ModelOpt",
    "NVFP4, compressed-tensors": "NVFP4 of compressed-tensors",
    "int4 packed": "integers packed by compressed-tensors",
    "bitsandbytes 4 bit": "bitsandbytes, 4 bits",
    "bitsandbytes state": "bitsandbytes, 4 bits",
    "bitsandbytes 8 bit": "bitsandbytes, 8 bits",
    "GPTQ": "GPTQ",
    "GPTQ without an order": "GPTQ",
    "AWQ": "AWQ",
    "blocks alone": "MXFP4",
    "FP8 in blocks": "FP8 in blocks",
    "FP8, fused": "FP8 in blocks",
    "FP8 without a scale": "FP8",
    "FP8 of a tensor": "FP8",
    "MXFP8": "MXFP8",
    "HQQ": "HQQ",
    "quanto": "quanto",
    "torchao": "torchao",
    "torchao, int4": "torchao",
    "torchao, fp8": "torchao",
    "MLX": "MLX",
    "EXL3": "EXL3",
    "EXL2": "EXL2",
    "BitNet": "integers with scales",
}
REFUSED = {
    "AWQ": (["AWQ moved factors", "quantise the merged model again"], "AWQ", {}),
    "GPTQ": (["GPTQModel", "quantise the merged model again"], "GPTQ", {}),
    "bitsandbytes 4 bit": (["model.dequantize()"], "bitsandbytes, 4 bits", {}),
    "bitsandbytes 8 bit": (["model.dequantize()"], "bitsandbytes, 8 bits", {}),
    "MLX": (["--dequantize"], "MLX", {}),
    "HQQ": (["model.dequantize()"], "HQQ", {}),
    "int8 with zero points": (["CompressedTensorsConfig", "SmoothQuant"], "INT8, with zero points", {}),
    "zero points": (
        ["CompressedTensorsConfig(dequantize=True)"], "integers packed by compressed-tensors, with zero points",
        SCHEMES["int4 packed"] | {"m.a.weight_zero_point": ints(1, 1, dtype=I32)},
    ),
    "act-order": (
        ["do not lie side by side"], "integers packed by compressed-tensors, in the order of activations",
        SCHEMES["int4 packed"] | {"m.a.weight_g_idx": ints(8, dtype=I32)},
    ),
    "pre_quant_scale": (
        ["pre_quant_scale"], "NVFP4 of ModelOpt, with pre_quant_scale", SCHEMES["NVFP4"] | {"m.a.pre_quant_scale": ONE.clone()},
    ),
    "swizzled": (
        ["in the order of rows"], "NVFP4 of ModelOpt, with swizzled scales",
        SCHEMES["NVFP4"] | {"m.a.weight_scale": ints(128, 4).to(F8)},
    ),
    "sparse": (
        ["CompressedTensorsConfig"], "2:4 sparse, of compressed-tensors",
        {"m.a.compressed": torch.zeros(4, 2).to(F8), "m.a.bitmask": ints(4, 1), "m.a.weight_scale": ONE},
    ),
    "Marlin": (
        ["CompressedTensorsConfig"], "Marlin of compressed-tensors, 2:4 sparse",
        {"m.a.weight_packed": ints(4, 2, dtype=I32), "m.a.meta": ints(4, 2, dtype=torch.int16), "m.a.scale_packed": torch.ones(1, 4)},
    ),
}  # fmt: skip
"""Parts of a message about the way out, the name of the scheme, and the tensors where SCHEMES has none."""
ROTATED = {"quantization_config": {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}}}
PLAIN = {"m.norm.weight": torch.ones(8), "m.q_proj.weight": torch.ones(8, 8)}


def three(tmp_path, more, config=None):
    config = {"model_type": "toy", "architectures": ["Toy"]} | (config or {})
    return [save_model(tmp_path / name, PLAIN | more, config=config) for name in ("new", "post", "old")]


DECODED = {
    "MXFP4", "MXFP4 packed", "NVFP4", "NVFP4, compressed-tensors", "FP8 in blocks", "FP8, fused", "MXFP8", "FP8 of a tensor",
    "FP8 of ModelOpt and no input scale",
}  # fmt: skip
CLAIMS = pytest.mark.parametrize("claim", [{}, {"quantization_config": {"quant_method": "x"}}], ids=["silent", "claimed"])


@CLAIMS
@pytest.mark.parametrize("scheme", sorted(DECODED))
def test_what_can_be_decoded_passes_the_check(tmp_path, scheme, claim):
    new, post, old = three(tmp_path, SCHEMES[scheme], claim)
    report = api.check(recipe(new, post, old, tmp_path / "out"))
    assert report.mismatches == ()
    assert any("quantised" in note for note in report.notes)


@CLAIMS
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in DECODED])
def test_quantised_tensors_are_refused_by_the_check_and_named_though_all_models_hold_the_same_codes(tmp_path, scheme, claim):
    new, post, old = three(tmp_path, SCHEMES[scheme], claim)
    report = api.check(recipe(new, post, old, tmp_path / "out"))
    assert [mismatch.model for mismatch in report.mismatches] == [str(new), str(post), str(old)]
    for mismatch in report.mismatches:
        assert f"{len(SCHEMES[scheme])} tensors are quantised" in mismatch.problem
        assert sum(repr(name) in mismatch.problem for name in SCHEMES[scheme]) == min(4, len(SCHEMES[scheme]))
        assert "dequantise" in mismatch.remedy
    with pytest.raises(HomologyError, match="quantised"):
        api.plan(recipe(new, post, old, tmp_path / "out"))


@pytest.mark.parametrize("scheme", NAMED)
def test_what_is_quantised_is_named_as_what_it_is_without_help_of_the_config(tmp_path, scheme):
    model = open_checkpoint(str(save_model(tmp_path / "m", PLAIN | SCHEMES[scheme])), StorageConfig())
    found = find_quantised(model.tensors, model.config)
    assert {quantised.scheme for quantised in found} == {NAMED[scheme]}
    assert sorted(name for quantised in found for name in quantised.tensors) == sorted(SCHEMES[scheme])


@pytest.mark.parametrize("scheme", REFUSED)
def test_what_cannot_be_decoded_is_refused_by_name_with_the_way_out_of_that_scheme(tmp_path, scheme):
    said, name, tensors = REFUSED[scheme]
    new, post, old = three(tmp_path, tensors or SCHEMES[scheme])
    found = api.check(recipe(new, post, old, tmp_path / "out")).mismatches
    assert len(found) == 3
    for mismatch in found:
        assert f"({name})" in mismatch.problem
        assert all(part in mismatch.remedy for part in (*said, "use the checkpoint that it was quantised from"))


def test_turned_matrices_are_refused_whatever_they_are_stored_in(tmp_path):
    new, post, old = three(tmp_path, SCHEMES["FP8 in blocks"], ROTATED)
    for mismatch in api.check(recipe(new, post, old, tmp_path / "out")).mismatches:
        assert "(FP8 in blocks, with rotations)" in mismatch.problem
        assert "transform_config" in mismatch.remedy


def test_where_names_are_of_several_schemes_the_config_names_it(tmp_path):
    claim = {"quantization_config": {"quant_method": "bitnet"}}
    model = open_checkpoint(str(save_model(tmp_path / "m", PLAIN | SCHEMES["BitNet"], config=claim)), StorageConfig())
    assert [found.scheme for found in find_quantised(model.tensors, model.config)] == ["'bitnet'"]


def test_a_claim_in_the_config_is_believed_of_integers_without_a_scale(tmp_path):
    claim = {"text_config": {"quantization_config": {"quant_method": "strange"}}}
    new, post, old = three(tmp_path, {"m.a.weight": ints(8, 4)}, claim)
    assert "'strange'" in api.check(recipe(new, post, old, tmp_path / "out")).mismatches[0].problem


def test_one_quantised_model_is_said_once_and_not_tensor_by_tensor(tmp_path):
    more = {f"m.{n}.weight": torch.ones(8, 8) for n in range(30)}
    codes = {f"m.{n}.weight_packed": ints(8, 4) for n in range(30)} | {f"m.{n}.weight_scale": torch.ones(8, 1) for n in range(30)}
    new, old = (save_model(tmp_path / name, PLAIN | more) for name in ("new", "old"))
    post = save_model(tmp_path / "post", PLAIN | codes)
    subjects = [(found.model, found.subject) for found in api.check(recipe(new, post, old, tmp_path / "out")).mismatches]
    assert subjects.count((str(post), "quantised")) == 1
    assert len(subjects) == 31, "the rest are the weights that it lacks"


@pytest.mark.parametrize(
    "more",
    [
        {"vision.blocks.2.attn.relative_position_index": ints(4, 4, dtype=torch.int64), "vision.blocks.2.attn.logit_scale": torch.ones(3)},
        {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=U8), "h.0.attn.masked_bias": torch.tensor(-1e4)},
        {"bn.weight": torch.ones(4), "bn.running_mean": torch.ones(4), "bn.num_batches_tracked": torch.tensor(3)},
        {"m.q_norm.scale": torch.ones(4), "m.q_norm.weight": torch.ones(4), "logit_scale": torch.ones(())},
        {"m.attn.k_scale": torch.ones(()), "m.attn.v_scale": torch.ones(()), "vq.codebook": torch.ones(4, 4)},
        {"embeddings.position_ids": ints(1, 8, dtype=torch.int64), "m.steps": ints(3, dtype=I32)},
        {"gate.tid2eid": ints(16, 6, dtype=torch.int64), "mask": torch.ones(4, dtype=torch.bool)},
    ],
)
def test_plain_models_with_counters_masks_and_scales_of_their_own_are_none(tmp_path, more):
    model = open_checkpoint(str(save_model(tmp_path / "m", PLAIN | more)), StorageConfig())
    assert find_quantised(model.tensors, model.config) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_real_architectures_are_none(tmp_path, architecture):
    for folder in make_models(tmp_path, ARCHITECTURES[architecture]):
        model = open_checkpoint(str(folder), StorageConfig())
        assert find_quantised(model.tensors, model.config) == []


def test_a_claim_beside_plain_numbers_alone_is_no_reason_to_refuse(tmp_path):
    new, post, old = three(tmp_path, {}, {"quantization_config": {"quant_method": "left over"}})
    assert api.check(recipe(new, post, old, tmp_path / "out")).mismatches == ()


@pytest.mark.parametrize("scheme", ["MXFP4", "int4 packed", "GPTQ", "FP8 in blocks"])
def test_what_is_quantised_and_left_out_is_the_bases_byte_for_byte_with_its_scales(tmp_path, scheme):
    others = {name: (tensor.float() + 1).to(tensor.dtype) for name, tensor in SCHEMES[scheme].items()}
    new, post, old = three(tmp_path, SCHEMES[scheme])
    save_model(post, {name: tensor + 1 for name, tensor in PLAIN.items()} | others)
    api.merge(recipe(new, post, old, tmp_path / "out", exclude=["m.experts*" if scheme == "MXFP4" else "m.a*"], dtype="bfloat16"))
    made = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in SCHEMES[scheme].items():
        assert made[name].dtype == tensor.dtype
        assert torch.equal(made[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert torch.equal(made["m.q_proj.weight"], torch.full((8, 8), 2.0).bfloat16())


def test_codes_left_out_without_their_scales_are_refused(tmp_path):
    new, post, old = three(tmp_path, SCHEMES["int4 packed"])
    report = api.check(recipe(new, post, old, tmp_path / "out", exclude=["*_packed"]))
    assert {mismatch.subject for mismatch in report.mismatches} == {"quantised"}


def test_a_post_in_fp8_is_no_matter_where_its_tensor_is_left_out(tmp_path):
    new, post, old = three(tmp_path, {"m.a.weight": torch.ones(4, 4)})
    save_model(post, PLAIN | SCHEMES["FP8 in blocks"])
    api.merge(recipe(new, post, old, tmp_path / "out", exclude=["m.a.*"]))
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["m.a.weight"], torch.ones(4, 4))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "toy"
