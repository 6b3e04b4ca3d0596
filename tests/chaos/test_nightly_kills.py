"""A nightly run killed anywhere, by SIGKILL: the next finishes it in its folder, and the pointer names what is whole."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from tests.chaos.runs import Chaos, assert_complete, end, merge_arguments, start, write_recipe


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)
@pytest.mark.parametrize("point", ["before the put completes", "before the commit", "before the pointer"])
def test_a_nightly_run_that_was_killed_is_finished_by_the_next(point, place, quiet, tmp_path):
    nightly = replace(place, output=f"{place.output}/{{date}}")
    arguments = merge_arguments(write_recipe(tmp_path / "recipe.yaml", nightly), "local")
    killed = end(start(*arguments, place=place, chaos=Chaos(tmp_path / "chaos", point, "process")))
    assert killed.code == -signal.SIGKILL, killed
    assert "latest.json" not in place.names()
    (folder,) = {name.partition("/")[0] for name in place.names() if name.endswith("/.paramdelta/plan.json")}

    done = end(start(*arguments, place=place))
    assert done.code == 0, done
    assert json.loads(done.output)["state"] == ("nothing to do" if point == "before the pointer" else "merged")
    files = place.files()
    output = f"{place.output}/{folder}"
    assert json.loads(files["latest.json"])["output"] == json.loads(done.output)["output"] == output
    assert_complete(replace(place, output=output), quiet)
    assert [name for name in files if name.endswith("commit.json")] == [f"{folder}/.paramdelta/commit.json"]

    again = end(start(*arguments, place=place))
    assert (again.code, json.loads(again.output)["state"]) == (0, "nothing to do"), again
    assert place.files() == files


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)
def test_a_prune_that_was_killed_is_ended_by_the_next_and_no_other_output_is_touched(place, quiet, tmp_path):
    nightly = replace(place, output=f"{place.output}/{{date}}-{{inputs}}")
    recipe = write_recipe(tmp_path / "recipe.yaml", nightly, weight=0.5)
    old = json.loads(end(start(*merge_arguments(recipe, "local"), place=place)).output)["output"].rpartition("/")[2]
    write_recipe(tmp_path / "recipe.yaml", nightly)
    new = json.loads(end(start(*merge_arguments(recipe, "local"), place=place)).output)["output"].rpartition("/")[2]
    before = place.files()

    prune = ["prune", "--recipe", str(recipe), "--keep", "1", "--yes", "--json"]
    killed = end(start(*prune, place=place, chaos=Chaos(tmp_path / "chaos", "while an output is removed", "process")))
    assert killed.code == -signal.SIGKILL, killed
    left = {name for name in place.names() if name.startswith(f"{old}/")}
    assert f"{old}/.paramdelta/pruning.json" in left
    assert not {f"{old}/config.json", f"{old}/.paramdelta/commit.json"} & left, "no loader opens it, and no run finds it done"

    done = end(start(*prune, place=place))
    assert done.code == 0, done
    assert [output["output"] for output in json.loads(done.output)["pruned"]] == [f"{place.output}/{old}"]
    kept = {name: data for name, data in before.items() if name.startswith(f"{new}/") or name == "latest.json"}
    records = {name for name in before if name.startswith(".paramdelta/latest/")}
    files = place.files()
    assert {name: data for name, data in files.items() if name not in records} == kept
    assert len(records & files.keys()) == 1
    assert_complete(replace(place, output=f"{place.output}/{new}"), quiet)
