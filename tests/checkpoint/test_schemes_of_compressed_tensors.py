"""Folders that compressed-tensors wrote: each scheme is told, and its numbers are those that the library decompresses to."""

import json

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from safetensors.torch import load_file, save_file

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.encoded import with_logical_tensors
from paramdelta_dist.checkpoint.quantised import find_quantised
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.storage import StorageConfig

ROWS, COLUMNS = 200, 384
READ = {
    "FP8": Scaled("e4m3", 0, 0, "BF16"),
    "FP8_DYNAMIC": Scaled("e4m3", 1, 0, "BF16"),
    "FP8_BLOCK": Scaled("e4m3", 128, 128, "BF16"),
    "W4A16": Scaled("int4", 1, 128, "BF16"),
    "NVFP4": Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"),
    "NVFP4A16": Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"),
    "MXFP4": Scaled("e2m1", 1, 32, "E8M0"),
    "MXFP8": Scaled("e4m3", 1, 32, "E8M0"),
}
REFUSED = {
    "W4A16_ASYM": "integers packed by compressed-tensors, with zero points",
    "W8A16": "integers packed by compressed-tensors",
    "W8A8": "INT8",
    "MXFP6A16": "MXFP6 of compressed-tensors",
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16)
        self.norm = torch.nn.LayerNorm(ROWS, dtype=torch.bfloat16)


def saved(folder, preset):
    """A folder of a model that is quantised so, and the matrix that it is decompressed to."""
    torch.manual_seed(len(preset))
    model = Model()
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": preset_name_to_scheme(preset, ["Linear"])}))
    scale = model.up.weight_scale.data
    scale.copy_(2.0 ** torch.randint(-7, 0, scale.shape) if preset.startswith("MX") else torch.rand(scale.shape) * 0.01 + 0.01)
    if preset.startswith("NVFP4"):
        scale.copy_((torch.rand(scale.shape) + 0.5) * 40)
        model.up.weight_global_scale.data.fill_(777.0)
    for name, parameter in model.up.named_parameters():
        if name.startswith("input") or name == "weight_zero_point":
            parameter.data.copy_(torch.ones(parameter.shape))
    if preset != "W4A16_ASYM" and hasattr(model.up, "weight_zero_point"):
        model.up.weight_zero_point.data.copy_(torch.zeros(model.up.weight_zero_point.shape))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "dtype": "bfloat16"}))
    compressor.update_config(str(folder))
    compressor.decompress_model(model)
    return folder, model.up.weight.detach().double().numpy()


def decoded(encoding, arrays):
    """The numbers of a matrix in float64, from its arrays, without any of the package."""
    codes, scales, *whole = arrays
    if encoding.code == "e4m3":
        numbers = codes.float().double().numpy()
    elif encoding.code == "e2m1":
        pairs = codes.numpy()
        numbers = E2M1[np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1)]
    else:
        words = codes.numpy().view(np.uint32)
        numbers = ((words[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15).reshape(len(words), -1).astype(np.float64) - 8
    scales = 2.0 ** (scales.double().numpy() - 127) if encoding.scale == "E8M0" else scales.double().numpy()
    if not encoding.rows:
        return numbers * scales.item()
    wide = np.repeat(np.repeat(scales, encoding.rows, 0), encoding.columns or COLUMNS, 1)[:ROWS, :COLUMNS]
    return numbers * wide / (whole[0].double().item() if encoding.whole == "divides" else 1)


@pytest.mark.parametrize("preset", READ)
def test_a_scheme_is_told_and_its_numbers_are_those_of_the_library(tmp_path, preset):
    folder, numbers = saved(tmp_path / "m", preset)
    model = with_logical_tensors(open_checkpoint(str(folder), StorageConfig()))
    assert sorted(model.tensors) == ["norm.bias", "norm.weight", "up.weight"]
    found = model.tensors["up.weight"]
    assert (found.dtype, found.shape, found.encoded.encoding) == ("BF16", (ROWS, COLUMNS), READ[preset])
    stored = load_file(folder / "model.safetensors")
    assert sorted(array.name for array in found.encoded.arrays) == sorted(name for name in stored if name.startswith("up."))
    ours = decoded(found.encoded.encoding, [stored[array.name] for array in found.encoded.arrays][: found.encoded.encoding.arrays])
    assert np.count_nonzero(ours) > 0.5 * ours.size
    np.testing.assert_allclose(ours, numbers, rtol=2**-6, atol=0)  # the library rounds to bfloat16, some schemes twice


@pytest.mark.parametrize("preset", REFUSED)
def test_a_scheme_that_is_not_decoded_is_found_by_its_name(tmp_path, preset):
    folder, _ = saved(tmp_path / "m", preset)
    model = with_logical_tensors(open_checkpoint(str(folder), StorageConfig()))
    assert [found.scheme for found in find_quantised(model.tensors, model.config)] == [REFUSED[preset]]
