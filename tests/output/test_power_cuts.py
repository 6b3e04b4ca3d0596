"""What a power cut leaves of a small document, nothing, its beginning or zeros, costs no finished shard: the same command goes on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import IntegrityError, OutputOccupied
from paramdelta_dist.output.series import utc_now
from paramdelta_dist.recipe.model import Recipe
from tests.executors import acting, ends_after
from tests.models import recipe, save_model
from tests.nightly import TUESDAY
from tests.terminal import call

SHARDS = 4
DAMAGE = {
    "nothing": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}
damages = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


class Cut(RuntimeError):
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(100, 50, generator=generator) for n in range(SHARDS)}
    return [
        save_model(root / name, {n: t * scale for n, t in tensors.items()}, files=2)
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))
    ]


ONE = Resources(workers=1)


def make(models, out, *, resources=ONE, now=utc_now, **more):
    return merge_with(recipe(*models, out, shard_size="25KB", **more), resources, now=now)


def cut_after(count, models, out, **more):
    """A merge that ends suddenly when `count` shards are finished."""
    with pytest.raises(Cut):
        make(models, out, resources=acting(ends_after(count, Cut())), **more)


def model(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "README.md"}


def spoil(path, damage):
    path.write_bytes(damage(path.read_bytes()))


@pytest.fixture(scope="module")
def quiet(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("quiet") / "out"
    make(models, out)
    return model(out)


@damages
def test_a_stopped_merge_goes_on_without_its_plan(models, quiet, tmp_path, damage):
    out = tmp_path / "out"
    cut_after(2, models, out)
    spoil(out / ".paramdelta/plan.json", damage)
    told = call("status", out, cwd=tmp_path)
    assert told.returncode == 0, told
    assert "plan.json, as after a power cut; the same merge, run again, keeps what is finished" in told.stdout
    assert make(models, out).report["shards"] == {"made": SHARDS - 2, "kept": 2}
    assert model(out) == quiet
    assert api.verify(str(out), deep=True)["ok"]


@damages
def test_a_merge_that_was_only_claimed_goes_on_without_its_plan(models, quiet, tmp_path, damage):
    out = tmp_path / "out"
    cut_after(0, models, out)
    spoil(out / ".paramdelta/plan.json", damage)
    assert make(models, out).report["shards"] == {"made": SHARDS, "kept": 0}
    assert model(out) == quiet


@damages
def test_a_receipt_that_is_lost_costs_its_own_shard_alone(models, quiet, tmp_path, damage):
    out = tmp_path / "out"
    cut_after(3, models, out)
    spoil(sorted((out / ".paramdelta/receipts").iterdir())[0], damage)
    assert make(models, out).report["shards"] == {"made": SHARDS - 2, "kept": 2}
    assert model(out) == quiet


@pytest.mark.parametrize("names", [("plan",), ("commit",), ("report",), ("plan", "commit"), ("plan", "commit", "report")], ids=" ".join)
@damages
def test_a_finished_merge_is_published_again_and_no_shard_of_it_made_again(models, quiet, tmp_path, names, damage):
    out = tmp_path / "out"
    make(models, out)
    for name in names:
        spoil(out / f".paramdelta/{name}.json", damage)
    status = api.status(str(out))
    assert status["unreadable"] == [f".paramdelta/{name}.json" for name in names]
    with suppress(IntegrityError):  # of the commit itself
        [*problems] = api.verify(str(out))["problems"]
        assert problems
        assert all("the same merge, run again, writes it anew" in problem or "another run" in problem for problem in problems), problems
    told = call("verify", out, cwd=tmp_path)
    assert told.returncode == 5
    assert "overwrite" not in told.stdout + told.stderr
    assert "run" in told.stdout + told.stderr
    again = make(models, out)
    assert again.report["shards"] == {"made": 0, "kept": SHARDS}
    assert model(out) == quiet
    assert api.verify(str(out), deep=True)["problems"] == []
    assert make(models, out).state == "nothing to do"


@damages
def test_a_plan_that_cannot_be_read_beside_another_merges_shards_is_refused(models, tmp_path, damage):
    out = tmp_path / "out"
    cut_after(2, models, out, weight=0.5)
    spoil(out / ".paramdelta/plan.json", damage)
    before = model(out)
    with pytest.raises(OutputOccupied, match="cannot be read, as after a power cut, and no receipt shows"):
        make(models, out)
    assert model(out) == before


@damages
@pytest.mark.parametrize("name", ["latest.json", ".paramdelta/latest/{}.json"])
def test_notes_of_a_series_are_written_again(models, tmp_path, name, damage):
    template = tmp_path / "nightly/{date}"
    first = make(models, template)
    path = tmp_path / "nightly" / name.format(first.fingerprint)
    before = path.read_bytes()
    spoil(path, damage)
    again = make(models, template)
    assert (again.state, again.output) == ("nothing to do", first.output)
    assert path.read_bytes() == before


@damages
def test_a_stopped_night_goes_on_the_next_day_without_its_plan(models, quiet, tmp_path, damage, at):
    template = tmp_path / "nightly/{date}"
    cut_after(2, models, template, now=at.now)
    spoil(tmp_path / "nightly/2026-11-23/.paramdelta/plan.json", damage)
    at(TUESDAY)
    done = make(models, template, now=at.now)
    assert done.output.endswith("2026-11-23")
    assert done.report["shards"] == {"made": SHARDS - 2, "kept": 2}
    assert model(tmp_path / "nightly/2026-11-23") == quiet


@damages
def test_the_file_of_a_sweep_is_written_again(models, tmp_path, damage):
    document = recipe(*models, tmp_path / "out", shard_size="25KB").model_dump(by_alias=True, exclude_unset=True)
    del document["deltas"][0]["weight"]
    swept = Recipe.model_validate({**document, "sweep": {"weight": [0.5, 1.0]}})
    api.merge(swept)
    before = (tmp_path / "out/sweep.json").read_bytes()
    spoil(tmp_path / "out/sweep.json", damage)
    assert api.merge(swept).state == "nothing to do"
    assert (tmp_path / "out/sweep.json").read_bytes() == before


def test_a_file_and_its_folder_are_on_the_disk_before_the_next_one_relies_on_it(models, tmp_path, monkeypatch):
    """Seen from the system calls: a name is given to what was flushed, and its folder is flushed before another name is given."""
    flushed, waiting, order = set(), [], []
    sync, replace, link = os.fsync, os.replace, os.link

    def watched_sync(file):
        sync(file)
        path = os.readlink(f"/proc/self/fd/{file}")
        flushed.add(path)
        waiting[:] = [folder for folder in waiting if folder != path]

    def naming(real):
        def named(part, target):
            assert str(part) in flushed, part
            assert waiting == [], "the folder of the file before"
            real(part, target)
            order.append(Path(target).name)
            waiting.append(str(Path(target).parent))

        return named

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", naming(replace))
    monkeypatch.setattr(os, "link", naming(link))
    make(models, tmp_path / "new/out")
    assert waiting == []
    assert order[-2:] == ["config.json", "commit.json"]
    assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new/out")} <= flushed, "and the folders that were made"
