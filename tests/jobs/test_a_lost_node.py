"""A node that loses power early under a submitted job costs time: the job succeeds, and its output has the bytes of a quiet one."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from blake3 import blake3

from tests.clusters import ray_cluster
from tests.jobs.test_on_a_cluster import wait_for

LOST = 1
"""The node that dies, of the two with a core."""
pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def cluster(s3_server, s3_proxy):
    """One that a node may be taken from."""
    with ray_cluster({**s3_server.environ, "AWS_ENDPOINT_URL": s3_proxy.endpoint}) as started:
        yield started


def worker_starts(site, name):
    """The node has begun to start a worker of the job, which is not at work yet."""
    for pid in site.cluster.processes(LOST):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ShardWorker"):
                return True
    return False


def both_nodes_are_at_a_shard(site, name):
    return site.proxy.count("PUT", f"/{name}/model-") >= 2


def digests(site, name):
    client = site.server.client()
    return {
        file: blake3(client.get_object(Bucket=site.bucket, Key=f"{name}/{file}")["Body"].read()).hexdigest()
        for file in site.objects(name)
        if not file.startswith(".paramdelta/") and file != "README.md"
    }


@pytest.mark.parametrize("moment", [worker_starts, both_nodes_are_at_a_shard])
def test_a_submitted_job_outlives_a_node_that_dies_early(moment, site):
    name = moment.__name__
    go = site.hold(name, "[1-8]")
    process = site.start("submit", site.recipe(name), "--json")
    wait_for(lambda: moment(site, name) or process.poll() is not None, name)
    assert process.poll() is None
    site.cluster.kill(LOST)
    go.set()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert (document["state"], document["exit_code"]) == ("succeeded", 0)
    result = document["result"]
    assert result["shards"] == {"made": 8, "kept": 0}
    assert result["nodes"] in (1, 2), "the lost one was counted if its worker had come"
    assert result["workers_lost"] <= 1, "the merge may be over before the loss is noticed"
    if moment is both_nodes_are_at_a_shard:
        assert result["retries"] + result["copies"] + result["restarts"] >= 1, "what the lost one was at was made again"
    assert "pdd-" in err
    assert "-2 submitted" not in err, "one attempt is enough"

    quiet = site.run("submit", site.recipe(f"quiet-{name}"), "--json")
    assert quiet.returncode == 0, quiet.stderr
    expected = digests(site, f"quiet-{name}")
    assert len([file for file in expected if file.startswith("model-")]) == 8
    assert digests(site, name) == expected
