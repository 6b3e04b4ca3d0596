"""Quantised checkpoints as people have them, and what their numbers are in float64: written for clarity, and of nothing that it judges."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import oracle

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
BLOCK = 16
"""Rows and columns of a block of fp8 in small models."""


def in_blocks(matrix, rows, columns):
    """[.., R, C] → the largest magnitude of each block, [.., ⌈R/rows⌉, ⌈C/columns⌉]."""
    down, across = -(-matrix.shape[-2] // rows), -(-matrix.shape[-1] // columns)
    padded = torch.nn.functional.pad(matrix.double(), (0, across * columns - matrix.shape[-1], 0, down * rows - matrix.shape[-2]))
    return padded.abs().reshape(*matrix.shape[:-2], down, rows, across, columns).amax((-3, -1))


def spread(scales, shape, rows, columns):
    """Scales of blocks, for each element of a tensor of `shape`."""
    return scales.double().repeat_interleave(rows, -2).repeat_interleave(columns, -1)[..., : shape[-2], : shape[-1]]


def nibbles(codes):
    """Two codes to a byte, the one with the even column in the low half."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)


def codes_of_nibbles(packed):
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()


def to_e2m1(numbers):
    """Codes of the nearest numbers, ties to the even code."""
    distance = (numbers.double().clamp(-6, 6).unsqueeze(-1) - E2M1[:8] * torch.where(numbers < 0, -1, 1).unsqueeze(-1)).abs()
    best = distance.amin(-1, keepdim=True)
    near = distance == best
    even = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    code = even[near[..., even].long().argmax(-1)]
    return code | torch.where(torch.signbit(numbers), 8, 0)


def fp8_block(name, matrix, scale="F32", suffix="weight_scale_inv", rows=BLOCK, columns=BLOCK):
    scales = in_blocks(matrix, rows, columns) / 448
    scales = torch.where(scales == 0, 1e-12 / 448, scales)
    if scale != "F32":
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    scales = scales.float()
    codes = (matrix.double() / spread(scales, matrix.shape, rows, columns)).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    if scale == "F8_E8M0":
        scales = scales.to(torch.float8_e8m0fnu)
    elif scale == "U8":
        scales = (torch.log2(scales) + 127).to(torch.uint8)
    stem = name.removesuffix(".weight")
    return {name: codes, f"{stem}.{suffix}" if name.endswith(".weight") else f"{name}_scale_inv": scales}


def fp8_rows(name, matrix, columns=0):
    """compressed-tensors and FBGEMM: a scale for each row, or for each `columns` numbers of one."""
    columns = columns or matrix.shape[-1]
    scales = (in_blocks(matrix, 1, columns) / 448).clamp_min(1e-12).float()
    codes = (matrix.double() / spread(scales, matrix.shape, 1, columns)).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    return {name: codes, name.replace("weight", "weight_scale"): scales}


def fp8_tensor(name, matrix, shape=(1,), static=False):
    scale = (matrix.double().abs().amax() / 448).float()
    codes = (matrix.double() / scale.double()).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    held = {name: codes, name.replace("weight", "weight_scale"): scale.reshape(shape)}
    return held | ({name.replace("weight", "input_scale"): torch.tensor(0.5).reshape(shape)} if static else {})


def mxfp4(name, matrix, kind):
    exponents = torch.ceil(torch.log2((in_blocks(matrix, 1, 32) / 6).clamp_min(2.0**-126)))
    codes = to_e2m1(matrix.double() / spread(torch.exp2(exponents), matrix.shape, 1, 32))
    packed, scales = nibbles(codes), (exponents + 127).to(torch.uint8)
    if kind == "gpt-oss":
        return {f"{name}_blocks": packed.reshape(*matrix.shape[:-1], -1, 16), f"{name}_scales": scales}
    stem = name.removesuffix(".weight")
    if kind == "v4":
        return {name: packed.view(torch.int8), f"{stem}.scale": scales.view(torch.float8_e8m0fnu)}
    return {f"{stem}.weight_packed": packed, f"{stem}.weight_scale": scales}


def nvfp4(name, matrix, kind):
    stem = name.removesuffix(".weight")
    whole = (matrix.double().abs().amax() * 1.5 / (448 * 6)).float().double()  # a merge may make the largest larger
    local = (in_blocks(matrix, 1, 16) / 6 / whole).clamp(2.0**-9, 448).float().to(torch.float8_e4m3fn)
    given = (1 / whole).float() if kind == "ct" else whole.float()
    factor = spread(local.double() / given.double() if kind == "ct" else local.double() * given.double(), matrix.shape, 1, 16)
    packed = nibbles(to_e2m1(matrix.double() / factor))
    if kind == "ct":
        return {f"{stem}.weight_packed": packed, f"{stem}.weight_scale": local, f"{stem}.weight_global_scale": given.reshape(1)}
    return {name: packed, f"{stem}.weight_scale": local, f"{stem}.weight_scale_2": given, f"{stem}.input_scale": torch.tensor(0.25)}


def int4(name, matrix, group=32):
    stem = name.removesuffix(".weight")
    scales = (in_blocks(matrix, 1, group) / 7.5).clamp_min(1e-9).bfloat16()
    codes = (matrix.double() / spread(scales, matrix.shape, 1, group)).round().clamp(-8, 7).long() + 8
    return {
        f"{stem}.weight_packed": nibbles(codes).view(torch.int32),
        f"{stem}.weight_scale": scales,
        f"{stem}.weight_shape": torch.tensor(matrix.shape, dtype=torch.int64),
    }


def _ct(kind, **weights):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def _fp8(**more):
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]} | more


_FLOAT = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
SCHEMES = {
    "fp8 in blocks": (fp8_block, _fp8()),
    "fp8 in blocks, powers of two as F32": (lambda n, m: fp8_block(n, m, "powers"), _fp8(scale_fmt="ue8m0")),
    "fp8 in blocks, E8M0": (lambda n, m: fp8_block(n, m, "F8_E8M0", "scale"), _fp8(scale_fmt="ue8m0")),
    "fp8 in blocks, U8": (lambda n, m: fp8_block(n, m, "U8"), _fp8(scale_fmt="ue8m0")),
    "fp8 of compressed-tensors by rows": (fp8_rows, _ct("float-quantized", strategy="channel", **_FLOAT)),
    "fp8 of compressed-tensors by groups": (
        lambda n, m: fp8_rows(n, m, 16), _ct("float-quantized", strategy="group", group_size=16, **_FLOAT),
    ),
    "fp8 of compressed-tensors in blocks": (
        lambda n, m: fp8_block(n, m, suffix="weight_scale"),
        _ct("float-quantized", strategy="block", block_structure=[BLOCK, BLOCK], **_FLOAT),
    ),
    "fp8 of compressed-tensors, one scale": (
        lambda n, m: fp8_tensor(n, m, static=True), _ct("float-quantized", strategy="tensor", **_FLOAT),
    ),
    "FBGEMM": (fp8_rows, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "mxfp4 of compressed-tensors": (
        lambda n, m: mxfp4(n, m, "ct"),
        _ct("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8"),
    ),
    "mxfp4 of DeepSeek-V4": (lambda n, m: mxfp4(n, m, "v4"), _fp8(scale_fmt="ue8m0")),
    "int4": (int4, _ct("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)),
    "nvfp4 of compressed-tensors": (
        lambda n, m: nvfp4(n, m, "ct"), _ct("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
    ),
    "nvfp4 of ModelOpt": (lambda n, m: nvfp4(n, m, "modelopt"), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
}  # fmt: skip


def numbers(folder, block=BLOCK):
    """Every tensor of a folder in float64, quantised ones by what they stand for, under their own names."""
    held, found = oracle.load(folder), {}
    config = json.loads((Path(folder) / "config.json").read_text()).get("quantization_config", {})
    rest = dict(held)
    for name, tensor in held.items():
        stem = name.removesuffix(".weight_packed").removesuffix("_blocks").removesuffix(".weight")
        if name.endswith("_blocks"):
            codes = codes_of_nibbles(rest.pop(name)).flatten(-2)
            scale = torch.exp2(rest.pop(f"{stem}_scales").double() - 127)
            found[stem] = E2M1[codes] * spread(scale, codes.shape, 1, 32)
        elif name.endswith(".weight_packed") and tensor.dtype == torch.int32:
            codes = codes_of_nibbles(rest.pop(name).view(torch.uint8)) - 8
            scale = rest.pop(f"{stem}.weight_scale")
            rest.pop(f"{stem}.weight_shape")
            found[f"{stem}.weight"] = codes.double() * spread(scale, codes.shape, 1, codes.shape[-1] // scale.shape[-1])
        elif name.endswith(".weight_packed") or (name.endswith(".weight") and tensor.dtype in (torch.uint8, torch.int8)):
            codes = codes_of_nibbles(rest.pop(name).view(torch.uint8))
            scale = rest.pop(f"{stem}.weight_scale" if f"{stem}.weight_scale" in rest else f"{stem}.scale")
            whole = 1.0
            if f"{stem}.weight_global_scale" in rest:
                whole = 1 / rest.pop(f"{stem}.weight_global_scale").double()
            elif f"{stem}.weight_scale_2" in rest:
                whole = rest.pop(f"{stem}.weight_scale_2").double()
                rest.pop(f"{stem}.input_scale")
            if scale.dtype == torch.uint8:
                scale = torch.exp2(scale.double() - 127)
            found[f"{stem}.weight"] = E2M1[codes] * spread(scale.double() * whole, codes.shape, 1, codes.shape[-1] // scale.shape[-1])
        elif tensor.dtype == torch.float8_e4m3fn and name.endswith((".weight", "_proj")):
            spelled = [f"{stem}.weight_scale_inv", f"{stem}.weight_scale", f"{stem}.scale", f"{stem}_scale_inv"]
            scale = rest.pop(next(each for each in spelled if each in rest))
            rest.pop(f"{stem}.input_scale", None)
            scale = torch.exp2(scale.double() - 127) if scale.dtype == torch.uint8 else scale.double()
            codes = rest.pop(name).double()
            if scale.numel() == 1:
                found[name] = codes * scale.reshape(())
            elif scale.shape[-2] == codes.shape[-2]:
                found[name] = codes * spread(scale, codes.shape, 1, math.ceil(codes.shape[-1] / scale.shape[-1]))
            else:
                found[name] = codes * spread(scale, codes.shape, block, block)
    assert not config or found, f"nothing in {folder} is quantised"
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in rest.items()} | found


def is_quantised(name, tensor):
    """Whether a scheme takes a tensor: matrices of the layers, no embeddings and no head."""
    return tensor.ndim >= 2 and "embed" not in name and "lm_head" not in name


def save(folder, tensors, scheme=None, config=None, apart=False):
    """A checkpoint of plain `tensors`, quantised by a scheme of SCHEMES; with `apart`, what goes with codes lies in another file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made, claim = SCHEMES[scheme] if scheme else (None, None)
    held = {}
    for name, tensor in tensors.items():
        held |= made(name, tensor) if made and is_quantised(name, tensor) else {name: tensor}
    held = {name: tensor.contiguous() for name, tensor in held.items()}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"} | (config or {})
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": claim} if claim else {})))
    if not apart:
        save_file(held, folder / "model.safetensors")
        return
    files = {
        "model-00001-of-00002.safetensors": {name: tensor for name, tensor in held.items() if "scale" not in name},
        "model-00002-of-00002.safetensors": {name: tensor for name, tensor in held.items() if "scale" in name},
    }
    for file, part in files.items():
        save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def plain_tensors(seed, change=0.0, base=None, width=96):
    """The tensors of a small model in bfloat16; with `base` and `change` those of one that grew from it."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (32, width), "model.norm.weight": (width,)}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": (width, width),
            f"model.layers.{layer}.mlp.up_proj.weight": (72, width),
            f"model.layers.{layer}.mlp.down_proj.weight": (width, 64),
            f"model.layers.{layer}.input_layernorm.weight": (width,),
        }
    drawn = {name: torch.randn(shape, generator=random) * 0.05 for name, shape in shapes.items()}
    if base is None:
        return {name: tensor.bfloat16() for name, tensor in drawn.items()}
    return {name: (base[name].float() + change * tensor).bfloat16() for name, tensor in drawn.items()}
