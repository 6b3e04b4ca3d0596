"""The output folder over its life: claimed, filled, continued, committed, left alone."""

import json
import shutil

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import IntegrityError, OutputOccupied, OutputTaken, StorageError, TransientStorageError
from paramdelta_dist.storage.retry import RetryPolicy
from tests import oracle
from tests.executors import acting, ends_after
from tests.models import recipe, save_model
from tests.watched_stores import stored_by, watched


@pytest.fixture
def models(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(100, 50, generator=generator) for n in range(6)}
    return [
        save_model(tmp_path / name, {n: t * scale for n, t in tensors.items()}, files=2)
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))
    ]


def make(models, out, *, resources=Resources(), storage=None, **options):  # noqa: B008  # it is frozen
    verb = {key: options.pop(key) for key in ("overwrite", "confirm") if key in options}
    made = recipe(*models, out, shard_size="25KB", **options)
    return merge_with(made if storage is None else stored_by(made, storage), resources, **verb)


def weights(out):
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


class Lost(RuntimeError):
    """The machine goes away."""


def interrupted_after(count, models, out):
    """A merge whose shards fail after `count` of them were finished."""
    with pytest.raises(Lost):
        make(models, out, resources=acting(ends_after(count, Lost())))


def test_a_second_run_of_a_finished_merge_does_nothing(models, tmp_path):
    assert make(models, tmp_path / "out").state == "merged"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert make(models, tmp_path / "out").state == "nothing to do"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("finished", [0, 1, 3, 5])
def test_a_stopped_merge_goes_on_from_what_is_finished(models, tmp_path, finished):
    make(models, tmp_path / "quiet")
    interrupted_after(finished, models, tmp_path / "out")
    assert not (tmp_path / "out/config.json").exists()
    assert not (tmp_path / "out/.paramdelta/commit.json").exists()
    status = api.status(str(tmp_path / "out"))
    assert (status["state"], status["shards"]) == ("unfinished", {"done": finished, "total": 6})
    again = make(models, tmp_path / "out")
    assert again.report["shards"] == {"made": 6 - finished, "kept": finished}
    assert weights(tmp_path / "out") == weights(tmp_path / "quiet")
    assert api.status(str(tmp_path / "out"))["state"] == "complete"


def test_a_shard_that_was_altered_after_its_receipt_is_made_again(models, tmp_path):
    make(models, tmp_path / "quiet")
    interrupted_after(4, models, tmp_path / "out")
    first, second = sorted((tmp_path / "out").glob("*.safetensors"))[:2]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes())  # the same bytes, another time: read again and kept
    assert make(models, tmp_path / "out").report["shards"] == {"made": 3, "kept": 3}
    assert weights(tmp_path / "out") == weights(tmp_path / "quiet")


def test_changed_inputs_are_found_before_a_byte_is_merged(models, tmp_path):
    interrupted_after(2, models, tmp_path / "out")
    tensors = {name: tensor + 1 for name, tensor in oracle.load(models[1]).items()}
    shutil.rmtree(models[1])
    save_model(models[1], tensors, files=2)
    with pytest.raises(OutputOccupied, match=r"the inputs changed since: .*post/model-0") as raised:
        make(models, tmp_path / "out")
    assert raised.value.exit_code == 3
    assert make(models, tmp_path / "out", overwrite=True).report["shards"] == {"made": 6, "kept": 0}
    oracle.assert_within_one_rounding(
        oracle.load(tmp_path / "out"), oracle.merge(oracle.load(models[0]), [(tensors, oracle.load(models[2]), 1.0)])
    )


def test_another_recipe_into_the_same_output_is_refused(models, tmp_path):
    make(models, tmp_path / "out")
    before = weights(tmp_path / "out")
    with pytest.raises(OutputOccupied, match="another recipe"):
        make(models, tmp_path / "out", weight=0.5)
    assert weights(tmp_path / "out") == before
    assert make(models, tmp_path / "out", weight=0.5, overwrite=True).state == "merged"
    assert weights(tmp_path / "out") != before


def test_a_folder_with_something_else_is_refused_and_overwrite_leaves_strangers_alone(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    (out / "model-00007-of-00009.safetensors").write_bytes(b"stale")
    (out / "tokenizer.json").write_text("{}")
    with pytest.raises(OutputOccupied, match=r"notes\.md"):
        make(models, out)
    assert sorted(path.name for path in out.iterdir()) == ["model-00007-of-00009.safetensors", "notes.md", "tokenizer.json"]
    with pytest.raises(OutputOccupied, match=r"model-00007-of-00009\.safetensors\nNothing was deleted.*--yes"):
        make(models, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["model-00007-of-00009.safetensors", "notes.md", "tokenizer.json"]
    make(models, out, overwrite=True, confirm=lambda foreign: True)
    assert (out / "notes.md").read_text() == "mine"
    assert (out / "tokenizer.json").read_text() == "{}", "no file of the new output has this name"
    assert not (out / "model-00007-of-00009.safetensors").exists()
    assert api.status(str(out))["state"] == "complete"


def test_a_committed_output_that_lost_a_file_is_not_called_done(models, tmp_path):
    make(models, tmp_path / "out")
    next((tmp_path / "out").glob("*.safetensors")).unlink()
    assert api.status(str(tmp_path / "out"))["state"] == "damaged"
    with pytest.raises(IntegrityError, match="is missing now"):
        make(models, tmp_path / "out")


def test_no_loader_opens_the_folder_before_the_end(models, tmp_path):
    """Whatever write fails, config.json comes after all weights, index and side files, and the commit after it."""
    order = []

    def writing(store, request, name):
        if request in ("put", "write"):
            order.append(name)

    make(models, tmp_path / "out", storage=watched(writing))
    assert order[0] == ".paramdelta/plan.json"
    assert order[-2:] == ["config.json", ".paramdelta/commit.json"]
    shards = [place for place, name in enumerate(order) if name.startswith("model-")]
    assert max(shards) < order.index("model.safetensors.index.json")


def test_a_full_disk_is_one_message_and_the_work_is_kept(models, tmp_path, monkeypatch):
    import errno
    import os

    def full(file, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="disk is full") as raised:
        make(models, tmp_path / "out")
    assert raised.value.exit_code == 75
    assert not list((tmp_path / "out").rglob("*-part"))


def test_temporary_failures_are_tried_again_and_counted(models, tmp_path):
    calls = []

    def sometimes(make_shard, job, shard, **asked):
        calls.append(shard.file)
        if len(calls) % 3 == 1:
            raise TransientStorageError("503 SlowDown")
        return make_shard(job, shard, **asked)

    result = make(models, tmp_path / "out", resources=acting(sometimes, retries=RetryPolicy(first_delay=0.001)))
    assert result.report["retries"] == len(calls) - 6 > 0


def test_receipts_and_commit_hold_the_digests_of_what_is_there(models, tmp_path):
    from blake3 import blake3

    make(models, tmp_path / "out")
    commit = json.loads((tmp_path / "out/.paramdelta/commit.json").read_text())
    for path in (tmp_path / "out").glob("*.safetensors"):
        receipt = json.loads((tmp_path / "out/.paramdelta/receipts" / f"{path.name}.json").read_text())
        assert receipt["digest"] == blake3(path.read_bytes()).hexdigest() == commit["files"][path.name]["digest"]
        for name, tensor in oracle.load_file(path).items():
            assert receipt["tensors"][name] == blake3(tensor.contiguous().numpy().tobytes()).hexdigest()


def test_a_merge_whose_output_was_taken_over_publishes_nothing_more(models, tmp_path):
    """--overwrite gives the folder to another recipe while a shard of the first is being made: neither output is mixed."""
    overtaken = []

    def overtake(make_shard, job, shard, *, advance, cancelled):
        def amid(size):
            if not overtaken:
                overtaken.append(True)
                overtaken.append(make(models, tmp_path / "out", weight=0.25, overwrite=True))
            advance(size)

        return make_shard(job, shard, advance=amid, cancelled=cancelled)

    make(models, tmp_path / "quiet", weight=0.25)
    with pytest.raises(OutputTaken, match="taken over by another merge"):
        make(models, tmp_path / "out", resources=acting(overtake))
    assert overtaken[1].state == "merged"
    assert weights(tmp_path / "out") == weights(tmp_path / "quiet")
    assert api.verify(str(tmp_path / "out"), deep=True)["problems"] == []


def test_shards_that_change_under_a_running_merge_are_not_committed(models, tmp_path):

    def meddle(make_shard, job, shard, **asked):
        receipt = make_shard(job, shard, **asked)
        if shard.file.startswith("model-00006"):
            first = tmp_path / "out" / shard.file.replace("00006-of", "00001-of")
            data = bytearray(first.read_bytes())
            data[-1] ^= 1
            first.write_bytes(data)
        return receipt

    with pytest.raises(OutputOccupied, match=r"model-00001-of-00006\.safetensors changed while the merge ran"):
        make(models, tmp_path / "out", resources=acting(meddle))
    assert not (tmp_path / "out/config.json").exists()
