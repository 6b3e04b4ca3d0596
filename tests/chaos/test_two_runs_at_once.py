"""Two runs into one output at the same time: of one recipe both are right, of two recipes one is, and the other says so."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest

from tests.chaos.runs import COMMIT, Chaos, Place, assert_complete, end, merge_arguments, model_of, start, wait_for, write_recipe

LATE_SECONDS = 1.5
"""About what a run takes from its start to its commit here; the second starts at most this much later."""

WORKERS = 2


@pytest.fixture(scope="module")
def other(models, tmp_path_factory):
    """What a loader reads of the merge with half the weight, undisturbed."""
    folder = tmp_path_factory.mktemp("other")
    place = Place(tuple(map(str, models)), str(folder / "out"))
    done = end(start(*merge_arguments(write_recipe(folder / "recipe.yaml", place, weight=0.5), "local"), place=place))
    assert done.code == 0, done
    return model_of(place.files())


def meetings(short=None):
    """Stores, and by how much the second run is late: not at all, then by chance, the same chance each time."""
    chance = random.Random(7)
    late = [0.0, *(round(chance.uniform(0.0, LATE_SECONDS), 2) for _ in range(3))]
    return [
        pytest.param(where, seconds, marks=() if (where, seconds) == (short, 0.0) else pytest.mark.slow)
        for where in ("disk", "s3")
        for seconds in late
    ]


def at_once(place, folder, recipes, late):
    """Both recipes started, the second `late` seconds after the first and slower, so that it is at work while the first commits."""
    first, second = (Chaos(folder / f"chaos-{number}", pace=pace) for number, pace in enumerate((0.04, 0.1)))
    running = start(*merge_arguments(recipes[0], "local"), place=place, chaos=first)
    time.sleep(late)
    return running, start(*merge_arguments(recipes[1], "local"), place=place, chaos=second)


@pytest.mark.parametrize(("place", "late"), meetings("disk"), indirect=["place"])
def test_two_runs_of_one_recipe_both_succeed_and_leave_one_output(place, late, quiet, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", place)
    runs = at_once(place, tmp_path, (recipe, recipe), late)
    wait_for(lambda: COMMIT in place.names())
    committed = place.files()
    for done in map(end, runs):
        assert done.code == 0, done
    assert_complete(place, quiet)
    before = place.files()
    changed = [name for name in committed if before[name] != committed[name]]
    assert [name for name in changed if not name.startswith(".paramdelta/receipts/")] == [], "after the commit nothing changes"
    assert len(changed) <= WORKERS, "but receipts of shards that were in flight, whose bytes are the same"
    done = end(start(*merge_arguments(recipe, "local"), place=place))
    assert done.code == 0, done
    assert place.files() == before


@pytest.mark.parametrize(("place", "late"), meetings(), indirect=["place"])
def test_of_two_recipes_into_one_output_the_second_is_refused(place, late, quiet, other, tmp_path):
    recipes = [write_recipe(tmp_path / f"{weight}.yaml", place, weight=weight) for weight in (1.0, 0.5)]
    ends = [end(run) for run in at_once(place, tmp_path, recipes, late)]
    assert sorted(done.code for done in ends) == [0, 3], ends
    [loser] = [done for done in ends if done.code == 3]
    said = json.loads(loser.output)["error"]
    assert said["kind"] == "OutputOccupied"
    assert "belongs to another merge (another recipe)" in said["message"]
    assert "choose another output, or --overwrite" in said["message"]
    assert_complete(place, quiet if ends[0].code == 0 else other)


FILLING = ("first tile", "mid shard", "before the put completes", "after the claim is asked for a shard")
PUBLISHING = (
    "after the put and before the receipt",
    "after a receipt",
    "before a side file",
    "after a side file",
    "between shards and index",
    "after the index",
    "before the card",
    "before the report",
    "after the report",
    "before config.json",
    "after config.json",
    "before the commit",
    "after the commit",
)
TAKING_OVER = (
    "before the plan",
    "after the plan",
    "before the first delete",
    "after the first delete",
    "amid the deletes",
    "before the plan without its list",
    "after the plan without its list",
)
SHORT = {("s3", "before the put completes")}


def stops(points):
    return [
        pytest.param(where, point, id=f"{where}-{point}".replace(" ", "_"), marks=() if (where, point) in SHORT else pytest.mark.slow)
        for where in ("disk", "s3")
        for point in points
    ]


def stopped_at(point, folder, recipe, place, *options):
    """A run that is stopped at a point, and its ending so that no stopped process is left behind."""
    chaos = Chaos(folder, point, "stopped")
    process = start(*merge_arguments(recipe, "local"), *options, place=place, chaos=chaos)
    try:
        wait_for(lambda: chaos.struck or process.poll() is not None)
        assert process.poll() is None, end(process)
    except BaseException:
        process.kill()
        raise
    return process


def go_on(process):
    os.kill(process.pid, signal.SIGCONT)
    return end(process)


def assert_verified(place, model):
    assert_complete(place, model)
    verified = end(start("verify", place.output, "--deep", "--json", place=place))
    assert verified.code == 0, verified


@pytest.mark.parametrize(("place", "point"), stops(FILLING + PUBLISHING), indirect=["place"])
def test_a_run_that_was_stopped_while_another_took_its_output_says_so_and_spoils_nothing(place, point, other, tmp_path):
    recipes = [write_recipe(tmp_path / f"{weight}.yaml", place, weight=weight) for weight in (1.0, 0.5)]
    loser = stopped_at(point, tmp_path / "chaos", recipes[0], place)
    try:
        winner = end(start(*merge_arguments(recipes[1], "local"), "--overwrite", place=place))
    finally:
        lost = go_on(loser)
    assert winner.code == 0, winner
    assert lost.code == 3, lost
    assert json.loads(lost.output)["error"]["kind"] == "OutputTaken", lost
    assert place.leftovers() == []
    assert_verified(place, other)


@pytest.mark.parametrize(("place", "point"), stops(TAKING_OVER), indirect=["place"])
def test_a_run_that_was_stopped_as_it_takes_an_output_has_it_in_the_end(place, point, other, tmp_path):
    recipes = [write_recipe(tmp_path / f"{weight}.yaml", place, weight=weight) for weight in (1.0, 0.5)]
    chaos = Chaos(tmp_path / "first", pace=0.1)
    first = start(*merge_arguments(recipes[0], "local"), place=place, chaos=chaos)
    wait_for(lambda: sum(name.startswith(".paramdelta/receipts/") for name in place.names()) > 2 or first.poll() is not None)
    first.send_signal(signal.SIGSTOP)  # it is amid its shards, however long the second takes to start
    try:
        second = stopped_at(point, tmp_path / "chaos", recipes[1], place, "--overwrite")
    finally:
        first.send_signal(signal.SIGCONT)
    try:
        lost = end(first)
    finally:
        won = go_on(second)
    assert won.code == 0, won
    assert lost.code == (0 if point == "before the plan" else 3), lost
    assert_verified(place, other)
