"""A nightly run killed anywhere, by SIGKILL: the next finishes it in its folder, and the pointer names what is whole."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from tests.chaos.runs import Chaos, assert_complete, end, merge_arguments, start, write_recipe


@pytest.mark.parametrize(
    ("point", "place"),
    [
        pytest.param("before the put completes", "disk", marks=pytest.mark.slow),
        pytest.param("before the put completes", "s3", marks=pytest.mark.slow),
        pytest.param("before the commit", "disk", marks=pytest.mark.slow),
        pytest.param("before the commit", "s3", marks=pytest.mark.slow),
        pytest.param("before the pointer", "disk", marks=pytest.mark.slow),
        pytest.param("before the pointer", "s3"),
    ],
    indirect=["place"],
)
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
