"""What compressed-tensors writes is read as it reads it itself: packing, order of halves, offsets, scales of every kind."""

from math import prod

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.naive_quantized.base import FloatQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import preset_name_to_scheme

from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import Scaled
from tests.kernels.codecs.oracle import NUMBERS

ROWS, COLUMNS = 192, 256


def weights(seed=0):
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.02


def blocks(rows, columns):
    """Largest magnitudes by block."""
    rows, columns = rows or ROWS, columns or COLUMNS
    padded = torch.nn.functional.pad(weights().abs(), (0, -COLUMNS % columns, 0, -ROWS % rows))
    return padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).amax((1, 3))


def numbers(encoding, *arrays):
    data = [memoryview(array.contiguous().view(torch.uint8).numpy().reshape(-1)) for array in arrays]
    out = np.empty(prod((ROWS, COLUMNS)), NUMBERS[encoding.numbers])
    decode(encoding, data, (ROWS, COLUMNS), 0, out.size, memoryview(out).cast("B"))
    return torch.from_numpy(out).reshape(ROWS, COLUMNS)


def quantised(compressor, preset, **state):
    """What is stored of the weights, and what the library takes it for."""
    scheme = preset_name_to_scheme(preset, ["Linear"])
    found = compressor.compress({"weight": weights(), **state}, scheme)
    return found, compressor.decompress(dict(found), scheme)["weight"]


@pytest.mark.parametrize(("preset", "rows", "columns"), [("FP8", 0, 0), ("FP8_DYNAMIC", 1, 0), ("FP8_BLOCK", 128, 128)])
def test_float_quantized(preset, rows, columns):
    scale = blocks(rows, columns) / 448
    found, expected = quantised(FloatQuantizationCompressor, preset, weight_scale=scale.reshape(1) if not rows else scale)
    mine = numbers(Scaled("e4m3", rows, columns, "F32"), found["weight"], found["weight_scale"])
    assert torch.equal(mine.to(expected.dtype), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pack_quantized(dtype):
    scale = (blocks(1, 128) / 7.5).to(dtype)
    found, expected = quantised(PackedQuantizationCompressor, "W4A16", weight_scale=scale)
    mine = numbers(Scaled("int4", 1, 128, "BF16" if dtype == torch.bfloat16 else "F32"), found["weight_packed"], found["weight_scale"])
    assert torch.equal(mine.to(expected.dtype), expected)


def test_mxfp4_pack_quantized():
    scale = torch.exp2(torch.ceil(torch.log2(blocks(1, 32) / 6)))
    found, expected = quantised(MXFP4PackedCompressor, "MXFP4A16", weight_scale=scale)
    assert torch.equal(numbers(Scaled("e2m1", 1, 32, "E8M0"), found["weight_packed"], found["weight_scale"]).to(expected.dtype), expected)


def test_nvfp4_pack_quantized():
    whole = (448 * 6 / weights().abs().max()).reshape(1)
    scale = (blocks(1, 16) / 6 * whole).to(torch.float8_e4m3fn).float()
    found, expected = quantised(NVFP4PackedCompressor, "NVFP4A16", weight_scale=scale, weight_global_scale=whole)
    mine = numbers(Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"), found["weight_packed"], found["weight_scale"], whole)
    torch.testing.assert_close(mine, expected.double(), rtol=2.0**-7, atol=0)  # it divides the scales in bfloat16
    assert (mine - weights()).abs().max() < weights().abs().max() / 6


def test_the_dtypes_of_torch_say_the_same():
    codes = torch.arange(256, dtype=torch.uint8).repeat(ROWS)
    mine = numbers(Scaled("e4m3", 1, 0, "F32"), codes, torch.ones(ROWS))
    assert torch.equal(mine.nan_to_num(-1), codes.view(torch.float8_e4m3fn).double().reshape(ROWS, COLUMNS).nan_to_num(-1))
    mine = numbers(
        Scaled("e4m3", ROWS, 1, "E8M0"), torch.full((ROWS * COLUMNS,), 0x38, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8)
    )
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).float()
    assert torch.equal(mine[0].nan_to_num(-1), expected.nan_to_num(-1))
