"""Models that are opened together: each as if it were alone, and what they have in common once."""

import gc

import pytest

from paramdelta_dist.checkpoint import open_checkpoint, open_checkpoints
from paramdelta_dist.driver.gc_pause import gc_paused
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import StorageConfig
from tests.raw_checkpoints import entry, folder, one_tensor, weight_file

STORAGE = StorageConfig()
SPLIT = {"a": "1.safetensors", "b": "2.safetensors"}


def test_models_opened_together_are_what_each_is_alone(tmp_path):
    swapped = {"b": "1.safetensors", "a": "2.safetensors"}
    folders = [
        folder(tmp_path / "one", {"1.safetensors": one_tensor("a"), "2.safetensors": one_tensor("b")}, weight_map=SPLIT),
        folder(tmp_path / "same", {"1.safetensors": one_tensor("a"), "2.safetensors": one_tensor("b")}, weight_map=SPLIT),
        folder(tmp_path / "larger", {"1.safetensors": one_tensor("a"), "2.safetensors": one_tensor("b", size=12)}, weight_map=SPLIT),
        folder(tmp_path / "swapped", {"1.safetensors": one_tensor("b"), "2.safetensors": one_tensor("a")}, weight_map=swapped),
        folder(tmp_path / "single", {"model.safetensors": weight_file({"a": entry(0, 8), "b": entry(8, 16)}, bytes(16))}),
    ]
    urls = [str(path) for path in folders]
    together = open_checkpoints(urls, STORAGE)
    assert list(together) == urls
    assert together == {url: open_checkpoint(url, STORAGE) for url in urls}
    one, same, larger, *_ = together.values()
    assert all(one.tensors[name] is same.tensors[name] for name in SPLIT)
    assert one.tensors["a"] is larger.tensors["a"]
    assert larger.tensors["b"].stop - larger.tensors["b"].start == 12


def test_the_same_header_is_refused_for_the_model_whose_file_is_cut_off(tmp_path):
    good = folder(tmp_path / "good", {"model.safetensors": one_tensor()})
    cut = folder(tmp_path / "cut", {"model.safetensors": one_tensor()[:-4]})
    with pytest.raises(CheckpointError, match=f"{cut}/model.safetensors: .*cut off"):
        open_checkpoints([str(good), str(cut)], STORAGE)


def test_after_a_pause_the_collector_does_not_search_at_once_what_was_made_and_still_finds_cycles():
    searched = []
    with gc_paused():
        kept = [[number] for number in range(100_000)]
        cycle = []
        cycle.append(cycle)
        del cycle
    callback = lambda phase, info: phase == "start" and searched.append(info)  # noqa: E731
    gc.callbacks.append(callback)
    try:
        assert gc.get_count()[0] < 1000
        more = [[number] for number in range(100)]
        assert not searched
        assert gc.collect() >= 1
    finally:
        gc.callbacks.remove(callback)
    assert (len(kept), len(more)) == (100_000, 100)
