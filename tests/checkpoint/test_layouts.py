"""One model in several layouts.

Real classes are saved as the hub has them and as they lie in memory; under the names and shapes of one, the other has the same numbers.
"""

import gc
import json
from dataclasses import replace
from itertools import pairwise
from math import prod
from time import process_time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from paramdelta_dist import api
from paramdelta_dist.checkpoint import compare, open_checkpoint
from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.encoded import with_logical_tensors
from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import Stacked, StoredArray, Tensor
from paramdelta_dist.checkpoint.layouts import all_paired, paired
from paramdelta_dist.checkpoint.pieces import Uncut, cut, stacked
from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import StorageConfig
from tests import oracle, quantised
from tests.models import save_model

STORAGE = StorageConfig()
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 96, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
LATENT = {
    "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
ROPE = {"mrope_section": [2, 1, 1], "rope_type": "default"}
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
    "qwen3_vl_moe": lambda: _wrapped("Qwen3VLMoe", {**EXPERTS, "rope_scaling": ROPE}, VISION),
    "gpt_oss": lambda: _causal("GptOss", **EXPERTS, intermediate_size=32, layer_types=["sliding_attention", "full_attention"]),
    "deepseek_v4": lambda: _causal("DeepseekV4", **EXPERTS, **LATENT),
    "gemma3": lambda: _wrapped("Gemma3", {"sliding_window": 8, "tie_word_embeddings": True}, SIGLIP, mm_tokens_per_image=4),
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
        """The elements: plain ones as bytes, [elements, width], what is scaled in float64."""
        if isinstance(tensor.encoded, Stacked):
            return np.concatenate([self.numbers(array.tensor) for array in tensor.encoded.arrays])
        if tensor.encoded is None:
            return np.frombuffer(self._stored(tensor), np.uint8).reshape(tensor.parameters, -1)
        encoding, arrays = tensor.encoded.encoding, tensor.encoded.arrays
        ranges = encoding.ranges(tensor.shape, 0, tensor.parameters)
        parts = [self._stored(array.tensor)[start:stop] for array, (start, stop) in zip(arrays, ranges, strict=False)]
        assert [stop for _, stop in ranges] == [array.tensor.nbytes for array, _ in zip(arrays, ranges, strict=False)]
        out = bytearray(tensor.parameters * {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[encoding.numbers])
        decode(encoding, parts, tensor.shape, 0, tensor.parameters, memoryview(out))
        if encoding.numbers == tensor.dtype:
            return np.frombuffer(out, np.uint8).reshape(tensor.parameters, -1)
        return np.frombuffer(out, {"F32": np.float32, "F64": np.float64}[encoding.numbers]).astype(np.float64)

    def _stored(self, tensor):
        return self._bytes[tensor.file][tensor.start : tensor.stop]


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
        np.testing.assert_array_equal(numbers.reshape(-1), state[name].contiguous().view(torch.uint8).numpy().reshape(-1))


def test_models_that_share_their_tensors_go_on_doing_so(saved):
    base, other = opened(saved("qwen3_moe", as_on_hub=True)), opened(saved("qwen3_moe", as_on_hub=False))
    twin = replace(other, url="elsewhere")
    found = all_paired({"base": base, "one": other, "two": twin, "same": replace(base, url="a copy")}, "base")
    assert found["one"].tensors is found["two"].tensors
    assert found["two"].url == "elsewhere"
    assert found["base"] is base
    assert found["same"].tensors is base.tensors


def changed(saved_folder, tmp_path, change, name="changed", **config):
    """A copy of a model, its tensors and config changed."""
    tensors = {key: value.contiguous() for key, value in change(oracle.load(saved_folder)).items()}
    table = json.loads((saved_folder / "config.json").read_text())
    for key, value in config.items():
        table[key] = value
    return save_model(tmp_path / name, tensors, config=table)


def same(tensors):
    return tensors


def transposed_experts(tensors):
    return {name: tensor.mT if tensor.ndim == 3 and ".experts." in name else tensor for name, tensor in tensors.items()}


def apart(tensors, is_transposed=False):
    """Experts that lie together, each by itself."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 3 or ".experts." not in name:
            found[name] = tensor
            continue
        module, _, part = name.rpartition(".")
        for number, expert in enumerate(tensor.mT if is_transposed else tensor):
            halves = expert.chunk(2) if part == "gate_up_proj" else [expert]
            for end, half in zip(("gate_proj", "up_proj") if part == "gate_up_proj" else (part,), halves, strict=True):
                found[f"{module}.{number}.{end}.weight"] = half.clone()
    return found


@pytest.mark.parametrize("hidden", [32, 48, 24], ids=["no_squares", "square_gate_up", "square_down"])
def test_experts_lie_transposed_where_any_of_their_sizes_says_so(tmp_path, hidden):
    """Squares say nothing, and follow the other tensor of their layer."""
    tensors = {
        "model.layers.0.mlp.experts.gate_up_proj": torch.randn(3, hidden, 48),
        "model.layers.0.mlp.experts.down_proj": torch.randn(3, 24, hidden),
    }
    config = {"model_type": "qwen3_vl_moe", "architectures": ["Q"]}
    base = save_model(tmp_path / "base", tensors, config=config)
    other = changed(base, tmp_path, transposed_experts)
    found = require_the_bases_numbers(opened(base), opened(other))
    assert {*found.pairing.notes} == {"1 × experts.gate_up_proj ← transposed", "1 × experts.down_proj ← transposed"}


def test_matrices_that_are_no_experts_are_never_transposed(tmp_path):
    base = save_model(tmp_path / "base", {"model.a.weight": torch.zeros(2, 3), "model.b.weight": torch.zeros(2, 3, 4)})
    other = save_model(tmp_path / "other", {"model.a.weight": torch.zeros(3, 2), "model.b.weight": torch.zeros(2, 4, 3)})
    assert paired(opened(base), opened(other)).tensors == opened(other).tensors


def gpt_oss_in_mxfp4(tensors):
    """As it is published: experts [experts, out, in] in four bits."""
    found = {}
    for name, tensor in tensors.items():
        is_expert = tensor.ndim == 3 and ".experts." in name
        found |= quantised.mxfp4(name, tensor.mT.contiguous(), "gpt-oss") if is_expert else {name: tensor}
    return found


def test_gpt_oss_in_four_bits_and_in_plain_numbers_are_one_model_both_ways(saved, tmp_path):
    plain = saved("gpt_oss", as_on_hub=True)
    four_bits = changed(plain, tmp_path, gpt_oss_in_mxfp4, quantization_config={"quant_method": "mxfp4"})
    decoded = quantised.numbers(four_bits)
    packed = with_logical_tensors(opened(four_bits))
    for base, other in ((packed, opened(plain)), (opened(plain), packed)):
        found = paired(base, other)
        assert found.pairing.problems == ()
        assert {name: tensor.shape for name, tensor in found.tensors.items()} == {name: t.shape for name, t in base.tensors.items()}
        files = Files(found)
        for name, tensor in found.tensors.items():
            if tensor.encoded is None or ".experts." not in name:
                continue
            if other is packed:
                np.testing.assert_array_equal(files.numbers(tensor), decoded[name].mT.reshape(-1).numpy())
            else:
                want = oracle.load(plain)[name].mT.contiguous().view(torch.uint8).numpy()
                np.testing.assert_array_equal(files.numbers(tensor).reshape(-1), want.reshape(-1))
        assert sum(tensor.encoded is not None for tensor in found.tensors.values()) == 4


def test_rows_that_lie_in_turns_are_never_taken_for_one_behind_the_other(saved, tmp_path):
    plain = saved("gpt_oss", as_on_hub=True)
    split = changed(plain, tmp_path, lambda tensors: apart(tensors, is_transposed=True))
    for base, other in ((plain, split), (split, plain)):
        [(problem, remedy)] = paired(opened(base), opened(other)).pairing.problems
        assert "in turns" in problem
        assert "save_pretrained" in remedy
        report = compare(opened(base), [paired(opened(base), opened(other))], STORAGE)
        assert [mismatch.subject for mismatch in report.mismatches] == ["layout"]


def llama4(tmp_path):
    tensors = {
        "model.layers.0.feed_forward.experts.gate_up_proj": torch.randn(3, 32, 48).bfloat16(),
        "model.layers.0.feed_forward.experts.down_proj": torch.randn(3, 24, 32).bfloat16(),
    }
    return save_model(tmp_path / "together", tensors, config={"model_type": "llama4_text", "architectures": ["L"]})


def test_experts_apart_are_found_in_a_tensor_of_all_that_lies_transposed(tmp_path):
    together = llama4(tmp_path)
    split = changed(together, tmp_path, lambda tensors: apart(tensors, is_transposed=True))
    found = require_the_bases_numbers(opened(split), opened(together))
    assert "3 × experts.*.gate_proj.weight ← 1 fused tensor, transposed" in found.pairing.notes


def test_columns_of_gate_and_up_side_by_side_are_not_made_of_experts_apart(tmp_path):
    together = llama4(tmp_path)
    split = changed(together, tmp_path, lambda tensors: apart(tensors, is_transposed=True))
    [(problem, _)] = paired(opened(together), opened(split)).pairing.problems
    assert "side by side" in problem


@pytest.mark.parametrize("squares", [True, False])
def test_sizes_that_allow_two_ways_are_a_problem_unless_another_tensor_or_the_type_tells(tmp_path, squares):
    module, hidden = "model.layers.0.mlp.experts", 32 if squares else 24
    tensors = {f"{module}.up_proj": torch.randn(2, hidden, 32), f"{module}.down_proj": torch.randn(2, 32, hidden)}
    together = save_model(tmp_path / "together", tensors)
    split = changed(together, tmp_path, apart)
    found = paired(opened(split), opened(together))
    if squares:
        assert "do not say" in found.pairing.problems[0][0]
    else:
        require_the_bases_numbers(opened(split), opened(together))


def test_sizes_that_do_not_fit_and_experts_that_are_missing_are_problems(saved, tmp_path):
    base = opened(saved("qwen3_moe", as_on_hub=False))
    folder = saved("qwen3_moe", as_on_hub=True)
    lost = ".experts.2.up_proj"
    short = changed(folder, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if lost not in n}, "short")
    narrow = changed(folder, tmp_path, lambda tensors: {n: t[:20] if lost in n else t for n, t in tensors.items()}, "narrow")
    for other, said in ((short, "is missing"), (narrow, "the base needs")):
        found = paired(base, opened(other))
        assert said in found.pairing.problems[0][0]
        report = compare(base, [found], STORAGE)
        assert [mismatch.subject for mismatch in report.mismatches] == ["layout"]


def fp8(tensors):
    found = {}
    for name, tensor in tensors.items():
        is_expert = ".experts." in name and tensor.ndim > 1
        found |= quantised.fp8_block(name, tensor, rows=8, columns=8) if is_expert else {name: tensor}
    return found


FP8 = {"quant_method": "fp8", "weight_block_size": [8, 8]}


@pytest.mark.parametrize("base_layout", ["fp8 apart", "fp8 together", "plain apart", "plain together"])
@pytest.mark.parametrize("layout", ["fp8 apart", "fp8 together", "plain apart", "plain together"])
def test_scales_go_along_where_their_blocks_do(saved, tmp_path, base_layout, layout):
    def made(name, kind):
        coded, _, place = kind.partition(" ")
        folder = saved("qwen3_moe", as_on_hub=place == "apart")
        if coded == "plain":
            return opened(folder), {key: value.double() for key, value in oracle.load(folder).items()}
        path = changed(folder, tmp_path, fp8, name, quantization_config=FP8)
        return with_logical_tensors(opened(path)), quantised.numbers(path, 8)

    (base, _), (other, _) = made("base", base_layout), made("other", layout)
    found = paired(base, other)
    assert found.pairing.problems == ()
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {name: tensor.shape for name, tensor in base.tensors.items()}
    _, truth = made("truth", f"{layout.partition(' ')[0]} {base_layout.partition(' ')[2]}")
    files = Files(found)
    for name, tensor in found.tensors.items():
        held = files.numbers(tensor)
        if held.dtype == np.uint8:
            held = torch.from_numpy(held.copy()).view(torch.bfloat16).double().numpy()
        np.testing.assert_array_equal(held.reshape(-1), truth[name].reshape(-1).numpy(), err_msg=name)


def test_rows_inside_a_block_of_scales_are_a_problem(saved, tmp_path):
    """24 rows of the gate, blocks of 16: the second block is of the gate and of what is above it."""
    folder = saved("qwen3_moe", as_on_hub=False)
    config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    together = changed(folder, tmp_path, lambda tensors: {
        key: value for name, tensor in tensors.items()
        for key, value in (quantised.fp8_block(name, tensor) if tensor.ndim == 3 else {name: tensor}).items()
    }, quantization_config=config)  # fmt: skip
    found = paired(opened(saved("qwen3_moe", as_on_hub=True)), with_logical_tensors(opened(together)))
    assert "inside a block of 16" in found.pairing.problems[0][0]


PREFIXES = ["", "model.", "language_model.model.", "model.language_model.", "backbone.", "thinker.model.", "_orig_mod.model."]


@pytest.mark.parametrize("ours", PREFIXES)
@pytest.mark.parametrize("theirs", PREFIXES)
def test_what_is_around_a_language_model_is_no_difference(tmp_path, ours, theirs):
    def tensors(prefix, seed):
        torch.manual_seed(seed)
        return {f"{prefix}{name}": torch.randn(4, 3) for name in ("embed_tokens.weight", "layers.0.a.weight", "layers.10.a.weight")}

    base, other = (save_model(tmp_path / name, tensors(prefix, 1)) for name, prefix in (("base", ours), ("other", theirs)))
    require_the_bases_numbers(opened(base), opened(other))


def test_modules_that_were_compiled_one_by_one_have_their_names(tmp_path):
    base = save_model(tmp_path / "base", {"model.layers.0.mlp.up_proj.weight": torch.ones(2)})
    other = save_model(tmp_path / "other", {"model.layers.0._orig_mod.mlp.up_proj.weight": torch.ones(2)})
    require_the_bases_numbers(opened(base), opened(other))


def test_two_tensors_of_one_spelling_are_told_apart_or_not_at_all(tmp_path):
    base = save_model(tmp_path / "base", {"model.language_model.norm.weight": torch.ones(2), "a": torch.ones(1)})
    norms = {"model.norm.weight": torch.ones(2), "language_model.norm.weight": torch.ones(2)}
    other = save_model(tmp_path / "other", {**norms, "a": torch.ones(1)})
    assert paired(opened(base), opened(other)).tensors == opened(other).tensors


def test_a_name_is_another_only_where_the_shape_is_the_same(tmp_path):
    base = save_model(tmp_path / "base", {"model.norm.weight": torch.ones(2), "model.embed_tokens.weight": torch.ones(5, 2)})
    other = save_model(tmp_path / "other", {"norm.weight": torch.ones(3), "embed_tokens.weight": torch.ones(6, 2)})
    found = paired(opened(base), opened(other))
    assert found.tensors.keys() == {"norm.weight", "model.embed_tokens.weight"}, "vocabularies may differ, and are told as such"


JOINED = {
    "phi3": ("self_attn.qkv_proj.weight", ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")),
    "sarvam_moe": ("attention.query_key_value.weight", ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")),
    "olmo_hybrid": ("linear_attn.conv1d.weight", tuple(f"linear_attn.{part}_conv1d.weight" for part in "qkv")),
    "qwen4_exp": ("ngram_embedding.weight", tuple(f"ngram_embedding.shard_{number}.weight" for number in range(3))),
}


@pytest.mark.parametrize("family", JOINED)
@pytest.mark.parametrize("is_whole", [True, False])
def test_rows_of_one_tensor_are_several_where_the_type_of_the_model_says_so(tmp_path, family, is_whole):
    end, parts = JOINED[family]
    sizes, outer = (6, 4, 4), (1, 5) if "conv" in end else (5,)
    whole = torch.randn(sum(sizes), *outer)
    apart = dict(zip([f"model.layers.3.{part}" for part in parts], [part.clone() for part in whole.split(sizes)], strict=True))
    folders = {}
    for model_type in (family, "unheard_of"):
        config = {"model_type": model_type, "architectures": ["A"]}
        for name, tensors in (("whole", {f"model.layers.3.{end}": whole}), ("apart", apart)):
            folders[model_type, name] = save_model(tmp_path / model_type / name, tensors, config=config)
    order = ("whole", "apart") if is_whole else ("apart", "whole")
    require_the_bases_numbers(*(opened(folders[family, name]) for name in order))
    base, other = (opened(folders["unheard_of", name]) for name in order)
    assert paired(base, other) is other


def test_parts_that_do_not_make_the_whole_are_a_problem(tmp_path):
    config = {"model_type": "phi3", "architectures": ["A"]}
    base = save_model(tmp_path / "base", {"layers.0.mlp.gate_up_proj.weight": torch.ones(8, 2)}, config=config)
    parts = {"layers.0.mlp.gate_proj.weight": torch.ones(4, 2), "layers.0.mlp.up_proj.weight": torch.ones(3, 2)}
    other = save_model(tmp_path / "other", parts, config=config)
    found = paired(opened(base), opened(other))
    assert "do not make [8, 2]" in found.pairing.problems[0][0]
    assert [mismatch.subject for mismatch in compare(opened(base), [found], STORAGE).mismatches] == ["layout"]


def text_only(tensors):
    return {name.replace("language_model.", ""): tensor for name, tensor in tensors.items() if "language_model" in name}


def test_a_post_of_text_alone_leaves_the_towers_of_the_base_as_they_are(saved, tmp_path):
    wrapped = saved("gemma3", as_on_hub=False)
    table = json.loads((wrapped / "config.json").read_text())
    config = table["text_config"] | {"architectures": ["Gemma3ForCausalLM"]}
    text = save_model(tmp_path / "text", text_only(oracle.load(wrapped)), config=config)
    base = opened(wrapped)
    found = paired(base, opened(text))
    assert found.pairing.absent == {name for name in base.tensors if "vision_tower" in name or "projector" in name}
    report = compare(base, [found], STORAGE)
    assert report.mismatches == ()
    assert any("lacks the vision tower: " in note and "stays the base's" in note for note in report.notes)


def test_a_tower_that_is_there_in_part_is_damaged_and_no_choice(saved, tmp_path):
    wrapped = saved("gemma3", as_on_hub=False)
    base = opened(wrapped)
    lost = next(name for name in base.tensors if "vision_tower" in name)
    found = paired(base, opened(changed(wrapped, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != lost})))
    assert found.pairing.absent == frozenset()
    assert [mismatch.problem for mismatch in compare(base, [found], STORAGE).mismatches] == [f"'{lost}' is missing"]


def with_mtp(tensors):
    more = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in tensors.items() if "layers.1." in name}
    return tensors | more | {"model.layers.2.eh_proj.weight": torch.ones(2, 2), "model.layers.2.shared_head.head.weight": torch.ones(4, 2)}


def test_layers_behind_those_that_the_config_counts_are_the_bases_where_a_post_has_none(saved, tmp_path):
    plain = saved("deepseek_v3", as_on_hub=True)
    more = changed(plain, tmp_path, with_mtp)
    base, other = opened(more), opened(plain)
    found = paired(base, other)
    assert found.pairing.absent == {name for name in base.tensors if "layers.2." in name}
    assert found.tensors is other.tensors
    report = compare(base, [found], STORAGE)
    assert report.mismatches == ()
    assert [note for note in report.notes if "lacks the MTP layer: 28 tensors" in note]
    back = paired(other, base)
    report = compare(other, [back], STORAGE)
    assert report.mismatches == ()
    assert [note for note in report.notes if "has the MTP layer: 28 tensors" in note and "left out" in note]


def test_an_mtp_layer_under_a_name_that_no_rule_knows_is_no_absent_one(saved, tmp_path):
    plain = saved("deepseek_v3", as_on_hub=True)
    base = opened(changed(plain, tmp_path, with_mtp, "base"))
    renamed = changed(plain, tmp_path, lambda tensors: {
        name.replace("model.layers.2.", "mtp.0."): tensor for name, tensor in with_mtp(tensors).items()
    }, "other")  # fmt: skip
    found = paired(base, opened(renamed))
    assert found.pairing.absent == frozenset()
    assert compare(base, [found], STORAGE).mismatches


def test_a_layer_that_the_config_counts_is_never_absent(saved, tmp_path):
    plain = saved("deepseek_v3", as_on_hub=True)
    base = opened(plain)
    found = paired(base, opened(changed(plain, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "layers.1." not in n})))
    assert found.pairing.absent == frozenset()
    assert compare(base, [found], STORAGE).mismatches


def test_other_differences_leave_a_model_the_very_same(tmp_path):
    base = save_model(tmp_path / "base", {"model.embed_tokens.weight": torch.ones(4, 2), "model.a.weight": torch.ones(2)})
    other = save_model(tmp_path / "other", {"model.embed_tokens.weight": torch.ones(5, 2), "model.b.weight": torch.ones(2)})
    held = opened(other)
    assert paired(opened(base), held) is held


def plain_tensor(shape, start=0, dtype="BF16"):
    return Tensor(dtype, shape, 0, start, start + 2 * prod(shape))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_experts_taken_apart_and_put_together_lie_where_they_lay(experts, rows, columns, is_gated):
    parts = 2 if is_gated else 1
    whole = StoredArray("whole", plain_tensor((experts, parts * rows, columns), 40))
    pieces = [cut(whole, number * rows * columns, (rows, columns)) for number in range(experts * parts)]
    again = stacked(pieces, whole.tensor.shape)
    places = [(array.tensor.start, array.tensor.stop) for array in again.encoded.arrays]
    assert places[0][0] == whole.tensor.start
    assert places[-1][1] == whole.tensor.stop
    assert all(one[1] == other[0] for one, other in pairwise(places))


@pytest.mark.parametrize("shape", [(1 << 62, 0, 4), (0, 8, 4)])
def test_a_header_that_claims_experts_without_numbers_takes_no_memory(shape):
    base, other = giant(1, 2, together=False), giant(1, 2, together=True)
    claimed = Tensors({name: tensor._replace(shape=shape, stop=tensor.start) for name, tensor in other.tensors.items()})
    for ours, theirs in ((base, replace(other, tensors=claimed)), (replace(other, tensors=claimed), base)):
        assert paired(ours, theirs).pairing.problems


def test_numbers_and_codes_are_not_stacked():
    pieces = [StoredArray("a", plain_tensor((2, 2))), StoredArray("b", plain_tensor((2, 2), dtype="I16"))]
    with pytest.raises(Uncut, match="BF16, I16"):
        stacked(pieces, (2, 2, 2))


def test_what_has_no_whole_bytes_is_not_cut():
    with pytest.raises(Uncut):
        cut(StoredArray("a", Tensor("F4", (4, 4), 0, 0, 8)), 4, (1, 4))


def giant(layers, experts, *, together):
    """A model of many experts, of which nothing is read."""
    tensors = {}
    for layer in range(layers):
        module = f"model.layers.{layer}.mlp.experts"
        if together:
            tensors[f"{module}.gate_up_proj"] = plain_tensor((experts, 8, 4))
            tensors[f"{module}.down_proj"] = plain_tensor((experts, 4, 4))
        else:
            for expert in range(experts):
                for part in ("gate_proj", "up_proj", "down_proj"):
                    tensors[f"{module}.{expert}.{part}.weight"] = plain_tensor((4, 4))
    return Checkpoint("giant", (), Tensors(tensors), {"model_type": "deepseek_v3", "num_hidden_layers": layers}, {}, ())


@pytest.mark.parametrize("together", [True, False], ids=["base_together", "base_apart"])
def test_two_hundred_thousand_experts_take_about_a_second(together):
    base, other = giant(174, 384, together=together), giant(174, 384, together=not together)
    gc.disable()  # as while a plan is made
    try:
        begin = process_time()
        found = paired(base, other)
        taken = process_time() - begin
    finally:
        gc.enable()
    assert found.tensors.keys() == base.tensors.keys()
    print(f"{taken:.2f} s for {max(len(base.tensors), len(other.tensors)):,} tensors")
    assert taken < 4  # measured 1.1; the machine may be busy


def test_a_merge_takes_each_number_from_where_it_lies(saved, tmp_path):
    """Base and base of the delta as they lie in memory, the post as on the hub: the merge is that of models in one layout."""
    torch.manual_seed(1)
    memory, hub = saved("qwen3_moe", as_on_hub=False), saved("qwen3_moe", as_on_hub=True)

    def drifted(tensors):
        torch.manual_seed(2)
        return {name: tensor + 0.01 * torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in sorted(tensors.items())}

    post_apart = changed(hub, tmp_path, drifted, "post")
    new = changed(memory, tmp_path, drifted, "new")
    out = tmp_path / "out"
    api.merge(Recipe(base=str(new), deltas=({"post": str(post_apart), "base": str(memory), "weight": 1.0},), output=str(out)))
    post = oracle.load(post_apart)
    base, old, made = oracle.load(new), oracle.load(memory), oracle.load(out)
    fused = dict(post)
    for name in old:
        if ".experts." in name:
            module, _, part = name.rpartition(".")
            parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
            experts = [torch.cat([fused.pop(f"{module}.{number}.{each}.weight") for each in parts]) for number in range(4)]
            fused[name] = torch.stack(experts)
    assert made.keys() == base.keys()
    for name, tensor in made.items():
        want = (base[name].float() + (fused[name].float() - old[name].float())).to(tensor.dtype)
        assert torch.equal(tensor, want), name


def test_a_wrapper_is_merged_with_posts_of_another_prefix_and_of_text_alone(saved, tmp_path):
    """Embeddings tied, towers the base's where one model of the delta has none."""
    memory, hub = saved("gemma3", as_on_hub=False), saved("gemma3", as_on_hub=True)
    table = json.loads((memory / "config.json").read_text())
    config = table["text_config"] | {"architectures": ["Gemma3ForCausalLM"]}
    text = save_model(tmp_path / "text", text_only(oracle.load(memory)), config=config)
    doubled = changed(hub, tmp_path, lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()}, "doubled")
    for number, old in enumerate((hub, text)):
        out = tmp_path / f"out{number}"
        result = api.merge(Recipe(base=str(memory), deltas=({"post": str(doubled), "base": str(old), "weight": 1.0},), output=str(out)))
        made, base = oracle.load(out), oracle.load(memory)
        assert made.keys() == base.keys()
        for name, tensor in made.items():
            is_kept = old is text and ("vision_tower" in name or "projector" in name)
            assert torch.equal(tensor, base[name] if is_kept else base[name] * 2), name
    assert any("lacks the vision tower" in note for note in result.report["notes"])


def test_a_post_without_the_mtp_layer_is_merged_and_the_layer_is_the_bases(saved, tmp_path):
    plain = saved("deepseek_v3", as_on_hub=True)
    base = changed(plain, tmp_path, with_mtp, "base")
    doubled = changed(plain, tmp_path, lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()}, "doubled")
    out = tmp_path / "out"
    result = api.merge(Recipe(base=str(base), deltas=({"post": str(doubled), "base": str(base), "weight": 1.0},), output=str(out)))
    made, held = oracle.load(out), oracle.load(base)
    assert all(torch.equal(made[name], held[name] * (1 if "layers.2." in name else 2)) for name in held)
    assert any("MTP layer: 28 tensors" in note for note in result.report["notes"])
