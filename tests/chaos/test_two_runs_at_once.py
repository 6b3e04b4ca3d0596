"""Two runs into one output at the same time: of one recipe both are right, of two recipes one is."""

from __future__ import annotations

import json
import random
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


def meetings(short):
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


@pytest.mark.parametrize(("place", "late"), meetings("s3"), indirect=["place"])
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
