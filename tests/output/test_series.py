"""Nightly use: an unchanged merge is found done on any day, a changed one makes a new output, and the pointer follows."""

import json
import threading

import pytest
from blake3 import blake3

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import IntegrityError, OutputOccupied, RecipeError
from tests.models import recipe
from tests.nightly import MONDAY, TUESDAY, WEDNESDAY, Calendar, Killed, Place, killed_after, killed_at
from tests.watched_stores import stored_by


def test_nights_without_and_with_a_change(place, at):
    first = place.merge(place.recipe())
    assert (first.state, first.output) == ("merged", f"{place.store.url}/2026-11-23")
    pointer = place.pointer()
    commit = place.store.read("2026-11-23/.paramdelta/commit.json", limit=1 << 20)
    assert pointer["output"] == first.output
    assert pointer["fingerprint"] == first.fingerprint == json.loads(commit)["fingerprint"]
    assert (pointer["date"], pointer["commit"]) == ("2026-11-23", blake3(commit).hexdigest())

    at(TUESDAY)
    before = place.state()
    assert place.plan(place.recipe())[0].recipe.output == first.output
    second = place.merge(place.recipe())
    assert (second.state, second.output, second.pointer) == ("nothing to do", first.output, f"{place.store.url}/latest.json")
    assert place.state() == before

    at(WEDNESDAY)
    place.train("post", 1.2)
    assert place.plan(place.recipe())[0].recipe.output == f"{place.store.url}/2026-11-25"
    assert place.state() == before, "a plan writes nothing"
    third = place.merge(place.recipe())
    assert (third.state, third.output) == ("merged", f"{place.store.url}/2026-11-25")
    assert third.fingerprint != first.fingerprint
    assert place.pointer()["output"] == third.output
    assert place.outputs() == ["2026-11-23", "2026-11-25"]
    assert api.verify(first.output, deep=True)["ok"]
    assert api.verify(third.output, deep=True, recompute=1.0)["ok"]


def test_inputs_that_are_again_what_they_were_bring_back_the_output_they_had(disk, at):
    first = disk.merge(disk.recipe(weight=1.0))
    at(TUESDAY)
    disk.merge(disk.recipe(weight=0.5))
    at(WEDNESDAY)
    again = disk.merge(disk.recipe(weight=1.0))
    assert (again.state, again.output) == ("nothing to do", first.output)
    assert disk.pointer()["output"] == first.output
    assert disk.outputs() == ["2026-11-23", "2026-11-24"]


def test_a_method_that_gathers_statistics_first_is_no_different(disk, at):
    """They are kept in the output, whose name is decided before."""
    ties = {"method": "ties", "parameters": {"density": 0.5}}
    first = disk.merge(disk.recipe(**ties))
    at(TUESDAY)
    second = disk.merge(disk.recipe(**ties))
    assert (second.state, second.output) == ("nothing to do", first.output)
    denser = disk.merge(disk.recipe(**{**ties, "parameters": {"density": 0.6}}))
    assert (denser.state, denser.output) == ("merged", f"{disk.store.url}/2026-11-24")
    assert sorted(path.name for path in (disk.folder / "nightly").iterdir()) == [".paramdelta", "2026-11-23", "2026-11-24", "latest.json"]


def test_the_fingerprint_does_not_depend_on_the_name_of_the_output(disk, at):
    plans = [disk.plan(disk.recipe(template))[0] for template in ("fixed", "{date}", "{inputs}", "a-{date}-{inputs}")]
    at(TUESDAY)
    plans.append(disk.plan(disk.recipe("{date}"))[0])
    assert len({plan.fingerprint for plan in plans}) == 1
    names = [plan.recipe.output.rpartition("/")[2] for plan in plans]
    short = plans[0].fingerprint[:12]
    assert names == ["fixed", "2026-11-23", short, f"a-2026-11-23-{short}", "2026-11-24"]


def test_inputs_in_the_name_keep_several_outputs_of_a_day_apart(disk, at):
    one = disk.merge(disk.recipe("{date}-{inputs}"))
    other = disk.merge(disk.recipe("{date}-{inputs}", weight=0.5))
    assert [one.state, other.state] == ["merged", "merged"]
    assert disk.outputs() == sorted(result.output.rpartition("/")[2] for result in (one, other))
    assert disk.pointer()["output"] == other.output


def test_the_date_alone_has_room_for_one_merge_a_day(disk, at):
    disk.merge(disk.recipe())
    with pytest.raises(OutputOccupied, match="2026-11-23 belongs to another merge") as raised:
        disk.merge(disk.recipe(weight=0.5))
    assert raised.value.exit_code == 3
    assert disk.pointer()["output"].endswith("2026-11-23")


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_overwrite_makes_the_output_of_today_again(disk, at, weight):
    first = disk.merge(disk.recipe())
    today = disk.merge(disk.recipe(weight=weight), overwrite=True)
    assert (today.state, today.output) == ("merged", first.output)
    at(TUESDAY)
    anew = disk.merge(disk.recipe(weight=weight), overwrite=True)
    assert (anew.state, anew.output) == ("merged", f"{disk.store.url}/2026-11-24")
    assert disk.pointer()["date"] == "2026-11-24"
    assert disk.merge(disk.recipe(weight=weight)).output == anew.output


def test_a_merge_that_was_stopped_goes_on_in_its_folder_the_next_day(place, at):
    with pytest.raises(Killed):
        place.merge(place.recipe(), killed_after(shards=2))
    assert "latest.json" not in place.store.list()
    at(TUESDAY)
    result = place.merge(place.recipe())
    assert (result.output, result.report["shards"]) == (f"{place.store.url}/2026-11-23", {"made": 2, "kept": 2})
    assert place.pointer()["date"] == "2026-11-23"
    assert place.outputs() == ["2026-11-23"]


def test_a_run_killed_between_commit_and_pointer_is_mended_by_the_next(place, at):
    with pytest.raises(Killed):
        place.merge(stored_by(place.recipe(), killed_at("write", "latest.json")))
    assert "latest.json" not in place.store.list()
    assert "2026-11-23/.paramdelta/commit.json" in place.store.list()
    at(TUESDAY)
    result = place.merge(place.recipe())
    assert (result.state, result.output) == ("nothing to do", f"{place.store.url}/2026-11-23")
    assert place.pointer()["output"] == result.output


def test_a_run_killed_before_the_commit_leaves_the_pointer_at_the_output_before(disk, at):
    first = disk.merge(disk.recipe())
    at(TUESDAY)
    with pytest.raises(Killed):
        disk.merge(stored_by(disk.recipe(weight=0.5), killed_at("write", ".paramdelta/commit.json")))
    assert disk.pointer()["output"] == first.output
    at(WEDNESDAY)
    second = disk.merge(disk.recipe(weight=0.5))
    assert second.output == f"{disk.store.url}/2026-11-24"
    assert disk.pointer()["output"] == second.output


def test_a_stopped_merge_whose_inputs_changed_leaves_its_folder_and_begins_another(disk, at):
    with pytest.raises(Killed):
        disk.merge(disk.recipe(), killed_after(shards=2))
    at(TUESDAY)
    disk.train("post", 1.3)
    assert disk.merge(disk.recipe()).output == f"{disk.store.url}/2026-11-24"
    assert api.status(f"{disk.root}/nightly")["unfinished"] == ["2026-11-23"]


def test_an_output_that_was_deleted_is_made_again_under_the_name_of_the_day(disk, at):
    import shutil

    first = disk.merge(disk.recipe())
    shutil.rmtree(first.output)
    at(TUESDAY)
    second = disk.merge(disk.recipe())
    assert (second.state, second.output) == ("merged", f"{disk.store.url}/2026-11-24")
    assert disk.pointer()["output"] == second.output


@pytest.mark.parametrize(
    "lost",
    [
        ["config.json"],
        ["model-00002-of-00004.safetensors"],
        ["model-00002-of-00004.safetensors", ".paramdelta/receipts/model-00002-of-00004.safetensors.json", "README.md"],
        [".paramdelta/plan.json"],
        [".paramdelta/plan.json", "model-00001-of-00004.safetensors"],
        [".paramdelta/plan.json", ".paramdelta/commit.json", "config.json"],
        [".paramdelta/commit.json"],
    ],
    ids=lambda lost: f"{len(lost)} of {lost[0]}",
)
@pytest.mark.parametrize("template", ["{date}", "{inputs}"])
def test_an_output_that_expired_in_part_is_made_whole_by_the_next_night(disk, at, lost, template):
    first = disk.merge(disk.recipe(template))
    before = set(disk.store.list())
    folder = first.output.rpartition("/")[2]
    disk.expire(*(f"{folder}/{name}" for name in lost))
    at(TUESDAY)
    second = disk.merge(disk.recipe(template))
    assert second.output == first.output
    assert set(disk.store.list()) == before
    assert api.verify(second.output, deep=True, recompute=1.0)["ok"]
    assert disk.pointer()["output"] == second.output
    assert disk.merge(disk.recipe(template)).state == "nothing to do"
    assert api.status(f"{disk.root}/nightly")["dangling"] == {}


def test_an_output_that_expired_in_part_is_made_whole_in_a_bucket_too(place, at):
    first = place.merge(place.recipe())
    place.expire(*(name for name in place.store.list() if name.endswith(("plan.json", "00003-of-00004.safetensors", "config.json"))))
    at(TUESDAY)
    second = place.merge(place.recipe())
    assert (second.state, second.output, second.report["shards"]) == ("merged", first.output, {"made": 1, "kept": 3})
    assert api.verify(second.output, deep=True)["ok"]


def test_a_night_says_what_an_output_had_lost_and_keeps_what_it_had_not(disk, at, capsys):
    from paramdelta_dist.cli import tables

    disk.merge(disk.recipe())
    disk.expire("2026-11-23/model-00002-of-00004.safetensors", "2026-11-23/README.md")
    result = disk.merge(disk.recipe())
    assert sorted(result.lost) == ["README.md", "model-00002-of-00004.safetensors"]
    assert result.report["shards"] == {"made": 1, "kept": 3}
    tables.merge_summary(tables.merge_document(result))
    assert "2 files it had lost since it was finished" in capsys.readouterr().out


def test_a_submitted_night_finds_that_the_output_lost_files_and_starts_its_job(disk, at):
    from paramdelta_dist.api.jobs import _preflight
    from paramdelta_dist.jobs.log_reader import Silent

    def ahead():
        return _preflight(disk.recipe(), Resources("ray", 1, None, "auto", None), False, None, False, Silent()).state

    assert ahead() == "free"
    disk.merge(disk.recipe())
    assert ahead() == "finished"
    disk.expire("2026-11-23/config.json")
    assert ahead() == "begun"


def test_a_file_of_an_output_that_was_changed_is_not_made_again_over_it(disk, at):
    """It may have been meant; only what is gone is made again by itself."""
    first = disk.merge(disk.recipe())
    path = disk.folder / "nightly/2026-11-23/config.json"
    path.write_text(path.read_text() + "\n")
    (disk.folder / "nightly/2026-11-23/README.md").unlink()
    at(TUESDAY)
    with pytest.raises(IntegrityError, match="--overwrite makes it again"):
        disk.merge(disk.recipe())
    assert api.status(f"{disk.root}/nightly")["dangling"] == {"latest.json": "damaged"}
    assert disk.pointer()["output"] == first.output
    again = disk.merge(disk.recipe(), overwrite=True)
    assert api.verify(again.output, deep=True)["ok"]


def test_an_output_without_a_template_that_lost_a_file_is_still_an_error(disk):
    plain = disk.recipe("fixed")
    disk.merge(plain)
    (disk.folder / "nightly/fixed/config.json").unlink()
    with pytest.raises(IntegrityError, match="is missing now"):
        disk.merge(plain)


@pytest.mark.parametrize(
    ("lost", "state"),
    [
        (lambda name: True, "absent"),
        (lambda name: name.endswith(".safetensors"), "damaged"),
        (lambda name: name.endswith("plan.json"), "damaged"),
        (lambda name: name.endswith("commit.json"), "unfinished"),
    ],
)
def test_status_tells_of_a_pointer_to_an_output_that_is_not_whole(place, at, lost, state, capsys):
    from paramdelta_dist.cli import tables

    first = place.merge(place.recipe())
    at(TUESDAY)
    place.merge(place.recipe(weight=0.5))
    place.expire(*(name for name in place.store.list() if name.startswith("2026-11-24/") and lost(name)))
    status = api.status(f"{place.root}/nightly/{{date}}")
    assert status["dangling"] == {"latest.json": state}
    assert status["complete"] == ["2026-11-23"]
    assert status["damaged"] == (["2026-11-24"] if state == "damaged" else [])
    tables.status_lines(status)
    assert "the next merge of these inputs makes it again" in capsys.readouterr().out
    result = place.merge(place.recipe(weight=0.5))
    assert result.output != first.output
    assert (result.gone is None) == (state != "absent" or result.output.endswith("2026-11-24"))
    assert api.status(f"{place.root}/nightly")["dangling"] == {}


def test_a_pointer_that_names_an_output_under_another_mount_is_no_dangling_one(disk, at):
    disk.merge(disk.recipe())
    (disk.folder / "nightly").rename(disk.folder / "elsewhere")
    assert api.status(f"{disk.root}/elsewhere")["dangling"] == {}


@pytest.mark.parametrize("name", [".paramdelta/latest/{}.json", "latest.json"])
@pytest.mark.parametrize("damage", ["", "{}", "not json", '{"date": "2026-11-23"}'])
def test_a_note_that_is_not_as_it_was_written_is_not_relied_on(disk, at, name, damage):
    first = disk.merge(disk.recipe())
    path = disk.folder / "nightly" / name.format(first.fingerprint)
    path.write_text(damage)
    if name == "latest.json" and damage:
        with pytest.raises(OutputOccupied, match="no pointer to an output"):
            disk.merge(disk.recipe())
        assert path.read_text() == damage
    else:
        assert disk.merge(disk.recipe()).output == first.output
        assert name != "latest.json" or disk.pointer()["output"] == first.output


def test_a_file_of_somebody_else_with_the_name_of_the_pointer_is_found_before_the_work(disk, at):
    (disk.folder / "nightly").mkdir()
    (disk.folder / "nightly/latest.json").write_text('{"version": 3}')
    with pytest.raises(OutputOccupied, match=r"latest\.json is no pointer"):
        disk.merge(disk.recipe())
    assert [path.name for path in (disk.folder / "nightly").iterdir()] == ["latest.json"]


def test_several_recipes_below_one_folder_have_pointers_of_their_own(disk, at):
    for template, weight in (("llama-{date}", 1.0), ("qwen-{date}", 0.5), ("{date}/mistral", 0.25)):
        disk.merge(disk.recipe(template, weight=weight))
    assert disk.pointer("llama-latest.json")["output"].endswith("/llama-2026-11-23")
    assert disk.pointer("qwen-latest.json")["output"].endswith("/qwen-2026-11-23")
    assert disk.pointer("latest-mistral.json")["output"].endswith("/2026-11-23/mistral")


def test_two_recipes_with_one_template_are_each_found_done(disk, at):
    """Nothing is decided by the pointer they share, so neither makes the other's merge again."""
    outputs = [disk.merge(disk.recipe("{date}-{inputs}", weight=weight)).output for weight in (1.0, 0.5)]
    for day in (TUESDAY, WEDNESDAY):
        at(day)
        for weight, output in zip((1.0, 0.5), outputs, strict=True):
            result = disk.merge(disk.recipe("{date}-{inputs}", weight=weight))
            assert (result.state, result.output) == ("nothing to do", output)
            assert disk.pointer()["output"] == output


@pytest.mark.parametrize("days", [(MONDAY, MONDAY), (MONDAY, TUESDAY)])
def test_two_runs_at_once_are_harmless_even_on_both_sides_of_midnight(place, at, days):
    results, errors = [], []

    def run(day):
        its_own = Calendar()
        its_own(day)
        try:
            results.append(merge_with(place.recipe(), Resources(), now=its_own.now))
        except BaseException as error:
            errors.append(error)

    runs = [threading.Thread(target=run, args=(day,)) for day in days]
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
    at(WEDNESDAY)
    after = place.merge(place.recipe())
    assert after.state == "nothing to do"
    assert after.output in outputs


def test_a_day_on_which_the_output_would_be_an_input_is_refused(disk, at):
    disk.train("nightly/2026-11-23", 1.0)
    clashing = recipe(disk.folder / "nightly/2026-11-23", disk.folder / "post", disk.folder / "old", disk.folder / "nightly/{date}")
    with pytest.raises(RecipeError, match="are in each other"):
        disk.merge(clashing)
    at(TUESDAY)
    assert disk.merge(clashing).state == "merged"


def test_status_of_a_folder_of_outputs_and_of_a_template_tells_the_latest(place, at):
    assert api.status(f"{place.root}/nightly/{{date}}")["state"] == "absent"
    first = place.merge(place.recipe())
    at(TUESDAY)
    second = place.merge(place.recipe(weight=0.5))
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
    place = Place(tmp_path, tmp_path, at.now)
    made = place.recipe(storage={"s3://": {"engine": engine}}).with_output(f"{bucket}/{{date}}-{{inputs}}")
    first, second = place.merge(made), place.merge(made)
    assert (first.state, second.state, second.output) == ("merged", "nothing to do", first.output)
    assert first.pointer == f"{bucket}/latest.json"
    assert api.status(bucket, made.storage_config)["latest"]["latest.json"]["output"] == first.output
