"""The demo: three small homologous Llama checkpoints, merged the way large ones are, then checked against plain memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from paramdelta_dist import api
from paramdelta_dist.cli import progress, tables
from paramdelta_dist.errors import IntegrityError, UsageError
from paramdelta_dist.recipe.yaml_text import parse_recipe
from paramdelta_dist.sizes import format_size

if TYPE_CHECKING:
    import torch

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 512, 1408, 8, 8, 4, 4096

RECIPE = """\
base: {folder}/new-base             # the new base, which receives what post-training taught the old one
deltas:
  - post: {folder}/old-instruct     # the old base after post-training
    base: {folder}/old-base
    weight: 1.0
output: {folder}/new-instruct
shard_size: 16MiB
"""


def run(folder: str, *, engine: api.Engine) -> dict[str, Any]:
    """Make the models below `folder`, merge them on two workers, compare, and say what to do next.

    Raises IntegrityError if one element of the result is not what a merge in memory gives.
    """
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    root = Path(folder)
    if root.exists() and any(root.iterdir()) and not (root / "recipe.yaml").exists():
        raise UsageError(f"{folder} exists and holds something else; name another folder: paramdelta-dist demo FOLDER")
    say(f"[bold]1. Three small Llama checkpoints[/] in {folder}: old-base, old-instruct and new-base, cut into different files")
    make_models(root)
    text = RECIPE.format(folder=folder)
    (root / "recipe.yaml").write_text(text)
    recipe = parse_recipe(text, where=str(root / "recipe.yaml"))
    say(f"\n[bold]2. The plan[/]: paramdelta-dist plan {folder}/recipe.yaml")
    plan, report = api.plan(recipe)
    sizing = api.plan_workers(plan, engine=engine)
    document = api.plan_document(plan, sizing, report)
    with_time = {**document, "bandwidth": 10**9, "seconds_at_bandwidth": (plan.bytes_to_read + plan.bytes_to_write) / 1e9}
    tables.plan_tables(with_time, stream=sys.stderr)
    where = "an embedded Ray cluster" if engine == "ray" else "threads of this process"
    say(f"\n[bold]3. The merge[/] on {where}: paramdelta-dist merge {folder}/recipe.yaml --engine {engine}")
    with progress.progress() as observer:
        result = api.merge(recipe, engine=engine, workers=2, overwrite=True, observer=observer)
    merged = tables.merge_document(result)
    tables.merge_summary(merged, stream=sys.stderr)
    say("\n[bold]4. The check[/]: the same sum with whole tensors in memory, in float64, rounded once")
    began = time.monotonic()
    elements, different = compare_with_memory(root)
    say(f"   {elements:,} elements compared in {time.monotonic() - began:.1f} s, {different} differ")
    if different:
        raise IntegrityError(f"{different} elements of {root / 'new-instruct'} are not what a merge in memory gives")
    say(
        f"\n[bold]Next[/], with your own models: change the paths in {folder}/recipe.yaml (local, s3://, gs://, hf://, …), then\n"
        "   paramdelta-dist check recipe.yaml    do they fit together?\n"
        "   paramdelta-dist plan recipe.yaml     what will be read, written, and how much memory it takes\n"
        "   paramdelta-dist merge recipe.yaml    here; with --engine ray on a cluster (RAY_ADDRESS)"
    )
    return {"folder": str(root), "plan": document, "merge": merged, "elements": elements, "different": different}


def make_models(root: Path) -> None:
    """Write old-base, old-instruct and new-base below `root` in Hugging Face layout, random but the same every time."""
    import torch

    generator = torch.Generator().manual_seed(2504_21023)

    def drift(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
        return {
            name: (tensor.float() + scale * torch.randn(tensor.shape, generator=generator)).bfloat16() for name, tensor in weights.items()
        }

    old = {
        name: (torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)).bfloat16()
        for name, shape in _shapes().items()
    }
    _save(root / "old-base", old, files=2, chat=False)
    _save(root / "old-instruct", drift(old, 1e-3), files=3, chat=True)
    _save(root / "new-base", drift(old, 4e-3), files=4, chat=False)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    key_width = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (key_width, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (key_width, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    return {**shapes, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def _save(folder: Path, weights: dict[str, torch.Tensor], *, files: int, chat: bool) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names = list(weights)
    weight_map: dict[str, str] = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = names[number * len(names) // files : (number + 1) * len(names) // files]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    documents: dict[str, Any] = {
        "model.safetensors.index.json": {"metadata": {"total_size": size}, "weight_map": weight_map},
        "config.json": _config(),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(chat=chat),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 3] if chat else 2},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")
    print(f"   {folder}: {format_size(size)} in {files} files", file=sys.stderr)


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


SPECIAL = ("<unk>", "<s>", "</s>", "<|end_of_turn|>")


def _tokenizer() -> dict[str, Any]:
    """A word-level tokenizer over invented words, in the format of the `tokenizers` library."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *(f"w{n}" for n in range(VOCABULARY - len(SPECIAL)))))}
    added = [
        {"id": number, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for number, token in enumerate(SPECIAL)
    ]
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}


def _tokenizer_config(*, chat: bool) -> dict[str, Any]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    template = "{% for message in messages %}{{ message['content'] }} <|end_of_turn|> {% endfor %}"
    return {**config, "chat_template": template} if chat else config


def compare_with_memory(root: Path) -> tuple[int, int]:
    """Elements of the merged model below `root`, and how many of them are not the float64 sum rounded to bfloat16."""
    import torch

    new, post, old, merged = (_load(root / name) for name in ("new-base", "old-instruct", "old-base", "new-instruct"))
    elements = different = 0
    for name, base in new.items():
        expected = (base.double() + (post[name].double() - old[name].double())).bfloat16()
        elements += expected.numel()
        different += int(torch.count_nonzero(expected != merged[name]))
    return elements, different


def _load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
