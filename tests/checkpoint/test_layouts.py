"""One model in several layouts.

Real classes are saved as the hub has them and as they lie in memory; under the names and shapes of one, the other has the same numbers.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.header import Stacked
from paramdelta_dist.checkpoint.layouts import paired
from paramdelta_dist.kernels.encodings import Transposed
from paramdelta_dist.storage import StorageConfig

STORAGE = StorageConfig()
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 96, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
MROPE = {"mrope_section": [2, 1, 1], "rope_type": "default"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
LATENT = {
    "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
SIGLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def _causal(family, **config):
    import transformers

    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**{**TEXT, **config}))


def _wrapped(family, text, vision, **config):
    import transformers

    made = getattr(transformers, f"{family}Config")(text_config={**TEXT, **text}, vision_config=vision, **config)
    return getattr(transformers, f"{family}ForConditionalGeneration")(made)


MODELS = {
    "qwen3_moe": lambda: _causal("Qwen3Moe", **EXPERTS),
    "mixtral": lambda: _causal("Mixtral", **EXPERTS),
    "deepseek_v3": lambda: _causal("DeepseekV3", **EXPERTS, **LATENT),
    "minimax_m2": lambda: _causal("MiniMaxM2", **EXPERTS, rotary_dim=8),
    "jamba": lambda: _causal("Jamba", **EXPERTS, use_mamba_kernels=False, attn_layer_offset=1, attn_layer_period=2),
    "lfm2_moe": lambda: _causal("Lfm2Moe", **EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention"]),
    "granitemoe": lambda: _causal("GraniteMoe", **EXPERTS),
    "hy_v3": lambda: _causal("HYV3", **EXPERTS, first_k_dense_replace=1),
    "qwen3_vl_moe": lambda: _wrapped("Qwen3VLMoe", EXPERTS | {"rope_scaling": MROPE}, VISION),
    "gemma3": lambda: _wrapped("Gemma3", {"sliding_window": 8}, SIGLIP, mm_tokens_per_image=4),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves a model in a layout, once; returns the folder."""
    made = {}

    def save(name, *, as_on_hub):
        if name not in made:
            torch.manual_seed(0)
            made[name] = MODELS[name]().to(torch.bfloat16)
        folder = tmp_path_factory.getbasetemp() / f"{name}-{'hub' if as_on_hub else 'memory'}"
        if not folder.exists():
            made[name].save_pretrained(folder, save_original_format=as_on_hub, max_shard_size="100KB")
        return folder

    return save


class Files:
    """Reads tensors from the files of a checkpoint, by what the header says and nothing else."""

    def __init__(self, checkpoint):
        self._bytes = {n: memoryview(_content(checkpoint.url, file.name)) for n, file in enumerate(checkpoint.files)}

    def numbers(self, tensor):
        """The elements, as integers of the width of its dtype; of scaled codes, numbers."""
        if isinstance(tensor.encoded, Stacked):
            pieces = [self.numbers(array.tensor).reshape(-1) for array in tensor.encoded.arrays]
            return np.concatenate(pieces).reshape(tensor.shape)
        if tensor.encoded is None:
            return self._stored(tensor).reshape(tensor.shape)
        if isinstance(tensor.encoded.encoding, Transposed):
            return self._turned(tensor)
        return self._scaled(tensor)

    def _stored(self, tensor):
        items = {"BF16": np.uint16, "F16": np.uint16, "F32": np.float32, "F64": np.float64, "F8_E4M3": np.uint8}.get(tensor.dtype)
        return np.frombuffer(self._bytes[tensor.file][tensor.start : tensor.stop], items or np.int64)

    def _turned(self, tensor):
        encoding, (_, array) = tensor.encoded.encoding, tensor.encoded.arrays[0]
        *outer, rows, columns = tensor.shape
        whole = self._stored(array).reshape(*outer, columns, encoding.height or rows)
        return np.swapaxes(whole, -1, -2)[..., encoding.top : encoding.top + rows, :]

    def _scaled(self, tensor):
        encoding = tensor.encoded.encoding
        codes, scales = (self._stored(array.tensor) for array in tensor.encoded.arrays[:2])
        decoded = torch.frombuffer(bytearray(codes), dtype=torch.float8_e4m3fn).double().numpy().reshape(tensor.shape)
        down, across = encoding.blocks(tensor.shape)
        scales = scales.reshape(*tensor.shape[:-2], down, across)
        wide = scales.repeat(encoding.rows, -2)[..., : tensor.shape[-2], :].repeat(encoding.columns, -1)[..., : tensor.shape[-1]]
        return decoded * wide


def _content(folder, name):
    with open(f"{folder}/{name}", "rb") as file:
        return file.read()


def numbers_of(checkpoint):
    files = Files(checkpoint)
    return {name: files.numbers(tensor) for name, tensor in checkpoint.tensors.items()}


def opened(folder):
    return open_checkpoint(str(folder), STORAGE)


def require_the_bases_numbers(base, other):
    """The other model, with the names, shapes and numbers of the base."""
    found = paired(base, other)
    assert found.pairing.problems == ()
    assert found.tensors.keys() == base.tensors.keys()
    ours, theirs = numbers_of(base), numbers_of(found)
    for name, tensor in base.tensors.items():
        assert found.tensors[name].shape == tensor.shape, name
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("on_hub", [True, False], ids=["base_as_on_the_hub", "base_as_in_memory"])
def test_a_model_saved_in_two_layouts_is_one_model(saved, name, on_hub):
    base, other = opened(saved(name, as_on_hub=on_hub)), opened(saved(name, as_on_hub=not on_hub))
    require_the_bases_numbers(base, other)


def test_the_base_as_it_lies_in_memory_has_what_the_state_dict_has(saved, tmp_path):
    """The oracle of the others: names and numbers of the model itself."""
    folder = saved("qwen3_moe", as_on_hub=True)
    import transformers

    state = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    memory = tmp_path / "memory"
    memory.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, memory / "model.safetensors")
    (memory / "config.json").write_text((folder / "config.json").read_text())
    found = require_the_bases_numbers(opened(memory), opened(folder))
    assert any(tensor.encoded for tensor in found.tensors.values())
    for name, numbers in numbers_of(found).items():
        np.testing.assert_array_equal(numbers.view(np.int16), state[name].view(torch.int16).numpy())
