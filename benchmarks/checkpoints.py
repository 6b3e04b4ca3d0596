"""Making checkpoints: random ones in the shape of real models, and sparse ones of any size, whose data are holes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import harness

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

MODELS = ("new", "post", "old")
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 32, 8, 128_256
"""Of Llama-3.2-1B, which has 16 layers."""
PIECE = 1 << 22
"""Elements made at a time."""


def llama(*, layers: int, hidden: int, intermediate: int, kv: int, vocabulary: int, tied: bool) -> Shapes:
    """Names and shapes of a Llama; `kv` is the width of its keys and values."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= attention(prefix, hidden=hidden, kv=kv)
        shapes |= feed_forward(f"{prefix}.mlp", hidden=hidden, intermediate=intermediate)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def experts(*, layers: int, experts: int, hidden: int, intermediate: int, kv: int, vocabulary: int) -> Shapes:
    """Names and shapes of a Mixture of Experts, each expert with three tensors of its own."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= attention(prefix, hidden=hidden, kv=kv)
        shapes[f"{prefix}.mlp.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            shapes |= feed_forward(f"{prefix}.mlp.experts.{expert}", hidden=hidden, intermediate=intermediate)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def attention(prefix: str, *, hidden: int, kv: int) -> Shapes:
    return {
        f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
        f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
        f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
        f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
    }


def feed_forward(prefix: str, *, hidden: int, intermediate: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (intermediate, hidden),
        f"{prefix}.up_proj.weight": (intermediate, hidden),
        f"{prefix}.down_proj.weight": (hidden, intermediate),
    }


def header(shapes: Mapping[str, Shape]) -> tuple[bytes, int]:
    """The beginning of a safetensors file of bfloat16 tensors, and how many bytes of data follow it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place := place + 2 * math.prod(shape)]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, place


def sparse(folder: Path, shapes: Shapes, *, files: int, config: Mapping[str, object]) -> None:
    """A checkpoint with real headers and index, whose data are holes: it takes no disk, whatever its size."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, weight_map = list(shapes), {}
    for number in range(files):
        part = names[number * len(names) // files : (number + 1) * len(names) // files]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        head, size = header({name: shapes[name] for name in part})
        (folder / file).write_bytes(head)
        os.truncate(folder / file, len(head) + size)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def random_models(layers: int) -> list[Path]:
    """Folders of new base, post and old base: Llama-3.2-1B cut or stretched to so many layers. Made once and kept."""
    root = harness.cache() / f"llama-{layers}-layers"
    if not root.exists():
        print(f"  making three random models of {layers} layers in {root} …", flush=True)
        unfinished = root.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        # in a process of its own: torch's memory shall not be that of the process whose children are measured
        subprocess.run([sys.executable, "-m", "benchmarks.checkpoints", unfinished, str(layers)], cwd=harness.REPOSITORY, check=True)
        unfinished.rename(root)
    return [root / name for name in MODELS]


def _make(root: Path, layers: int) -> None:
    """An old base from a normal distribution, a new base and a post that have drifted from it, as trained models do."""
    import torch

    shapes = llama(layers=layers, hidden=HIDDEN, intermediate=INTERMEDIATE, kv=HIDDEN * KV_HEADS // HEADS, vocabulary=VOCABULARY, tied=True)
    head, size = header(shapes)
    generator = torch.Generator().manual_seed(layers)
    outputs = []
    for name in MODELS:
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(_config(layers)))
        outputs.append((root / name / "model.safetensors").open("wb"))
        outputs[-1].write(head)
    for start in range(0, size // 2, PIECE):
        count = min(PIECE, size // 2 - start)
        old = 0.02 * torch.randn(count, generator=generator)
        for output, drift in zip(outputs, (4e-3, 1e-3, 0.0), strict=True):
            values = old + drift * torch.randn(count, generator=generator) if drift else old
            output.write(values.bfloat16().view(torch.uint8).numpy().data)
    for output in outputs:
        output.close()


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
        "torch_dtype": "bfloat16",
    }


if __name__ == "__main__":
    _make(Path(sys.argv[1]), int(sys.argv[2]))
