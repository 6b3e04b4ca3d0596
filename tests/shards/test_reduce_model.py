"""Reductions over a whole model: a pass of its own that is found again after an interruption, and part of what was merged."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.api.verify import verify_with
from paramdelta_dist.kernels.statistics_json import decode, encode
from paramdelta_dist.methods import find_method
from paramdelta_dist.output.names import STATISTICS
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.shards.reduce_model import reduce_shard
from tests.executors import acting
from tests.methods.method_cases import make_models, recipe_for, with_small_blocks
from tests.oracle import load

TIES = find_method("ties")
OVER_MODEL = {"trim": "model", "density": 0.25}


@pytest.fixture
def folders(tmp_path):
    return make_models(tmp_path, 3)


def recipe(folders, output):
    return recipe_for(TIES, folders, output, OVER_MODEL, shard_size="20KB")


def test_the_least_kept_magnitude_is_that_of_the_whole_model(folders, tmp_path):
    api.merge(recipe_for(find_method("magnitude"), folders, tmp_path / "out", OVER_MODEL, count=1, shard_size="20KB"))
    base, post, out = (load(folder) for folder in (folders[0], folders[1], tmp_path / "out"))
    names = [name for name in base if base[name].is_floating_point()]
    deltas = torch.cat([(post[name].double() - base[name].double()).flatten() for name in names])
    least = deltas.abs().sort(descending=True).values[int(0.25 * deltas.numel()) - 1]
    for name in names:
        delta = post[name].double() - base[name].double()
        expected = torch.where(delta.abs() >= least, post[name].double(), base[name].double())
        assert torch.equal(out[name], expected.bfloat16()), name


def test_a_run_that_goes_on_looks_at_no_shard_twice(folders, tmp_path):
    api.merge(recipe(folders, tmp_path / "whole"))
    looked, most = [], 3

    def look(function, job, unit, **asked):
        if function is reduce_shard:
            if len(looked) == most:
                raise KeyboardInterrupt
            looked.append((job.number, unit.file))
        return function(job, unit, **asked)

    with pytest.raises(KeyboardInterrupt):
        merge_with(recipe(folders, tmp_path / "out"), acting(look))
    before, most = list(looked), None
    made = merge_with(recipe(folders, tmp_path / "out"), acting(look))
    assert len(before) == 3
    assert len(looked) == len(set(looked)) == 2 * made.report["shards"]["made"]
    whole, out = load(tmp_path / "whole"), load(tmp_path / "out")
    assert all(torch.equal(whole[name], out[name]) for name in whole)


def test_what_was_found_is_kept_beside_the_output_and_used_to_verify(folders, tmp_path):
    api.merge(recipe(folders, tmp_path / "out"))
    kept = sorted(path.name for path in (tmp_path / "out" / STATISTICS).iterdir() if path.is_file())
    assert kept == ["0.json", "1.json"]

    def but_not_again(function, job, unit, **asked):
        assert function is not reduce_shard
        return function(job, unit, **asked)

    assert verify_with(str(tmp_path / "out"), acting(but_not_again), recompute=1.0)["problems"] == []


@pytest.mark.parametrize("damage", ["removed", "altered"])
def test_what_is_lost_of_it_is_found_again(folders, tmp_path, damage):
    api.merge(recipe(folders, tmp_path / "out"))
    path = tmp_path / "out" / STATISTICS / "1.json"
    if damage == "removed":
        path.unlink()
    else:
        document = json.loads(path.read_text())
        document["value"] = encode([0, 0])
        path.write_text(json.dumps(document))
    assert api.verify(str(tmp_path / "out"), recompute=1.0)["problems"] == []


def test_another_density_is_another_merge(folders, tmp_path):
    one, two = (
        api.plan(Recipe.model_validate({**recipe(folders, tmp_path / "out").as_document(), "parameters": {"trim": "model", "density": d}}))
        for d in (0.25, 0.26)
    )
    assert one[0].fingerprint != two[0].fingerprint


@pytest.mark.parametrize(("trim", "times"), [("tensor", 4), ("model", 1)])
def test_the_effort_of_each_unit_is_what_it_reads_and_writes(trim, times, tmp_path, monkeypatch):
    folders = make_models(tmp_path, 3, shapes={"a.weight": (300, 200), "b.weight": (70, 200), "c.weight": (80, 200)})
    looked, made = [], []

    def watching(function, job, unit, **asked):
        found = function(job, unit, **asked)
        if function is reduce_shard:
            looked.append((unit.bytes_moved, found.bytes_read))
        else:
            made.extend((unit.bytes_moved, receipt.bytes_read + receipt.bytes_written) for receipt in found.values())
        return found

    with_small_blocks(monkeypatch)
    made_recipe = recipe_for(TIES, folders, tmp_path / "out", {"trim": trim, "density": 0.25}, shard_size="100KB")
    merge_with(made_recipe, acting(watching, tile_size=32_000))
    inputs = 3 * 2 * 200 * 300
    assert [bytes_moved for bytes_moved, _ in made] == [moved for _, moved in made]
    assert max(bytes_moved for bytes_moved, _ in made) == times * inputs + inputs // 3 + header(tmp_path / "out")
    assert len([read for _, read in looked if read]) == (4 if trim == "model" else 0)
    assert [bytes_moved for bytes_moved, _ in looked] == [read for _, read in looked]


def header(folder):
    """Bytes before the weights in the largest file."""
    data = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size).read_bytes()
    return 8 + int.from_bytes(data[:8], "little")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers() | st.text(), inner),
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_what_sweeps_find_is_read_back_as_it_was(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "tensor", [torch.arange(5), torch.zeros(0, 3), torch.tensor(0.1, dtype=torch.float64), torch.ones(2, 2).bfloat16()]
)
def test_tensors_are_read_back_bit_for_bit(tensor):
    back = decode(json.loads(json.dumps(encode(tensor))))
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_what_could_not_be_read_back_is_refused():
    from paramdelta_dist.kernels.selection import RankSearch

    with pytest.raises(TypeError, match="RankSearch"):
        encode([RankSearch.of(torch.float32, 1)])
