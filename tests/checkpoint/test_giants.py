"""The largest models there are, from their headers: each quantised matrix of half a million stored tensors becomes one."""

import resource
import time

import pytest

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.encoded import with_logical_tensors
from paramdelta_dist.checkpoint.quantised import find_quantised
from paramdelta_dist.storage import StorageConfig
from tests.giants import GIANTS, build

ENCODED = {
    "DeepSeek-V3": ("e4m3", 128, 128, "F32"),
    "Kimi-K2": ("e4m3", 128, 128, "F32"),
    "Kimi-K2-Thinking": ("int4", 1, 32, "BF16"),
    "Kimi-K3": ("e2m1", 1, 32, "E8M0"),
    "Qwen3-235B-A22B-FP8": ("e4m3", 128, 128, "BF16"),
    "gpt-oss-120b": ("e2m1", 1, 32, "E8M0"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "gpt-oss-120b" else pytest.mark.slow) for name in GIANTS])
def test_a_giant_has_the_tensors_and_parameters_that_are_known_of_it(tmp_path, name):
    giant = GIANTS[name]
    stored = open_checkpoint(str(build(giant, tmp_path / "model")), StorageConfig())
    assert len(stored.tensors) == giant.stored
    assert len(stored.files) == giant.files
    begun, cpu = time.perf_counter(), time.process_time()
    model = with_logical_tensors(stored)
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"\n{name}: {giant.stored} stored tensors, logical ones in {took:.2f} s ({cpu:.2f} s of a core), peak {peak} MiB")
    assert len(model.tensors) == giant.logical
    assert model.parameters / 1e9 == pytest.approx(giant.parameters, rel=0.01)
    assert model.nbytes == stored.nbytes
    found = {tensor.encoded.encoding for tensor in model.tensors.values() if tensor.encoded}
    assert [(each.code, each.rows, each.columns, each.scale) for each in found] == [ENCODED[name]]
    assert find_quantised(model.tensors, model.config) == []
