"""Checkpoints of the largest models: real names, shapes, dtypes and configs, and holes in place of data, so that each takes the disk
space of its headers alone.

Sizes are those of the public configs. Where a model's maker has not published one (Kimi-K3), sizes are chosen that give the published
count of tensors and parameters.
"""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES

INDEX = "model.safetensors.index.json"
Stored = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a stored tensor."""
Linear = Callable[[str, int, int], Iterator[Stored]]
"""The stored tensors of a matrix [rows, columns], by its name without `.weight`."""


class Giant(NamedTuple):
    config: dict
    tensors: Callable[[], Iterator[Stored]]
    files: int
    stored: int
    """Tensors in the headers."""
    logical: int
    parameters: float
    """As published, in billions, extra layers that predict more tokens counted in."""


def build(giant, path):
    """The folder of a giant."""
    return sparse_model(path, giant.tensors(), giant.config, giant.files)


def sparse_model(path, tensors, config, files=1):
    """The folder of a model with these tensors in this order, in files of about one size."""
    path.mkdir(parents=True)
    tensors = [*tensors]
    sizes = [DTYPES[dtype].nbytes(tuple(shape)) for _, dtype, shape in tensors]
    total = sum(sizes)
    shards, filled = [[] for _ in range(files)], 0
    for tensor, size in zip(tensors, sizes, strict=True):
        shards[min(files - 1, filled * files // max(1, total))].append((*tensor, size))
        filled += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{files:06}.safetensors"
        _write(path / name, shard)
        weight_map |= dict.fromkeys((tensor[0] for tensor in shard), name)
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


def _write(path, shard):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, size in shard:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def plain(name, rows, columns):
    yield f"{name}.weight", "BF16", (rows, columns)


def fp8(name, rows, columns, dtype="F32"):
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", dtype, (-(-rows // 128), -(-columns // 128))


def int4(name, rows, columns):
    yield f"{name}.weight_packed", "I32", (rows, columns // 8)
    yield f"{name}.weight_scale", "BF16", (rows, columns // 32)
    yield f"{name}.weight_shape", "I32", (2,)


def mxfp4(name, rows, columns):
    yield f"{name}.weight_packed", "U8", (rows, columns // 2)
    yield f"{name}.weight_scale", "U8", (rows, columns // 32)


def nvfp4(name, rows, columns):
    yield f"{name}.weight", "U8", (rows, columns // 2)
    yield f"{name}.weight_scale", "F8_E4M3", (rows, columns // 16)
    yield f"{name}.weight_scale_2", "F32", ()
    yield f"{name}.input_scale", "F32", ()


def vector(name, size, dtype="BF16"):
    yield name, dtype, (size,)


def gated(name, hidden, inner, linear, projections=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = projections
    yield from linear(f"{name}.{gate}", inner, hidden)
    yield from linear(f"{name}.{up}", inner, hidden)
    yield from linear(f"{name}.{down}", hidden, inner)


def latent_attention(name, hidden, heads, linear):
    """Multi-head latent attention, as DeepSeek-V3 has it."""
    yield from linear(f"{name}.q_a_proj", 1536, hidden)
    yield from vector(f"{name}.q_a_layernorm.weight", 1536)
    yield from linear(f"{name}.q_b_proj", heads * 192, 1536)
    yield from linear(f"{name}.kv_a_proj_with_mqa", 576, hidden)
    yield from vector(f"{name}.kv_a_layernorm.weight", 512)
    yield from linear(f"{name}.kv_b_proj", heads * 256, 512)
    yield from linear(f"{name}.o_proj", hidden, heads * 128)


class Experts(NamedTuple):
    """The sizes of a model with the architecture of DeepSeek-V3."""

    config: dict
    linear: Linear
    """Of routed experts."""
    rest: Linear
    """Of every other matrix."""

    def tensors(self) -> Iterator[Stored]:
        hidden, layers, vocab = (self.config[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
        yield from plain("model.embed_tokens", vocab, hidden)
        for number in range(layers):
            yield from self._layer(number)
        for number in range(layers, layers + self.config.get("num_nextn_predict_layers", 0)):
            yield from self._layer(number)
            yield from self._more(f"model.layers.{number}", hidden, vocab)
        yield from vector("model.norm.weight", hidden)
        yield from plain("lm_head", vocab, hidden)

    def _layer(self, number) -> Iterator[Stored]:
        config, name, hidden = self.config, f"model.layers.{number}", self.config["hidden_size"]
        yield from vector(f"{name}.input_layernorm.weight", hidden)
        yield from vector(f"{name}.post_attention_layernorm.weight", hidden)
        yield from latent_attention(f"{name}.self_attn", hidden, config["num_attention_heads"], self.rest)
        if number < config["first_k_dense_replace"]:
            yield from gated(f"{name}.mlp", hidden, config["intermediate_size"], self.rest)
            return
        experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
        yield from plain(f"{name}.mlp.gate", experts, hidden)
        yield from vector(f"{name}.mlp.gate.e_score_correction_bias", experts, "F32")
        yield from gated(f"{name}.mlp.shared_experts", hidden, inner, self.rest)
        for expert in range(experts):
            yield from gated(f"{name}.mlp.experts.{expert}", hidden, inner, self.linear)

    @staticmethod
    def _more(name, hidden, vocab) -> Iterator[Stored]:
        """The rest of a layer that predicts one token more."""
        yield from plain(f"{name}.embed_tokens", vocab, hidden)
        yield from vector(f"{name}.enorm.weight", hidden)
        yield from vector(f"{name}.hnorm.weight", hidden)
        yield from plain(f"{name}.eh_proj", hidden, 2 * hidden)
        yield from vector(f"{name}.shared_head.norm.weight", hidden)
        yield from plain(f"{name}.shared_head.head", vocab, hidden)


BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "hidden_size": 7168,
    "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "vocab_size": 129280, "num_attention_heads": 128, "num_key_value_heads": 128,
    "first_k_dense_replace": 3, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "tie_word_embeddings": False, "quantization_config": BLOCKS,
}  # fmt: skip
KIMI = DEEPSEEK | {
    "model_type": "kimi_k2", "num_nextn_predict_layers": 0, "vocab_size": 163840, "num_attention_heads": 64, "num_key_value_heads": 64,
    "first_k_dense_replace": 1, "n_routed_experts": 384,
}  # fmt: skip


def _packed(bits, kind, form):
    weights = {"num_bits": bits, "type": kind, "strategy": "group", "group_size": 32, "symmetric": True, "dynamic": False}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    }  # fmt: skip


THINKING = KIMI | {"quantization_config": _packed(4, "int", "pack-quantized")}
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16", "hidden_size": 4096,
    "num_hidden_layers": 94, "vocab_size": 151936, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "intermediate_size": 12288,
    "tie_word_embeddings": False, "quantization_config": BLOCKS,
}  # fmt: skip
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 36, "vocab_size": 201088, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "num_local_experts": 128, "num_experts_per_tok": 4, "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
    },
}  # fmt: skip
K3 = {
    "architectures": ["KimiK3ForCausalLM"], "model_type": "kimi_k3",
    "text_config": {
        "model_type": "kimi_linear", "dtype": "bfloat16", "hidden_size": 7168, "num_hidden_layers": 93, "vocab_size": 163840,
        "num_attention_heads": 96, "head_dim": 128, "num_experts": 896, "moe_intermediate_size": 1536, "intermediate_size": 18432,
        "first_k_dense_replace": 1, "tie_word_embeddings": False, "quantization_config": _packed(4, "float", "mxfp4-pack-quantized"),
    },
}  # fmt: skip


def qwen() -> Iterator[Stored]:
    config, linear = QWEN, fp8_bf16
    hidden, head = config["hidden_size"], config["head_dim"]
    yield from plain("model.embed_tokens", config["vocab_size"], hidden)
    for number in range(config["num_hidden_layers"]):
        name = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from vector(f"{name}.{norm}.weight", hidden)
        for projection, heads in (("q_proj", 64), ("k_proj", 4), ("v_proj", 4)):
            yield from linear(f"{name}.self_attn.{projection}", heads * head, hidden)
        yield from linear(f"{name}.self_attn.o_proj", hidden, 64 * head)
        for norm in ("q_norm", "k_norm"):
            yield from vector(f"{name}.self_attn.{norm}.weight", head)
        yield from plain(f"{name}.mlp.gate", config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            yield from gated(f"{name}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"], linear)
    yield from vector("model.norm.weight", hidden)
    yield from plain("lm_head", config["vocab_size"], hidden)


def fp8_bf16(name, rows, columns):
    return fp8(name, rows, columns, "BF16")


def gpt_oss() -> Iterator[Stored]:
    config = GPT_OSS
    hidden, experts, head = config["hidden_size"], config["num_local_experts"], config["head_dim"]
    yield from plain("model.embed_tokens", config["vocab_size"], hidden)
    for number in range(config["num_hidden_layers"]):
        name = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from vector(f"{name}.{norm}.weight", hidden)
        for projection, rows, columns in (
            ("q_proj", 64 * head, hidden), ("k_proj", 8 * head, hidden), ("v_proj", 8 * head, hidden), ("o_proj", hidden, 64 * head)
        ):  # fmt: skip
            yield from plain(f"{name}.self_attn.{projection}", rows, columns)
            yield from vector(f"{name}.self_attn.{projection}.bias", rows)
        yield from vector(f"{name}.self_attn.sinks", 64)
        yield from plain(f"{name}.mlp.router", experts, hidden)
        yield from vector(f"{name}.mlp.router.bias", experts)
        for matrix, rows in (("gate_up_proj", 2 * config["intermediate_size"]), ("down_proj", hidden)):
            stem = f"{name}.mlp.experts.{matrix}"
            yield f"{stem}_bias", "BF16", (experts, rows)
            yield f"{stem}_blocks", "U8", (experts, rows, hidden // 32, 16)
            yield f"{stem}_scales", "U8", (experts, rows, hidden // 32)
    yield from vector("model.norm.weight", hidden)
    yield from plain("lm_head", config["vocab_size"], hidden)


def kimi_k3() -> Iterator[Stored]:
    config = K3["text_config"]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    wide, top = heads * config["head_dim"], "language_model.model"
    yield from plain(f"{top}.embed_tokens", config["vocab_size"], hidden)
    for number in range(config["num_hidden_layers"]):
        name = f"{top}.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from vector(f"{name}.{norm}.weight", hidden)
        yield from _delta_attention(f"{name}.self_attn", hidden, wide)
        if number < config["first_k_dense_replace"]:
            yield from gated(f"{name}.mlp", hidden, config["intermediate_size"], plain)
            continue
        moe = f"{name}.block_sparse_moe"
        yield from plain(f"{moe}.gate", config["num_experts"], hidden)
        yield from vector(f"{moe}.gate.e_score_correction_bias", config["num_experts"], "F32")
        yield from gated(f"{moe}.shared_experts", hidden, 2 * config["moe_intermediate_size"], plain)
        for expert in range(config["num_experts"]):
            yield from gated(f"{moe}.experts.{expert}", hidden, config["moe_intermediate_size"], mxfp4, ("w1", "w3", "w2"))
    yield from vector(f"{top}.norm.weight", hidden)
    yield from plain("language_model.lm_head", config["vocab_size"], hidden)


def _delta_attention(name, hidden, wide):
    for projection in ("q", "k", "v"):
        yield from plain(f"{name}.{projection}_proj", wide, hidden)
        yield f"{name}.{projection}_conv1d.weight", "BF16", (wide, 1, 4)
    yield from vector(f"{name}.A_log", 128, "F32")
    yield from vector(f"{name}.dt_bias", wide, "F32")
    yield from plain(f"{name}.f_a_proj", 128, hidden)
    yield from plain(f"{name}.f_b_proj", wide, 128)
    yield from plain(f"{name}.b_proj", 96, hidden)
    yield from plain(f"{name}.g_proj", wide, hidden)
    yield from vector(f"{name}.o_norm.weight", 128)
    yield from plain(f"{name}.o_proj", hidden, wide)


GIANTS = {
    "DeepSeek-V3": Giant(DEEPSEEK, Experts(DEEPSEEK, fp8, fp8).tensors, 163, 91_991, 46_183, 684.5),
    "Kimi-K2": Giant(KIMI, Experts(KIMI, fp8, fp8).tensors, 61, 139_583, 69_975, 1026.4),
    "Kimi-K2-Thinking": Giant(THINKING, Experts(THINKING, int4, plain).tensors, 64, 208_215, 69_975, 1026.4),
    "Kimi-K3": Giant(K3, kimi_k3, 96, 496_546, 249_250, 2800),
    "Qwen3-235B-A22B-FP8": Giant(QWEN, qwen, 24, 73_417, 36_945, 235.1),
    "gpt-oss-120b": Giant(GPT_OSS, gpt_oss, 15, 687, 615, 116.8),
}
"""Stored and logical tensors as the architecture makes them."""
