"""A memory bound is a bound for side files too: measured from outside, with a tokenizer of 58 MB."""

import json
import re
import shutil

import pytest
import torch

from paramdelta_dist.checkpoint.header import strict_json
from paramdelta_dist.checkpoint.room import Room, json_cost
from paramdelta_dist.errors import OverBudget
from paramdelta_dist.sizes import parse_size
from tests.memory.test_projection import run
from tests.models import save_model

TOKENS = 550_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models with one tokenizer, and a post whose file of it has other bytes."""
    root = tmp_path_factory.mktemp("models")
    vocab = ",".join(f'"token{number:08d}":{number}' for number in range(TOKENS))
    merges = ",".join(f'["t{number}","oken"]' for number in range(TOKENS))
    text = f'{{"added_tokens":[],"padding":"{"x" * 35_000_000}","model":{{"type":"BPE","vocab":{{{vocab}}},"merges":[{merges}]}}}}'
    assert len(text) > 57_000_000
    for name in ("new", "post", "old"):
        folder = save_model(root / name, {f"layers.{n}.weight": torch.randn(64, 64) for n in range(3)})
        (folder / "tokenizer.json").write_text(text)
    (shutil.copytree(root / "post", root / "another") / "tokenizer.json").write_text(text + "\n")
    return root


def test_a_tokenizer_that_all_models_share_is_neither_parsed_nor_held(models, tmp_path):
    out = tmp_path / "out"
    document, peak = run("--base", f"{models}/new", "--delta", f"{models}/post:{models}/old", "--output", str(out), "--memory", "600MiB")
    assert document["state"] == "merged", document
    assert peak <= document["projected_memory"] <= 600 << 20
    assert (out / "tokenizer.json").stat().st_size == (models / "post" / "tokenizer.json").stat().st_size


def test_tokenizers_that_differ_are_refused_below_what_comparing_them_takes_and_the_memory_named_is_enough(models, tmp_path):
    arguments = ["--base", f"{models}/new", "--delta", f"{models}/another:{models}/old", "--output", str(tmp_path / "out")]
    document, peak = run(*arguments, "--memory", "600MiB")
    assert document["error"]["kind"] == "OverBudget", document
    assert "tokenizer.json" in document["error"]["message"]
    assert peak <= 600 << 20
    assert not (tmp_path / "out").exists()
    [memory] = re.findall(r"--memory (\w+)", document["error"]["message"])
    document, peak = run(*arguments, "--memory", memory)
    assert document.get("state") == "merged", document
    assert peak <= document["projected_memory"] <= parse_size(memory)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({f"t{n}": n for n in range(100_000)}),
        json.dumps({f"t{n}": n for n in range(87_500)}, separators=(",", ":")),
        json.dumps([["Ġtoken", "é"]] * 50_000, ensure_ascii=False),
        json.dumps([f"😀{n}" for n in range(50_000)], ensure_ascii=False),
        "[" + "[]," * 100_000 + "[]]",
        "[" + "{}," * 100_000 + "{}]",
        "[" + "-6," * 200_000 + "1e5]",
        '"' + "x" * 1_000_000 + '"',
        json.dumps({f"m.{n}": {"dtype": "BF16", "shape": [4096, 4096], "data_offsets": [n, n + 1]} for n in range(20_000)}),
    ],
    ids=["a vocabulary", "one that just grew", "merges", "wide text", "lists", "tables", "numbers", "one string", "a header"],
)
def test_no_json_takes_more_than_is_reckoned_and_none_a_sixth_of_it(text):
    import tracemalloc

    data = text.encode()
    tracemalloc.start()
    try:
        strict_json(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= json_cost(data, pairs=True) <= 6 * peak


def test_room_is_given_back_and_its_peak_is_kept():
    room = Room(1 << 30)
    with room.taken(500 << 20, "one"):
        room.take(100 << 20, "two")
        with pytest.raises(OverBudget, match=r"^three takes about 300 MiB .*--memory 1076MiB"):
            room.take(300 << 20, "three")
    room.take(300 << 20, "three")
    assert room.peak == 600 << 20
