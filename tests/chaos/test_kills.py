"""Killed anywhere, by SIGKILL, the same command finishes the job: the same bytes, one commit, the shards in flight made again."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from itertools import product

import pytest

from tests.chaos.runs import COMMIT, SHARD_READS, SHARDS, Chaos, alive, assert_complete, end, merge_arguments, start, wait_for, write_recipe

IN_A_SHARD = ("first tile", "mid shard", "before the put completes", "after the put and before the receipt")
AFTER_THE_SHARDS = ("between shards and index", "before the commit")
WORKERS = 2

SHORT = {("worker", "after the put and before the receipt", "s3")}
"""What `make test` runs. Processes are killed at random moments there too."""


def cases(roles, points):
    """The matrix of roles, points and stores."""
    return [
        pytest.param(*case, id="-".join(case).replace(" ", "_"), marks=() if case in SHORT else pytest.mark.slow)
        for case in product(roles, points, ("disk", "s3"))
    ]


@pytest.mark.parametrize(("role", "point", "place"), cases(("process", "driver"), IN_A_SHARD + AFTER_THE_SHARDS), indirect=["place"])
def test_the_same_command_goes_on_after_its_process_was_killed(role, point, place, quiet, tmp_path, ray_folder):
    arguments = merge_arguments(write_recipe(tmp_path / "recipe.yaml", place), "ray" if role == "driver" else "local")
    chaos = Chaos(tmp_path / "chaos", point, role)
    killed = end(start(*arguments, place=place, chaos=chaos, environ=ray_folder))
    assert killed.code == -signal.SIGKILL, killed
    wait_for(lambda: not any(alive(process) for _, process in chaos.started))  # workers finish what they have before they miss their driver
    left = place.files()
    assert COMMIT not in left
    assert ("config.json" in left) == (point == "before the commit"), "no loader opens what is not finished"
    proven = {name for name in quiet if f".paramdelta/receipts/{name}.json" in left}
    begun = {name for name, _ in chaos.started}
    assert len(begun - proven) <= WORKERS, "shards that were in flight"
    assert bool(begun - proven) == (point in IN_A_SHARD)
    if point == "before the put completes":
        assert place.leftovers(), "the put was not completed"

    done = end(start(*arguments, place=place, environ=ray_folder))
    assert done.code == 0, done
    report = assert_complete(place, quiet)
    assert report["shards"] == {"made": SHARDS - len(proven), "kept": len(proven)}
    assert report["bytes_read"] == report["shards"]["made"] * SHARD_READS, "what is read again is counted"
    again = end(start(*arguments, place=place, environ=ray_folder))
    assert again.code == 0, again
    assert '"nothing to do"' in again.output


@pytest.mark.parametrize(("role", "point", "place"), cases(("worker",), IN_A_SHARD), indirect=["place"])
def test_a_killed_worker_costs_the_shards_it_had(role, point, place, quiet, tmp_path, ray_folder):
    arguments = merge_arguments(write_recipe(tmp_path / "recipe.yaml", place), "ray")
    chaos = Chaos(tmp_path / "chaos", point, role)
    done = end(start(*arguments, place=place, chaos=chaos, environ=ray_folder))
    assert done.code == 0, done
    assert_one_worker_was_lost(chaos, assert_complete(place, quiet))


@pytest.mark.parametrize(("role", "point", "place"), cases(("node",), IN_A_SHARD), indirect=["place"])
def test_a_killed_node_costs_the_shards_it_had(role, point, place, quiet, tmp_path, monkeypatch, ray_head):
    arguments = merge_arguments(write_recipe(tmp_path / "recipe.yaml", place), "ray")
    chaos = Chaos(tmp_path / "chaos", point, role)
    with nodes(ray_head, place, chaos, monkeypatch):
        done = end(start(*arguments, place=place, chaos=chaos, environ={"RAY_ADDRESS": ray_head.address}))
    assert done.code == 0, done
    assert_one_worker_was_lost(chaos, assert_complete(place, quiet))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)
def test_a_driver_killed_on_a_cluster_leaves_no_worker_behind_and_its_command_goes_on(place, quiet, tmp_path, monkeypatch, ray_head):
    arguments = merge_arguments(write_recipe(tmp_path / "recipe.yaml", place), "ray")
    chaos = Chaos(tmp_path / "chaos", pace=0.1)
    with nodes(ray_head, place, chaos, monkeypatch):
        process = start(*arguments, place=place, chaos=chaos, environ={"RAY_ADDRESS": ray_head.address})
        wait_for(lambda: len(chaos.started) > WORKERS)
        process.kill()
        assert end(process).code == -signal.SIGKILL
        wait_for(lambda: not any(alive(process) for _, process in chaos.started))
        assert COMMIT not in place.names()
        done = end(start(*arguments, place=place, environ={"RAY_ADDRESS": ray_head.address}))
    assert done.code == 0, done
    assert assert_complete(place, quiet)["shards"]["kept"] > 0


@contextmanager
def nodes(head, place, chaos, monkeypatch):
    """WORKERS nodes of one core in the cluster of `head`, whose workers live in the environment of `place` and `chaos`."""
    for name, value in {**place.environ, **chaos.environ}.items():
        monkeypatch.setenv(name, value)
    added = [head.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(WORKERS)]
    try:
        yield
    finally:
        for node in added:
            head.remove_node(node, allow_graceful=False)


def assert_one_worker_was_lost(chaos, report):
    assert chaos.struck
    assert report["shards"] == {"made": SHARDS, "kept": 0}
    assert report["bytes_read"] == SHARDS * SHARD_READS
    assert report["retries"] <= report["workers_lost"] <= 1
    again = report["retries"] + report["copies"] + report["restarts"]
    assert again >= 1, "it was begun again when the loss was noticed, or as a late one"
    assert SHARDS + 1 <= len(chaos.started) <= SHARDS + again, "one was being made, and nothing is begun that is not told"
