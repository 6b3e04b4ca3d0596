"""Merges submitted to a real Ray cluster through its dashboard, from and to S3, as a user does it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.clusters import ROOT, ray_cluster, relay
from tests.jobs.conftest import Site
from tests.servers import s3_server as start_s3_server

TOKEN = "PLANTED-TOKEN-0123456789abcdef0123456789abcdef"


def wait_for(condition, what, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.2)


def job_of(text):
    return re.search(r"pdd-[0-9a-f]{12}-\d+", text)[0]


def shards(site, name):
    return sorted(key for key in site.objects(name) if key.startswith("model-"))


@pytest.mark.slow
def test_a_stopped_job_is_no_success_and_the_next_attempt_finishes_it_over_a_connection_that_breaks(site):
    recipe, go, further = site.recipe("good"), site.hold("good", "[34]"), site.hold("good", "[5-8]")
    first = site.start("submit", recipe)
    wait_for(lambda: len(shards(site, "good")) == 2, "the first shards to be published")
    [job] = [job for job in site.document("jobs")["jobs"] if job["output"].endswith("/good")]
    wait_for(lambda: site.document("status", job["job"])["shards"]["finished"] == 2, "the log to tell of them")
    running = site.document("status", job["job"])
    assert (running["state"], running["shards"]["total"]) == ("running", 8)
    wait_for(lambda: (site.document("status", job["job"])["workers"] or 0) > 0, "a line that tells of the workers")
    assert running["bytes"]["total"] > 8_000_000
    joined = site.run("submit", recipe, "--no-wait", "--workers", "1")
    assert (joined.returncode, joined.stdout) == (0, f"{job['job']}\n")
    assert "--workers is not given, asked for is 1" in joined.stderr
    occupied = site.run("submit", recipe, "--overwrite")
    assert occupied.returncode == 3
    assert f"paramdelta-dist stop {job['job']} --wait --address {site.cluster.dashboard}" in occupied.stderr
    assert "is told to stop" in site.run("stop", job["job"]).stdout
    time.sleep(1)  # so that the driver is told; if it is not yet, it comes no further than the shards that are still held
    go.set()
    stopped = site.run("stop", job["job"], "--wait")
    assert stopped.returncode == 0, stopped.stderr
    further.set()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "was stopped; submit again" in err
    assert "config.json" not in site.objects("good")

    site.proxy.clear()
    go = site.hold("good", "8")
    with relay(site.cluster.dashboard) as way:
        second = site.start("submit", recipe, address=way.url)
        wait_for(lambda: site.proxy.count("PUT", "/good/model-00008"), "the shard that is held")
        time.sleep(2)  # so that the log has told of them
        way.cut()
        time.sleep(1)
        way.refusing = True
        way.cut()
        time.sleep(2)
        way.refusing = False
        go.set()
        out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert out.startswith(f"merged into s3://{site.bucket}/good\n")
    assert "kept from an earlier run" in out
    assert {"config.json", ".paramdelta/commit.json", "model-00008-of-00008.safetensors"} <= site.objects("good")
    assert job_of(err) == job["job"].removesuffix("-1") + "-2"
    assert "trying again" in err
    told = [line for line in err.splitlines() if not re.match(r"job pdd-|the cluster at |connected again", line)]
    assert told == site.run("logs", job_of(err)).stdout.partition("\n{\n")[0].splitlines(), "a line came twice, or is lost"

    again = site.run("submit", recipe, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["state"] == "nothing to do"
    id_of_it = site.run("submit", recipe, "--no-wait")
    assert (id_of_it.returncode, id_of_it.stdout) == (0, f"{job_of(err)}\n"), "the job that made it"
    assert "nothing to do: " in id_of_it.stderr
    none = site.run("submit", recipe, "--no-wait", address="http://127.0.0.1:1")
    assert (none.returncode, none.stdout) == (0, re.sub(r"-\d+\n$", "-0\n", id_of_it.stdout)), "no cluster that could be asked"
    status = site.document("status", job_of(err))
    assert (status["state"], status["exit_code"]) == ("succeeded", 0)
    assert status["result"]["shards"]["made"] + status["result"]["shards"]["kept"] == 8


def test_what_cannot_be_merged_is_told_before_anything_is_submitted(site_of_a_head):
    done = site_of_a_head.run("submit", site_of_a_head.recipe("missing", base="nowhere"), address="http://127.0.0.1:1")
    assert done.returncode == 3
    assert "nowhere" in done.stderr
    bad = site_of_a_head.recipe("bad")
    bad.write_text(bad.read_text().replace("deltas", "delats"))
    assert site_of_a_head.run("submit", bad, address="http://127.0.0.1:1").returncode == 2


@pytest.mark.slow
def test_an_output_is_verified_and_deltas_are_analyzed_on_the_cluster(site):
    recipe = site.recipe("looked-at")
    early = site.run("submit", recipe, "--do", "verify", "--json")
    assert early.returncode == 3, early.stderr
    assert "no finished merge of ours" in json.loads(early.stdout)["error"]["driver"]["message"]
    made = site.run("submit", recipe, "--python", sys.executable)
    assert made.returncode == 0, made.stderr
    sound = site.run("submit", recipe, "--do", "verify", "--deep")
    assert sound.returncode == 0, sound.stderr
    assert "every byte by digest" in sound.stdout
    analysis = site.run("submit", recipe, "--do", "analyze", "--output", f"s3://{site.bucket}/analysis", "--json")
    assert analysis.returncode == 0, analysis.stderr
    assert len(json.loads(analysis.stdout)["result"]["deltas"]) == 1
    assert any(name.endswith(".html") for name in site.objects("analysis"))
    key, client = "looked-at/model-00002-of-00008.safetensors", site.server.client()
    content = client.get_object(Bucket=site.bucket, Key=key)["Body"].read()
    client.put_object(Bucket=site.bucket, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    broken = site.run("submit", recipe, "--do", "verify", "--deep", "--json")
    assert broken.returncode == 5, broken.stderr
    assert "layers." in str(json.loads(broken.stdout)["result"]["problems"])


def test_an_interpreter_without_the_package_is_named(site_of_a_head):
    done = site_of_a_head.run("submit", site_of_a_head.recipe("bare"), "--python", "/nowhere/bin/python")
    assert done.returncode == 2
    assert "no Python at /nowhere/bin/python" in done.stderr
    assert "--python PATH" in done.stderr


@pytest.mark.slow
def test_the_exit_code_is_the_drivers_own_where_nothing_was_checked_before(site):
    done = site.run("submit", site.recipe("missing", base="nowhere"), "--no-check", "--json")
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["state"] == "failed"
    assert "nowhere" in document["error"]["driver"]["message"]


@pytest.mark.slow
def test_ctrl_c_detaches_and_submitting_again_joins_the_job(site):
    recipe, go = site.recipe("detached"), site.hold("detached", "[3-8]")
    at_once = [site.start("submit", recipe, "--no-wait") for _ in range(3)]
    ids = {process.communicate(timeout=60)[0] for process in at_once}
    assert len(ids) == 1, "one merge is one job, however often it is submitted at a time"
    process = site.start("submit", recipe)
    wait_for(lambda: len(shards(site, "detached")) == 2, "the first shards to be published")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    job = job_of(err)
    assert f"paramdelta-dist logs {job} -f --address {site.cluster.dashboard}" in err
    assert f"paramdelta-dist stop {job} --address {site.cluster.dashboard}" in err
    assert "Traceback" not in err
    both = [site.start("submit", recipe), site.start("logs", job, "-f"), site.start("submit", recipe, "--no-wait")]
    out, _ = both.pop().communicate(timeout=60)
    assert out == f"{job}\n"
    go.set()
    for each in both:
        out, err = each.communicate(timeout=90)
        assert each.returncode == 0, err
        assert "merged into" in out
    assert [job["state"] for job in site.document("jobs")["jobs"] if job["output"].endswith("/detached")] == ["succeeded"]


@pytest.mark.slow
def test_one_recipe_for_two_endpoints_is_two_jobs_and_two_outputs(site):
    """Two servers with the same bucket, in which the same models are: all that differs is where."""
    client, keys = site.server.client(), ("new/", "post/", "old/")
    with start_s3_server() as other:
        other.client().create_bucket(Bucket=site.bucket)
        for entry in client.list_objects_v2(Bucket=site.bucket)["Contents"]:
            if entry["Key"].startswith(keys):
                body = client.get_object(Bucket=site.bucket, Key=entry["Key"])["Body"].read()
                other.client().put_object(Bucket=site.bucket, Key=entry["Key"], Body=body)
        go, ids = site.hold("placed", "[1-8]"), []
        for endpoint in (site.proxy.endpoint, other.endpoint):
            recipe = site.recipe("placed")
            recipe.write_text(f'{recipe.read_text()}storage: {{"s3://": {{endpoint: "{endpoint}"}}}}\n')
            ids.append(site.run("submit", recipe, "--no-wait").stdout.strip())
        assert len(set(ids)) == 2
        go.set()
        for job in ids:
            assert site.run("logs", job, "-f").returncode == 0
        found = other.client().list_objects_v2(Bucket=site.bucket, Prefix="placed/")["Contents"]
        assert {entry["Key"].partition("/")[2] for entry in found} == site.objects("placed")


@pytest.mark.slow
def test_the_way_out_of_a_job_that_would_not_overwrite_is_the_one_that_is_told(site):
    recipe, go = site.recipe("stood"), site.hold("stood", "[3-8]")
    job = site.run("submit", recipe, "--no-wait").stdout.strip()
    wait_for(lambda: len(shards(site, "stood")) == 2, "the first shards to be published")
    refused = site.run("submit", recipe, "--overwrite")
    assert refused.returncode == 3
    line = re.search(r"`paramdelta-dist (stop [^`]*)`", refused.stderr)[1].replace(f" --address {site.cluster.dashboard}", "")
    stopping = site.start(*line.split())
    time.sleep(1)
    go.set()
    assert stopping.wait(90) == 0
    site.proxy.clear()
    done = site.run("submit", recipe, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert job_of(done.stderr) == job.removesuffix("-1") + "-2"
    assert "kept from an earlier run" not in done.stdout


@pytest.mark.slow
def test_a_cluster_that_nobody_named_is_named_before_anything_is_sent_and_an_empty_address_finds_none(site, tmp_path):
    (tmp_path / "ray").mkdir()
    shutil.copy(f"{site.cluster.folder}/head/ray_current_cluster", tmp_path / "ray")  # by which Ray finds it on this machine
    here = {**os.environ, **site.environ, "RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": ""}
    recipe = site.recipe("found")

    def run(*arguments):
        line = [sys.executable, "-m", "paramdelta_dist", *map(str, arguments)]
        return subprocess.run(line, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=120, check=False)

    empty = run("submit", recipe, "--address", "")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "--address: an empty string is given" in empty.stderr
    assert not [job for job in site.document("jobs")["jobs"] if job["output"].endswith("/found")]
    done = run("submit", recipe, "--no-wait")
    assert done.returncode == 0, done.stderr
    named = f"using the Ray cluster at {site.cluster.dashboard}, which was found on this machine"
    assert done.stderr.index(named) < done.stderr.index("submitted on")
    job = done.stdout.strip()
    for command in (["jobs"], ["status", job], ["logs", job], ["logs", "-f", job], ["stop", job]):
        told = run(*command)
        assert told.returncode == 0, told.stderr
        assert named in told.stderr
        assert named not in told.stdout


@pytest.mark.slow
def test_a_dashboard_that_stays_away_ends_the_following_and_not_the_job(site):
    recipe, go = site.recipe("away"), site.hold("away", "[3-8]")
    (site.folder / "impatient.py").write_text(
        "from paramdelta_dist.jobs import follow\nfollow.GIVE_UP_SECONDS = 3.0\nfrom paramdelta_dist import __main__\n__main__.main()\n"
    )
    with relay(site.cluster.dashboard) as way:
        process = site.start("submit", recipe, address=way.url, program=("impatient.py",))
        wait_for(lambda: len(shards(site, "away")) == 2, "the first shards to be published")
        way.refusing = True
        way.cut()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "was left as it is" in err
    go.set()
    done = site.run("submit", recipe)
    assert done.returncode == 0, done.stderr
    assert "runs already" in done.stderr or "nothing to do" in done.stdout


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A checkout of a version that the cluster does not have."""
    root = tmp_path_factory.mktemp("newer")
    shutil.copytree(f"{ROOT}/paramdelta_dist", root / "paramdelta_dist", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(f"{ROOT}/{name}", root)
    (root / "paramdelta_dist/_version.py").write_text('"""The version."""\n\n__version__ = "99.1.0"\n')
    return root


@pytest.mark.slow
def test_another_version_on_the_cluster_is_refused_with_the_remedy(site, newer):
    done = site.run("submit", site.recipe("refused"), PYTHONPATH=str(newer))
    assert done.returncode == 2, done.stderr
    assert "version 99.1.0 submitted this job" in done.stderr
    assert "--ship package" in done.stderr
    assert not site.objects("refused")


@pytest.mark.slow
@pytest.mark.parametrize("ship", ["package", "wheel"])
def test_the_package_travels_to_a_cluster_that_has_another_version(site, newer, ship):
    done = site.run("submit", site.recipe(f"ship-{ship}"), "--ship", ship, "--json", PYTHONPATH=str(newer))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["version"] == "99.1.0"


@pytest.mark.slow
def test_overwriting_goes_on_after_a_stop_and_does_not_start_anew(site):
    recipe = site.recipe("replaced")
    assert site.run("submit", recipe).returncode == 0
    go, further = site.hold("replaced", "[34]"), site.hold("replaced", "[5-8]")
    process = site.start("submit", recipe, "--overwrite")
    wait_for(lambda: "config.json" not in site.objects("replaced"), "the old output to go")
    wait_for(lambda: len(shards(site, "replaced")) == 2, "the first shards to be published")
    job = site.document("jobs")["jobs"][0]["job"]
    site.run("stop", job)
    time.sleep(1)  # so that the driver is told; if it is not yet, it comes no further than the shards that are still held
    go.set()
    process.communicate(timeout=60)
    further.set()
    assert process.returncode == 130
    done = site.run("submit", recipe, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "has replaced the output's old content already" in done.stderr
    assert "kept from an earlier run" in done.stdout


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_gets_it_and_one_that_is_missing_or_wrong_is_told(models, s3_server, s3_proxy, tmp_path):
    s3_proxy.clear()
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "home").mkdir()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    nodes = {**s3_server.environ, "AWS_ENDPOINT_URL": s3_proxy.endpoint, **token}
    with ray_cluster(nodes, workers=1) as guarded:
        site = Site(guarded, models, s3_server, s3_proxy, tmp_path)
        recipe, home = site.recipe("guarded"), {"HOME": str(tmp_path / "home")}
        none = site.run("submit", recipe, RAY_AUTH_MODE="disabled", **home)
        assert none.returncode == 4
        assert "wants a token, and none was sent: set RAY_AUTH_MODE=token" in none.stderr
        wrong = site.run("jobs", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="PLANTED-WRONG-TOKEN-0123456789abcdef", **home)
        assert wrong.returncode == 4
        assert "did not let us in: the token in RAY_AUTH_TOKEN was sent" in wrong.stderr
        missing = site.run("jobs", RAY_AUTH_MODE="token", **home)
        assert missing.returncode == 4
        assert "there is no token" in missing.stderr
        done = site.run("submit", recipe, **token, **home)
        assert done.returncode == 0, done.stderr
        log = site.run("logs", job_of(done.stderr), **token, **home).stdout
        for text in (none.stderr, wrong.stderr, missing.stderr, done.stdout, done.stderr, log):
            assert TOKEN not in text
            assert "PLANTED" not in text
            assert "Traceback" not in text


@pytest.mark.slow
def test_no_secret_of_the_submitter_is_in_what_the_cluster_shows_of_a_job(site):
    planted = {"AWS_SESSION_TOKEN": "PLANTED-SESSION", "HF_TOKEN": "PLANTED-HF", "RAY_JOB_HEADERS": '{"X-Secret": "PLANTED-HEADER"}'}
    done = site.run("submit", site.recipe("secrets"), "--no-check", "--no-wait", **planted)
    assert done.returncode == 0, done.stderr
    with urllib.request.urlopen(f"{site.cluster.dashboard}/api/jobs/{done.stdout.strip()}", timeout=10) as reply:
        shown = reply.read().decode()
    assert done.stdout.strip() in shown
    assert "PLANTED" not in shown
    assert site.server.secret_key not in shown
    assert site.run("logs", "-f", done.stdout.strip()).returncode == 0
