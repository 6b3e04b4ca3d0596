"""A node that loses power early under a submitted job costs time: the job succeeds, and its output has the bytes of a quiet one."""

import json
import re
from pathlib import Path

import pytest
from blake3 import blake3

from tests.clusters import ray_cluster
from tests.jobs.test_on_a_cluster import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def cluster(s3_server, s3_proxy):
    """One that a node may be taken from."""
    with ray_cluster({**s3_server.environ, "AWS_ENDPOINT_URL": s3_proxy.endpoint}) as started:
        yield started


def worker_starts(site, number):
    """Whether a node has begun to start a worker of the job, which is not at work yet."""
    for pid in site.cluster.processes(number):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ShardWorker"):
            return True
    return False


def both_are_at_a_shard(site, number):
    return site.proxy.count("PUT", "/disturbed/model-") >= 2


def digests(site, name):
    client = site.server.client()
    return {
        file: blake3(client.get_object(Bucket=site.bucket, Key=f"{name}/{file}")["Body"].read()).hexdigest()
        for file in site.objects(name)
        if not file.startswith(".paramdelta/") and file != "README.md"
    }


@pytest.mark.parametrize("moment", [worker_starts, both_are_at_a_shard])
def test_a_submitted_job_outlives_a_node_that_dies_early(moment, site):
    go = site.hold("disturbed", "[1-8]")
    process = site.start("submit", site.recipe("disturbed"), "--json")
    wait_for(lambda: moment(site, 1) or process.poll() is not None, moment.__name__)
    site.cluster.kill(1)
    go.set()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["state"] == "succeeded"
    assert document["result"]["shards"] == {"made": 8, "kept": 0}
    assert document["result"]["nodes"] == 1, err
    assert document["result"]["workers_lost"] == 1, err
    assert re.search(r"pdd-[0-9a-f]{12}-1\b", err), "one attempt was enough"

    quiet = site.run("submit", site.recipe("quiet"), "--json")
    assert quiet.returncode == 0, quiet.stderr
    assert len(digests(site, "quiet")) == 8 + 2
    assert digests(site, "disturbed") == digests(site, "quiet")
