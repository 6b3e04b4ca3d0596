"""Nightly use: an unchanged merge is found done on any day, a changed one makes a new output, and the pointer follows."""

import json
import threading
from datetime import date

import pytest
import torch
from blake3 import blake3

from paramdelta_dist import api
from paramdelta_dist.errors import IntegrityError, OutputOccupied, RecipeError
from paramdelta_dist.execution import publish as publishing
from paramdelta_dist.execution import series, shard
from paramdelta_dist.execution.series import Series
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import recipe, save_model

MONDAY, TUESDAY, WEDNESDAY = date(2026, 11, 23), date(2026, 11, 24), date(2026, 11, 25)


class Killed(BaseException):
    """The process ends here."""


def tensors(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{n}.weight": scale * torch.randn(40, 25, generator=generator) for n in range(4)}


class Place:
    """Where models lie and outputs are written: a folder on disk or a prefix of a bucket."""

    def __init__(self, root, folder, client=None):
        self.root, self.folder, self.client = root, folder, client
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9)):
            self.train(name, scale)

    def train(self, name, scale):
        """A model, there from now on, in place of what was there."""
        folder = save_model(self.folder / name, tensors(scale), files=2)
        for path in folder.iterdir() if self.client is not None else ():
            self.client.put_object(Bucket=self.root.removeprefix("s3://"), Key=f"{name}/{path.name}", Body=path.read_bytes())

    def recipe(self, template="{date}", **more):
        new, post, old = (f"{self.root}/{name}" for name in ("new", "post", "old"))
        return recipe(new, post, old, f"{self.root}/nightly/{template}", shard_size="5KB", **more)

    @property
    def store(self):
        return open_store(f"{self.root}/nightly", StorageConfig())

    def pointer(self, name="latest.json"):
        return json.loads(self.store.read(name, limit=1 << 16))

    def outputs(self):
        return sorted({name.partition("/")[0] for name in self.store.list() if name.endswith(".safetensors")})

    def state(self):
        return self.store.list()


@pytest.fixture
def disk(tmp_path):
    return Place(tmp_path, tmp_path)


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return Place(tmp_path, tmp_path)
    server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return Place(f"s3://{server.make_bucket()}", tmp_path, server.client())


@pytest.fixture
def at(monkeypatch):
    """Make it that day."""

    def at(day):
        monkeypatch.setattr(series, "today", lambda: day)

    at(MONDAY)
    return at


def killed_in(monkeypatch, module, name, *, after=0):
    """The process ends when that function is called for the time after these."""
    real, calls = getattr(module, name), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, dying)


def test_nights_without_and_with_a_change(place, at):
    first = api.merge(place.recipe())
    assert (first.state, first.output) == ("merged", f"{place.store.url}/2026-11-23")
    pointer = place.pointer()
    commit = place.store.read("2026-11-23/.paramdelta/commit.json", limit=1 << 20)
    assert pointer["output"] == first.output
    assert pointer["fingerprint"] == first.fingerprint == json.loads(commit)["fingerprint"]
    assert (pointer["date"], pointer["commit"]) == ("2026-11-23", blake3(commit).hexdigest())

    at(TUESDAY)
    before = place.state()
    assert api.plan(place.recipe())[0].recipe.output == first.output
    second = api.merge(place.recipe())
    assert (second.state, second.output, second.pointer) == ("nothing to do", first.output, f"{place.store.url}/latest.json")
    assert place.state() == before

    at(WEDNESDAY)
    place.train("post", 1.2)
    assert api.plan(place.recipe())[0].recipe.output == f"{place.store.url}/2026-11-25"
    assert place.state() == before, "a plan writes nothing"
    third = api.merge(place.recipe())
    assert (third.state, third.output) == ("merged", f"{place.store.url}/2026-11-25")
    assert third.fingerprint != first.fingerprint
    assert place.pointer()["output"] == third.output
    assert place.outputs() == ["2026-11-23", "2026-11-25"]
    assert api.verify(first.output, deep=True)["ok"]
    assert api.verify(third.output, deep=True, recompute=1.0)["ok"]


def test_inputs_that_are_again_what_they_were_bring_back_the_output_they_had(disk, at):
    first = api.merge(disk.recipe(weight=1.0))
    at(TUESDAY)
    api.merge(disk.recipe(weight=0.5))
    at(WEDNESDAY)
    again = api.merge(disk.recipe(weight=1.0))
    assert (again.state, again.output) == ("nothing to do", first.output)
    assert disk.pointer()["output"] == first.output
    assert disk.outputs() == ["2026-11-23", "2026-11-24"]


def test_a_method_that_gathers_statistics_first_is_no_different(disk, at):
    """They are kept in the output, whose name is decided before."""
    ties = {"method": "ties", "parameters": {"density": 0.5}}
    first = api.merge(disk.recipe(**ties))
    at(TUESDAY)
    second = api.merge(disk.recipe(**ties))
    assert (second.state, second.output) == ("nothing to do", first.output)
    denser = api.merge(disk.recipe(**{**ties, "parameters": {"density": 0.6}}))
    assert (denser.state, denser.output) == ("merged", f"{disk.store.url}/2026-11-24")
    assert sorted(path.name for path in (disk.folder / "nightly").iterdir()) == [".paramdelta", "2026-11-23", "2026-11-24", "latest.json"]


def test_the_fingerprint_does_not_depend_on_the_name_of_the_output(disk, at):
    plans = [api.plan(disk.recipe(template))[0] for template in ("fixed", "{date}", "{inputs}", "a-{date}-{inputs}")]
    at(TUESDAY)
    plans.append(api.plan(disk.recipe("{date}"))[0])
    assert len({plan.fingerprint for plan in plans}) == 1
    names = [plan.recipe.output.rpartition("/")[2] for plan in plans]
    short = plans[0].fingerprint[:12]
    assert names == ["fixed", "2026-11-23", short, f"a-2026-11-23-{short}", "2026-11-24"]


def test_inputs_in_the_name_keep_several_outputs_of_a_day_apart(disk, at):
    one = api.merge(disk.recipe("{date}-{inputs}"))
    other = api.merge(disk.recipe("{date}-{inputs}", weight=0.5))
    assert [one.state, other.state] == ["merged", "merged"]
    assert disk.outputs() == sorted(result.output.rpartition("/")[2] for result in (one, other))
    assert disk.pointer()["output"] == other.output


def test_the_date_alone_has_room_for_one_merge_a_day(disk, at):
    api.merge(disk.recipe())
    with pytest.raises(OutputOccupied, match="2026-11-23 belongs to another merge") as raised:
        api.merge(disk.recipe(weight=0.5))
    assert raised.value.exit_code == 3
    assert disk.pointer()["output"].endswith("2026-11-23")


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_overwrite_makes_the_output_of_today_again(disk, at, weight):
    first = api.merge(disk.recipe())
    today = api.merge(disk.recipe(weight=weight), overwrite=True)
    assert (today.state, today.output) == ("merged", first.output)
    at(TUESDAY)
    anew = api.merge(disk.recipe(weight=weight), overwrite=True)
    assert (anew.state, anew.output) == ("merged", f"{disk.store.url}/2026-11-24")
    assert disk.pointer()["date"] == "2026-11-24"
    assert api.merge(disk.recipe(weight=weight)).output == anew.output


def test_a_merge_that_was_stopped_goes_on_in_its_folder_the_next_day(place, at, monkeypatch):
    with monkeypatch.context() as patch:
        killed_in(patch, shard, "run_shard", after=2)
        with pytest.raises(Killed):
            api.merge(place.recipe(), workers=1)
    assert "latest.json" not in place.store.list()
    at(TUESDAY)
    result = api.merge(place.recipe())
    assert (result.output, result.report["shards"]) == (f"{place.store.url}/2026-11-23", {"made": 2, "kept": 2})
    assert place.pointer()["date"] == "2026-11-23"
    assert place.outputs() == ["2026-11-23"]


def test_a_run_killed_between_commit_and_pointer_is_mended_by_the_next(place, at, monkeypatch):
    with monkeypatch.context() as patch:
        killed_in(patch, Series, "point")
        with pytest.raises(Killed):
            api.merge(place.recipe())
    assert "latest.json" not in place.store.list()
    assert "2026-11-23/.paramdelta/commit.json" in place.store.list()
    at(TUESDAY)
    result = api.merge(place.recipe())
    assert (result.state, result.output) == ("nothing to do", f"{place.store.url}/2026-11-23")
    assert place.pointer()["output"] == result.output


def test_a_run_killed_before_the_commit_leaves_the_pointer_at_the_output_before(disk, at, monkeypatch):
    first = api.merge(disk.recipe())
    at(TUESDAY)
    with monkeypatch.context() as patch:
        killed_in(patch, publishing, "commit")
        with pytest.raises(Killed):
            api.merge(disk.recipe(weight=0.5))
    assert disk.pointer()["output"] == first.output
    at(WEDNESDAY)
    second = api.merge(disk.recipe(weight=0.5))
    assert second.output == f"{disk.store.url}/2026-11-24"
    assert disk.pointer()["output"] == second.output


def test_a_stopped_merge_whose_inputs_changed_leaves_its_folder_and_begins_another(disk, at, monkeypatch):
    with monkeypatch.context() as patch:
        killed_in(patch, shard, "run_shard", after=2)
        with pytest.raises(Killed):
            api.merge(disk.recipe(), workers=1)
    at(TUESDAY)
    disk.train("post", 1.3)
    assert api.merge(disk.recipe()).output == f"{disk.store.url}/2026-11-24"
    assert api.status(f"{disk.root}/nightly")["unfinished"] == ["2026-11-23"]


def test_an_output_that_was_deleted_is_made_again_under_the_name_of_the_day(disk, at):
    import shutil

    first = api.merge(disk.recipe())
    shutil.rmtree(first.output)
    at(TUESDAY)
    second = api.merge(disk.recipe())
    assert (second.state, second.output) == ("merged", f"{disk.store.url}/2026-11-24")
    assert disk.pointer()["output"] == second.output


def test_an_output_that_lost_a_file_is_not_called_done(disk, at):
    first = api.merge(disk.recipe())
    (disk.folder / "nightly/2026-11-23/config.json").unlink()
    at(TUESDAY)
    with pytest.raises(IntegrityError, match="is missing now"):
        api.merge(disk.recipe())
    assert disk.pointer()["output"] == first.output


@pytest.mark.parametrize("name", [".paramdelta/latest/{}.json", "latest.json"])
@pytest.mark.parametrize("damage", ["", "{}", "not json", '{"date": "2026-11-23"}'])
def test_a_note_that_is_not_as_it_was_written_is_not_relied_on(disk, at, name, damage):
    first = api.merge(disk.recipe())
    path = disk.folder / "nightly" / name.format(first.fingerprint)
    path.write_text(damage)
    if name == "latest.json" and damage:
        with pytest.raises(OutputOccupied, match="no pointer to an output"):
            api.merge(disk.recipe())
        assert path.read_text() == damage
    else:
        assert api.merge(disk.recipe()).output == first.output
        assert name != "latest.json" or disk.pointer()["output"] == first.output


def test_a_file_of_somebody_else_with_the_name_of_the_pointer_is_found_before_the_work(disk, at):
    (disk.folder / "nightly").mkdir()
    (disk.folder / "nightly/latest.json").write_text('{"version": 3}')
    with pytest.raises(OutputOccupied, match=r"latest\.json is no pointer"):
        api.merge(disk.recipe())
    assert [path.name for path in (disk.folder / "nightly").iterdir()] == ["latest.json"]


def test_several_recipes_below_one_folder_have_pointers_of_their_own(disk, at):
    for template, weight in (("llama-{date}", 1.0), ("qwen-{date}", 0.5), ("{date}/mistral", 0.25)):
        api.merge(disk.recipe(template, weight=weight))
    assert disk.pointer("llama-latest.json")["output"].endswith("/llama-2026-11-23")
    assert disk.pointer("qwen-latest.json")["output"].endswith("/qwen-2026-11-23")
    assert disk.pointer("latest-mistral.json")["output"].endswith("/2026-11-23/mistral")


def test_two_recipes_with_one_template_are_each_found_done(disk, at):
    """Nothing is decided by the pointer they share, so neither makes the other's merge again."""
    outputs = [api.merge(disk.recipe("{date}-{inputs}", weight=weight)).output for weight in (1.0, 0.5)]
    for day in (TUESDAY, WEDNESDAY):
        at(day)
        for weight, output in zip((1.0, 0.5), outputs, strict=True):
            result = api.merge(disk.recipe("{date}-{inputs}", weight=weight))
            assert (result.state, result.output) == ("nothing to do", output)
            assert disk.pointer()["output"] == output


@pytest.mark.parametrize("days", [(MONDAY, MONDAY), (MONDAY, TUESDAY)])
def test_two_runs_at_once_are_harmless_even_on_both_sides_of_midnight(place, monkeypatch, days):
    today_of = dict(zip(("one", "other"), days, strict=True))
    monkeypatch.setattr(series, "today", lambda: today_of[threading.current_thread().name])
    results, errors = [], []

    def run():
        try:
            results.append(api.merge(place.recipe()))
        except BaseException as error:
            errors.append(error)

    runs = [threading.Thread(target=run, name=name) for name in today_of]
    for each in runs:
        each.start()
    for each in runs:
        each.join(60)
    assert errors == []
    outputs = {result.output for result in results}
    assert len(outputs) <= len(set(days))
    assert "merged" in {result.state for result in results}
    assert all(api.verify(output, deep=True)["ok"] for output in outputs)
    assert place.pointer()["output"] in outputs
    today_of["MainThread"] = WEDNESDAY
    after = api.merge(place.recipe())
    assert after.state == "nothing to do"
    assert after.output in outputs


def test_a_day_on_which_the_output_would_be_an_input_is_refused(disk, at):
    disk.train("nightly/2026-11-23", 1.0)
    clashing = recipe(disk.folder / "nightly/2026-11-23", disk.folder / "post", disk.folder / "old", disk.folder / "nightly/{date}")
    with pytest.raises(RecipeError, match="are in each other"):
        api.merge(clashing)
    at(TUESDAY)
    assert api.merge(clashing).state == "merged"


def test_status_of_a_folder_of_outputs_and_of_a_template_tells_the_latest(place, at):
    assert api.status(f"{place.root}/nightly/{{date}}")["state"] == "absent"
    first = api.merge(place.recipe())
    at(TUESDAY)
    second = api.merge(place.recipe(weight=0.5))
    for url in (f"{place.root}/nightly", f"{place.root}/nightly/{{date}}"):
        status = api.status(url)
        assert status["state"] == "series"
        assert status["latest"]["latest.json"]["output"] == second.output
        assert status["complete"] == ["2026-11-23", "2026-11-24"]
        assert status["unfinished"] == []
    assert api.status(first.output)["state"] == "complete"


def test_check_takes_a_template(disk):
    assert api.check(disk.recipe()).mismatches == ()


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_outputs_may_lie_at_the_top_of_a_bucket(s3_server, tmp_path, monkeypatch, at, engine):
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{s3_server.make_bucket()}"
    made = Place(tmp_path, tmp_path).recipe(storage={"s3://": {"engine": engine}}).with_output(f"{bucket}/{{date}}-{{inputs}}")
    first, second = api.merge(made), api.merge(made)
    assert (first.state, second.state, second.output) == ("merged", "nothing to do", first.output)
    assert first.pointer == f"{bucket}/latest.json"
    assert api.status(bucket, made.storage_config)["latest"]["latest.json"]["output"] == first.output
