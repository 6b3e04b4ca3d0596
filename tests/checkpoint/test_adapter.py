"""Adapters as peft makes them, read as deltas: what is decoded, added to the base, is what peft merges."""

import numpy as np
import pytest
from safetensors.torch import load_file

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.adapter import open_adapter
from paramdelta_dist.checkpoint.header import Encoded, Stacked
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.kernels.encodings import LowRank, Space
from paramdelta_dist.storage import StorageConfig
from tests.adapters import EXPERTS, FUSED, apart, gpt2, gpt_oss, llama, qwen_moe, trained, without

DTYPES = {"F32": np.float32, "F64": np.float64, "F16": np.float16}


def opened(base, adapter):
    storage = StorageConfig()
    return open_adapter(str(adapter), storage, open_checkpoint(str(base), storage))


def numbers(folder, tensor, shape):
    """What a tensor of an adapter holds, in float64, by the definition of its encoding."""
    if isinstance(tensor.encoded, Stacked):
        return np.concatenate([numbers(folder, each.tensor, each.tensor.shape).ravel() for each in tensor.encoded.arrays]).reshape(shape)
    assert isinstance(tensor.encoded, Encoded)
    encoding, arrays = tensor.encoded
    assert isinstance(encoding, LowRank)
    ranges = encoding.ranges(shape, 0, int(np.prod(shape)))
    assert [each.tensor.nbytes for each in arrays] == [stop for _, stop in ranges]
    a, b = (stored(folder, each.tensor).reshape(each.tensor.shape) for each in arrays)
    count = shape[0] if len(shape) == 3 else 1
    out = []
    for matrix in range(count):
        columns = [k * encoding.matrices + encoding.matrix + matrix for k in range(encoding.rank)]
        one = encoding.scaling * b[:, columns] @ a[matrix * encoding.rank :][: encoding.rank] if encoding.rank else np.zeros(shape)
        out.append(one.T if encoding.transposed else one)
    return np.stack(out).reshape(shape)


def stored(folder, tensor):
    data = (folder / "adapter_model.safetensors").read_bytes()[tensor.start : tensor.stop]
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, DTYPES[tensor.dtype]).astype(np.float64)


def require_the_same(folders, *, added=1):
    """The base, with what the adapter says, is what peft merged, tensor by tensor; and what it says nothing of is the base's."""
    base, adapter, merged = folders
    found = opened(base, adapter)
    ours, theirs = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, before in ours.items():
        after, held = theirs[name].double().numpy(), found.tensors.get(name)
        if held is None:
            np.testing.assert_array_equal(before.double().numpy(), after, err_msg=name)
            continue
        assert held.shape == tuple(before.shape)
        if held.space is Space.WEIGHT:
            np.testing.assert_array_equal(stored(adapter, held).reshape(held.shape), after, err_msg=name)
        else:
            delta = numbers(adapter, held, held.shape)
            assert np.abs(delta).max() > 0, name
            np.testing.assert_allclose(before.double().numpy() + delta, after, rtol=1e-6, atol=1e-6, err_msg=name)
    assert len(found.tensors) >= added
    return found


CASES = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "every linear module": {"r": 4, "target_modules": "all-linear"},
    "a pattern of modules": {"r": 4, "target_modules": r".*layers\.1\..*(q|k)_proj"},
    "root of the rank": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["k_proj", "o_proj"]},
    "ranks by module": {
        "r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 3, "v_.*": 5},
        "alpha_pattern": {r".*\.0\..*": 3, "q_proj": 16},
    },
    "some layers": {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    "some modules not": {"r": 4, "target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*1.self_attn.k_proj"},
    "embeddings": {"r": 4, "target_modules": ["embed_tokens", "v_proj"]},
    "a head that is held whole": {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "all biases": {"r": 4, "target_modules": ["v_proj"], "bias": "all"},
    "biases of what is adapted": {"r": 4, "target_modules": ["v_proj"], "bias": "lora_only"},
    "a parameter of two dimensions": {"r": 4, "target_modules": ["v_proj"], "target_parameters": ["q_proj.weight", "up_proj.weight"]},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_an_adapter_of_llama_adds_is_what_peft_merges(tmp_path, case):
    require_the_same(trained(tmp_path, llama(), **CASES[case]))


def test_weights_that_are_stored_the_other_way_round_get_their_products_so_square_ones_too(tmp_path):
    found = require_the_same(trained(tmp_path, gpt2(), r=4, target_modules=["c_attn", "c_proj", "c_fc"]))
    assert {tensor.encoded.encoding.transposed for tensor in found.tensors.values()} == {True}


def test_fused_experts_get_products_of_all_experts(tmp_path):
    found = require_the_same(trained(tmp_path, qwen_moe(), save=FUSED, **EXPERTS, rank_pattern={"experts.down_proj": 3}))
    assert found.tensors["model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 24, 16)


def test_an_adapter_of_fused_experts_fits_a_model_whose_experts_lie_apart(tmp_path):
    found = require_the_same(trained(tmp_path, qwen_moe(), **EXPERTS, rank_pattern={"experts.down_proj": 3}))
    assert found.tensors["model.layers.1.mlp.experts.3.up_proj.weight"].shape == (12, 16)


def test_experts_that_are_stored_transposed_get_products_so_square_ones_too(tmp_path):
    parameters = ["experts.down_proj", "experts.gate_up_proj"]
    require_the_same(trained(tmp_path, gpt_oss(), r=2, target_modules=[], target_parameters=parameters))


def test_square_experts_alone_are_told_by_the_model_and_the_version(tmp_path):
    folders = trained(tmp_path, gpt_oss(), r=2, target_modules=[], target_parameters=["experts.down_proj"])
    require_the_same(folders)
    without(folders[1], "peft_version")
    with pytest.raises(CheckpointError, match="nothing tells whether its product lies transposed"):
        opened(*folders[:2])


@pytest.mark.parametrize("save", [{}, FUSED], ids=["apart", "fused"])
def test_an_adapter_of_single_experts_adds_the_same_whether_they_lie_apart_or_together(tmp_path, save):
    qwen_moe().save_pretrained(tmp_path / "base", **save)
    adapter = apart(tmp_path / "adapter")
    found, factors = opened(tmp_path / "base", adapter), load_file(adapter / "adapter_model.safetensors")

    def delta(layer, expert, part):
        path = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{part}"
        return 1.5 * factors[f"{path}.lora_B.weight"].double().numpy() @ factors[f"{path}.lora_A.weight"].double().numpy()

    for name, tensor in found.tensors.items():
        layer, value = int(name.split(".")[2]), numbers(adapter, tensor, tensor.shape)
        if save:
            parts = ("down_proj",) if name.endswith("down_proj") else ("gate_proj", "up_proj")
            expected = np.stack([np.concatenate([delta(layer, expert, part) for part in parts]) for expert in range(4)])
        else:
            expected = delta(layer, int(name.split(".")[5]), name.split(".")[6])
        np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert len(found.tensors) == (4 if save else 24)


def test_of_fused_experts_those_without_factors_get_zeros(tmp_path):
    qwen_moe().save_pretrained(tmp_path / "base", **FUSED)
    adapter = apart(tmp_path / "adapter", only=lambda path: "gate_proj" not in path)
    without(adapter, target_modules=["up_proj", "down_proj"])
    tensor = opened(tmp_path / "base", adapter).tensors["model.layers.0.mlp.experts.gate_up_proj"]
    value = numbers(adapter, tensor, tensor.shape)
    assert np.abs(value[:, :12]).max() == 0
    assert np.abs(value[:, 12:]).min(axis=(1, 2)).min() > 0
