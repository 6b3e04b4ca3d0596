"""Killed at moments nobody chose: run after run, until one is left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.chaos.runs import COMMIT, SHARDS, Chaos, assert_complete, end, merge_arguments, start, wait_for, write_recipe

LONGEST_SECONDS = 1.2
"""What a run is given after its first put: between a half and all of what two workers need for all shards at this pace."""
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("engine", "kills", "seed", "place"),
    [
        ("local", 3, 1, "disk"),
        *(pytest.param("local", 6, seed, where, marks=SLOW) for where in ("disk", "s3") for seed in (2, 3)),
        *(pytest.param("ray", 5, seed, where, marks=SLOW) for where, seed in (("disk", 4), ("s3", 5))),
    ],
    indirect=["place"],
)
def test_a_merge_that_is_killed_again_and_again_gets_there(engine, kills, seed, place, quiet, tmp_path, ray_folder):
    """A kill comes while a run starts, or any time from its first put to its end."""
    chance = random.Random(seed)
    arguments = merge_arguments(write_recipe(tmp_path / "recipe.yaml", place), engine)
    for number in range(kills):
        chaos = Chaos(tmp_path / f"chaos-{number}", pace=0.1)
        process = start(*arguments, place=place, chaos=chaos, environ=ray_folder)
        if chance.random() < 0.8:  # else while it is starting
            wait_for(lambda chaos=chaos, process=process: chaos.started or process.poll() is not None)
        time.sleep(chance.uniform(0, LONGEST_SECONDS))
        process.kill()
        killed = end(process)
        assert killed.code == -signal.SIGKILL or (number > 0 and killed.code == 0), killed
        files = place.files()
        assert COMMIT not in files or "config.json" in files
    done = end(start(*arguments, place=place, environ=ray_folder))
    assert done.code == 0, done
    assert_complete(place, quiet)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "place"), [(6, "disk"), (7, "s3")], indirect=["place"])
def test_a_merge_that_loses_worker_after_worker_gets_there(seed, place, quiet, tmp_path, ray_folder):
    chance = random.Random(seed)
    chaos = Chaos(tmp_path / "chaos", pace=0.1)
    process = start(*merge_arguments(write_recipe(tmp_path / "recipe.yaml", place), "ray"), place=place, chaos=chaos, environ=ray_folder)
    seen, killed = 0, 0
    while killed < 3:
        wait_for(lambda seen=seen: len(chaos.started) > seen or process.poll() is not None)
        if process.poll() is not None:
            break
        time.sleep(chance.uniform(0, 0.5))
        seen = len(chaos.started)
        with suppress(ProcessLookupError):
            os.kill(chaos.started[-1][1], signal.SIGKILL)
            killed += 1
    done = end(process)
    assert done.code == 0, done
    report = assert_complete(place, quiet)
    assert report["shards"] == {"made": SHARDS, "kept": 0}
    assert killed == 3
    assert 1 <= report["workers_lost"] <= killed, "one that is killed in the last moment is not missed"
    assert report["retries"] <= report["workers_lost"], "one that was idle cost nothing"
    assert SHARDS <= len(chaos.started) <= SHARDS + report["retries"] + report["copies"] + report["restarts"]
