"""`prune` removes old outputs of ours that nothing names, whole or not at all, and nothing else."""

import json
import threading
from datetime import timedelta

import pytest

from paramdelta_dist import api
from paramdelta_dist.api.prune import prune_series
from paramdelta_dist.errors import OutputOccupied, StorageError, UsageError
from paramdelta_dist.output.sealed_json import render_document
from paramdelta_dist.output.series import Series
from paramdelta_dist.storage import StorageConfig, open_store
from tests.executors import acting
from tests.nightly import MONDAY, Killed, Place, killed_after
from tests.watched_stores import Watched, nothing, stored_by, watched

MARK = ".paramdelta/pruning.json"


def nights(place, at, count, template="{date}"):
    """One output for each of `count` nights; returns their names, the oldest first."""
    made = []
    for night in range(count):
        at(MONDAY + timedelta(night))
        result = place.merge(place.recipe(template, weight=1 - night / 16))
        assert result.state == "merged"
        made.append(result.output.rpartition("/nightly/")[2])
    return made


def prune(place, template="{date}", *, keep, remove=False, storage=StorageConfig()):  # noqa: B008  # it is frozen
    return prune_series(Series(f"{place.root}/nightly/{template}", storage, place.now), keep=keep, remove=remove)


def names(outputs):
    return [output["output"].rpartition("/nightly/")[2] for output in outputs]


def folders(place):
    return sorted({name.partition("/")[0] for name in place.store.list() if "/" in name and not name.startswith(".")})


@pytest.mark.parametrize("template", ["{date}", "{date}-{inputs}", "{inputs}", "{date}/llama"])
def test_the_newest_stay_and_the_others_go_whole(disk, at, template):
    made = nights(disk, at, 4, template)
    before = disk.state()
    listed = prune(disk, template, keep=2)
    assert (listed["removed"], names(listed["pruned"])) == (False, made[:2])
    assert disk.state() == before, "without --yes nothing is removed"
    done = prune(disk, template, keep=2, remove=True)
    assert (names(done["pruned"]), sorted(names(done["kept"])), done["left"]) == (made[:2], sorted(made[2:]), [])
    assert {name for name in before if name not in disk.state()} == {
        *(name for name in before if name.startswith((f"{made[0]}/", f"{made[1]}/"))),
        *(name for name in before if any(output["fingerprint"] in name for output in done["pruned"])),
    }
    assert sorted(path.name for path in (disk.folder / "nightly").iterdir() if path.name[0] not in ".l") == sorted(
        name.partition("/")[0] for name in made[2:]
    ), "no empty folder is left"
    assert all(api.verify(f"{disk.root}/nightly/{name}", deep=True)["ok"] for name in made[2:])
    assert prune(disk, template, keep=2, remove=True)["pruned"] == []


def test_the_newest_stay_in_a_bucket_too(place, at):
    made = nights(place, at, 3)
    assert names(prune(place, keep=1, remove=True)["pruned"]) == made[:2]
    assert folders(place) == made[2:]
    assert api.verify(f"{place.root}/nightly/{made[2]}", deep=True)["ok"]


def test_the_newest_stay_in_google_storage_too(gcs_server, tmp_path, monkeypatch, at):
    for name, value in gcs_server.environ.items():
        monkeypatch.setenv(name, value)
    place = Place(f"gs://{gcs_server.make_bucket()}", tmp_path, at.now)
    made = nights(place, at, 2)
    assert names(prune(place, keep=1, remove=True)["pruned"]) == made[:1]
    assert folders(place) == made[1:]


def test_what_a_pointer_names_is_never_removed_however_old(disk, at):
    """Inputs that are again what they were bring the pointer back to an old output: it is the one that is served."""
    made = nights(disk, at, 3)
    assert disk.merge(disk.recipe(weight=1.0)).output.endswith(made[0])
    done = prune(disk, keep=1, remove=True)
    assert names(done["pruned"]) == [made[1]]
    assert {name: output["why"] for name, output in zip(names(done["kept"]), done["kept"], strict=True)} == {
        made[0]: "latest.json names it",
        made[2]: "one of the 1 newest",
    }
    assert api.status(f"{disk.root}/nightly")["dangling"] == {}


def test_a_pointer_of_another_name_counts_and_so_does_one_written_under_another_mount(disk, at):
    made = nights(disk, at, 3)
    pointer = json.loads((disk.folder / "nightly/latest.json").read_text())
    del pointer["seal"]
    kept = {**pointer, "output": f"/mnt/elsewhere/nightly/{made[0]}"}
    (disk.folder / "nightly/my-latest.json").write_bytes(render_document(kept))
    assert names(prune(disk, keep=1)["pruned"]) == [made[1]]


@pytest.mark.parametrize("damage", ["", "{}", '{"output": "x"}'])
def test_nothing_is_removed_while_nobody_knows_what_is_served(disk, at, damage):
    nights(disk, at, 2)
    before = disk.outputs()
    (disk.folder / "nightly/latest.json").write_text(damage)
    with pytest.raises(OutputOccupied, match="nobody knows which one is served"):
        prune(disk, keep=1, remove=True)
    assert disk.outputs() == before
    (disk.folder / "nightly/latest.json").unlink()  # the way the message tells
    assert len(prune(disk, keep=1, remove=True)["pruned"]) == 1
    disk.merge(disk.recipe(weight=1 - 1 / 16))
    assert disk.pointer()["output"].endswith(disk.outputs()[0])


def test_what_is_not_ours_is_never_touched(disk, at):
    """A person's folder with the name of a day, an output that was copied here, one of another template, a file with such a name."""
    import shutil

    made = nights(disk, at, 2)
    nightly = disk.folder / "nightly"
    (nightly / "2020-01-01").mkdir()
    (nightly / "2020-01-01/model.safetensors").write_text("mine")
    shutil.copytree(nightly / made[0], nightly / "2020-01-02")
    (nightly / "2020-01-03").write_text("a file")
    shutil.copytree(nightly / made[0], nightly / "llama-2020-01-01")
    (nightly / "2020-01-04/.paramdelta").mkdir(parents=True)
    (nightly / "2020-01-04/.paramdelta/plan.json").write_text("{}")
    (nightly / "2020-01-05/.paramdelta").mkdir(parents=True)
    (nightly / "2020-01-05/.paramdelta/plan.json").write_bytes(render_document({"recipe": 3, "fingerprint": ["x"], "shards": 1}))
    done = prune(disk, keep=1, remove=True)
    assert names(done["pruned"]) == made[:1]
    assert names(done["left"]) == ["2020-01-01", "2020-01-02", "2020-01-04", "2020-01-05"]
    assert {output["why"] for output in done["left"]} == {"no merge into this place made it"}
    assert (nightly / "2020-01-03").exists()
    assert (nightly / "llama-2020-01-01/config.json").exists()
    assert (nightly / "2020-01-02/config.json").exists()


def test_files_of_others_in_an_output_stay_and_are_told(disk, at):
    made = nights(disk, at, 2)
    notes = disk.folder / "nightly" / made[0] / "evaluation"
    notes.mkdir()
    (notes / "scores.json").write_text("{}")
    done = prune(disk, keep=1, remove=True)
    [left] = done["left"]
    assert (left["files"], left["why"]) == (["evaluation/scores.json"], "files of others")
    assert [name for name in disk.state() if name.startswith(made[0])] == [f"{made[0]}/evaluation/scores.json"]


def test_a_mark_that_names_files_elsewhere_removes_none_of_them(disk, at):
    made = nights(disk, at, 2)
    store = open_store(f"{disk.root}/nightly/{made[0]}", StorageConfig())
    fingerprint = json.loads(store.read(".paramdelta/plan.json", limit=1 << 20))["fingerprint"]
    elsewhere = ["../latest.json", f"../{made[1]}/config.json", "/etc/hostname"]
    mark = {"output": store.url, "fingerprint": fingerprint, "files": elsewhere, "begun": "2026-01-01T00:00:00+00:00"}
    store.write(MARK, render_document(mark))
    prune(disk, keep=1, remove=True)
    assert "latest.json" in disk.state()
    assert api.verify(f"{disk.root}/nightly/{made[1]}", deep=True)["ok"]


def unfinished(disk, weight):
    with pytest.raises(Killed):
        disk.merge(disk.recipe(weight=weight), killed_after(shards=2))


def test_an_unfinished_output_goes_when_no_run_can_be_at_work_on_it(disk, at):
    at(MONDAY)
    unfinished(disk, 0.3)
    for later, gone in ((0, []), (1, []), (2, ["2026-11-23"])):
        at(MONDAY + timedelta(later))
        assert names(prune(disk, keep=1)["pruned"]) == gone
    prune(disk, keep=1, remove=True)
    assert list(disk.state()) == []


def test_unfinished_and_damaged_outputs_are_none_of_the_newest(disk, at):
    made = nights(disk, at, 3)
    disk.expire(f"{made[1]}/config.json")
    at(MONDAY + timedelta(3))
    unfinished(disk, 0.3)
    done = prune(disk, keep=2)
    assert (names(done["pruned"]), sorted(names(done["kept"]))) == ([], [*made, "2026-11-26"])
    assert names(prune(disk, keep=1)["pruned"]) == made[:2]


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_output_has_to_stay(disk, at, keep):
    nights(disk, at, 1)
    with pytest.raises(UsageError, match="at least one"):
        api.prune(f"{disk.root}/nightly/{{date}}", keep=keep, remove=True)


def test_only_a_template_can_be_pruned(disk, at):
    made = nights(disk, at, 1)
    with pytest.raises(UsageError, match="what a recipe's `output` says"):
        api.prune(f"{disk.root}/nightly/{made[0]}", keep=1, remove=True)
    with pytest.raises(UsageError, match="not known in an output"):
        api.prune(f"{disk.root}/nightly/{{day}}", keep=1)


def dying_stores(after):
    """Every delete works until this many are done."""
    lock, calls = threading.Lock(), []

    class Dying(Watched):
        def delete(self, name):
            with lock:
                calls.append(name)
                if len(calls) > after:
                    raise Killed
                self._store.delete(name)

    return StorageConfig({}, lambda store: Dying(store, nothing, nothing))


@pytest.mark.parametrize("template", ["{date}", "{inputs}"])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 6, 9, 14])
def test_a_prune_that_is_killed_leaves_no_model_and_the_next_ends_it(disk, at, after, template):
    made = nights(disk, at, 2, template)
    old = f"{disk.root}/nightly/{made[0]}"
    with pytest.raises(Killed):
        prune(disk, template, keep=1, remove=True, storage=dying_stores(after))
    present = open_store(old, StorageConfig()).list()
    assert after == 0 or ".paramdelta/commit.json" not in present
    assert after < 3 or "config.json" not in present
    assert names(prune(disk, template, keep=5)["pruned"]) == made[:1], "what was begun is ended, however many are to stay"
    prune(disk, template, keep=5, remove=True)
    assert open_store(old, StorageConfig()).list() == {}
    assert not (disk.folder / "nightly" / made[0]).exists()
    at(MONDAY + timedelta(7))
    again = disk.merge(disk.recipe(template, weight=1.0))
    assert again.state == "merged"
    assert api.verify(again.output, deep=True)["ok"]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 6, 9])
def test_a_run_of_the_same_merge_waits_for_a_prune_and_ends_one_that_was_killed(disk, at, after):
    made = nights(disk, at, 2, "{inputs}")
    with pytest.raises(Killed):
        prune(disk, "{inputs}", keep=1, remove=True, storage=dying_stores(after))
    with pytest.raises(StorageError, match="is being removed by `prune`"):
        disk.merge(disk.recipe("{inputs}", weight=1.0))
    at(MONDAY + timedelta(2))
    again = disk.merge(disk.recipe("{inputs}", weight=1.0))
    assert again.output.endswith(made[0])
    assert api.verify(again.output, deep=True, recompute=1.0)["ok"]
    assert MARK not in open_store(again.output, StorageConfig()).list()
    assert (again.state == "nothing to do") == (after == 0)


def test_an_output_that_is_pointed_to_while_it_is_being_removed_stays(disk, at):
    """Inputs become what they were, and the night's run finds the old output done, just as it is about to go."""
    made = nights(disk, at, 2)
    first = Series(f"{disk.root}/nightly/{{date}}", StorageConfig())
    fingerprint = json.loads(disk.store.read(f"{made[0]}/.paramdelta/plan.json", limit=1 << 20))["fingerprint"]

    def begins(store, request, name):
        if (request, name) == ("write", MARK):
            first.point_to(MONDAY, fingerprint)

    done = prune(disk, keep=1, remove=True, storage=watched(before=begins))
    assert done["pruned"] == []
    assert disk.pointer()["output"].endswith(made[0])
    assert api.verify(f"{disk.root}/nightly/{made[0]}", deep=True)["ok"]
    assert disk.merge(disk.recipe(weight=1.0)).state == "nothing to do"


@pytest.mark.parametrize("when", ["before it is pointed to", "as it is pointed to"])
def test_a_run_whose_finished_output_is_removed_meanwhile_says_so_and_makes_it_again(disk, at, when):
    made = nights(disk, at, 2)
    at(MONDAY + timedelta(7))

    def gone():
        disk.expire(*(name for name in disk.state() if name.startswith(f"{made[0]}/")))

    def before(store, request, name):
        if when.startswith("as") and (request, name) == ("write", "latest.json"):
            gone()

    def after(store, request, name):
        if when.startswith("before") and request == "publish":  # the last that is asked of the output until the pointer is its turn
            gone()

    with pytest.raises(StorageError, match="the same command makes it again") as raised:
        disk.merge(stored_by(disk.recipe(weight=1.0), watched(before, after)))
    assert raised.value.exit_code == 75
    again = disk.merge(disk.recipe(weight=1.0))
    assert (again.state, again.gone) == ("merged", f"{disk.root}/nightly/{made[0]}")
    assert api.status(f"{disk.root}/nightly")["dangling"] == {}


def test_a_run_whose_folder_is_removed_while_it_merges_ends_with_no_model_there(disk, at):
    at(MONDAY)
    unfinished(disk, 0.3)
    at(MONDAY + timedelta(2))
    with pytest.raises(OutputOccupied):
        disk.merge(disk.recipe(weight=0.3), acting(after=lambda: prune(disk, keep=1, remove=True)))
    assert "2026-11-23/config.json" not in disk.state()


def test_two_prunes_at_once_are_harmless(place, at):
    from concurrent.futures import ThreadPoolExecutor

    made = nights(place, at, 4)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: prune(place, keep=1, remove=True), range(2)))
    assert {name for each in done for name in names(each["pruned"])} == set(made[:3])
    assert folders(place) == made[3:]
    assert api.verify(f"{place.root}/nightly/{made[3]}", deep=True)["ok"]
