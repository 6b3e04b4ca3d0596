"""The figures of docs/giants.md, computed by `plan` again from headers of the real sizes, with holes in place of weights."""

import json
import re
import subprocess
import sys

import pytest

from tests import giants
from tests.docs.pages import DOCS, recipe_files
from tests.servers import http_server

PAGE = DOCS / "giants.md"
DEEPSEEK, KIMI, THINKING = (giants.GIANTS[name] for name in ("DeepSeek-V3", "Kimi-K2", "Kimi-K2-Thinking"))
V31 = DEEPSEEK._replace(config=DEEPSEEK.config | {"quantization_config": giants.BLOCKS | {"scale_fmt": "ue8m0"}})
MODELS = {
    "DeepSeek-R1": DEEPSEEK, "DeepSeek-V3-Base": DEEPSEEK, "DeepSeek-V3-0324": DEEPSEEK, "DeepSeek-V3.1-Base": V31,
    "Kimi-K2-Base": KIMI, "Kimi-K2-Instruct": KIMI, "Kimi-K2-Thinking": THINKING,
}  # fmt: skip
RANK = 16
LORA = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "bias": "none",
    "target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}  # fmt: skip
ROWS = {
    "tensors merged": r"^tensors +(\d+) merged",
    "to read": r"^to read +(\S+ \S+) in",
    "requests for reading": r"^to read .* in ([\d,]+) requests",
    "to write": r"^to write +(\S+ \S+) in",
    "requests for writing": r"^to write .* in ([\d,]+) requests",
    "shards of 5 GB": r"^to write .* (\d+) shards",
    "memory of a worker": r"^memory +(.*?) projected",
    "time at 5 GB/s to and from storage": r"^time +(.*?) at 5 GB/s",
}
"""Rows of the table, and where `plan` prints them."""
RECIPES = ("r1-onto-v3.1.yaml", "experts-of-r1.yaml", "adapter-onto-kimi.yaml", "thinking-int4.yaml", "thinking-plain.yaml")
"""In the order of the columns."""


def adapter(path):
    """The folder of an adapter of the attention of Kimi-K2."""

    def factors(name, rows, columns):
        yield f"base_model.model.{name}.lora_A.weight", "BF16", (RANK, columns)
        yield f"base_model.model.{name}.lora_B.weight", "BF16", (rows, RANK)

    config = KIMI.config
    layers = [f"model.layers.{number}.self_attn" for number in range(config["num_hidden_layers"])]
    attention = [giants.latent_attention(name, config["hidden_size"], config["num_attention_heads"], factors) for name in layers]
    tensors = [tensor for layer in attention for tensor in layer if "lora" in tensor[0]]
    giants.sparse_model(path, tensors, {})
    for name in ("config.json", giants.INDEX):
        (path / name).unlink()
    (path / "model-00001-of-000001.safetensors").rename(path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(LORA))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The URL of a folder with all models that the page names."""
    folder = tmp_path_factory.mktemp("giants")
    for name, giant in MODELS.items():
        giants.build(giant, folder / name)
    adapter(folder / "my-lora")
    with http_server(folder) as root:
        yield root


def plan(recipe, root, tmp_path, monkeypatch):
    """The text that `plan` prints of a recipe of the page, whose models are at `root`."""
    for name, value in (("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "none"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_files(PAGE)[recipe].replace("s3://models/", f"{root}/"))
    arguments = ["plan", str(path), "--engine", "ray", "--bandwidth", "5GB"]
    return subprocess.run([sys.executable, "-m", "paramdelta_dist", *arguments], capture_output=True, text=True, check=True).stdout


def table():
    """The cells of each row of the table of figures, by the first of them."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")][2:]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: cells for name, *cells in rows}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_figure_of_the_page_is_what_plan_says(recipe, models, tmp_path, monkeypatch):
    said = plan(recipe, models, tmp_path, monkeypatch)
    column = RECIPES.index(recipe)
    found = {name: re.search(pattern, said, re.M) for name, pattern in ROWS.items()}
    assert all(found.values()), said
    printed = {name: match[1].replace(",", "") for name, match in found.items()}
    assert printed == {name: cells[column].replace(",", "") for name, cells in table().items()}


def test_the_page_has_a_column_for_every_recipe_and_a_row_for_every_figure():
    assert tuple(recipe_files(PAGE)) == RECIPES
    assert list(table()) == list(ROWS)
    assert {len(cells) for cells in table().values()} == {len(RECIPES)}


@pytest.mark.slow
def test_the_child_of_two_models_reads_r1_for_its_routed_experts_alone(models, tmp_path, monkeypatch):
    """What is copied is what the page says: all tensors but those of `.mlp.experts.`"""
    said = plan("experts-of-r1.yaml", models, tmp_path, monkeypatch)
    names = {name for name, _, _ in DEEPSEEK.tensors() if name.endswith(".weight") or "bias" in name}
    routed = {name for name in names if ".mlp.experts." in name}
    assert f" {len(routed)} merged, {len(names) - len(routed)} copied from the base" in said
