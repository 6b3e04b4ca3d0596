"""Whole merges through a proxy that does what networks and stores do: they end with the bytes of a quiet run, or say why not and
keep what is finished."""

import math
import os
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import CredentialsError, InputChanged, StorageError
from paramdelta_dist.storage import StorageConfig, StoreSettings
from paramdelta_dist.storage import open as opening
from paramdelta_dist.storage.retry import DEFAULT_RETRIES, RetryPolicy
from tests.executors import acting
from tests.faults import cut, fault_proxy, lost, refused, stalled
from tests.models import recipe, save_model
from tests.stop_after_first import Watcher, weights
from tests.watched_stores import stored_by

SHARDS = 6
QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.5)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(500, 500, generator=generator) for n in range(SHARDS)}
    return [
        save_model(root / name, {n: t * scale for n, t in tensors.items()}, files=2)
        for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9))
    ]


@pytest.fixture(scope="module")
def quiet(models):
    """The bytes of an undisturbed run on local disk."""
    out = models[0].parent / "quiet"
    api.merge(recipe(*models, out, shard_size="1MB"), workers=1)
    return weights(out)


@pytest.fixture(scope="module")
def boto(s3_server):
    return s3_server.client()


@pytest.fixture(scope="module")
def bucket(s3_server, boto, models):
    bucket = s3_server.make_bucket()
    for folder in models:
        for path in folder.iterdir():
            boto.put_object(Bucket=bucket, Key=f"{folder.name}/{path.name}", Body=path.read_bytes())
    return bucket


@pytest.fixture
def proxy(s3_server, monkeypatch):
    """Stands between the merge and the store."""
    with fault_proxy(s3_server.endpoint) as proxy:
        for name, value in (s3_server.environ | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def merge(bucket, proxy, request):
    """Merges the models in the bucket into a folder of this test's own; delays are short."""

    def merge(act=None, *, storage="obstore", engine="local", workers=2, retries=QUICK):
        inputs = [f"s3://{bucket}/{name}" for name in ("new", "post", "old")]
        settings = StoreSettings(storage, proxy.endpoint, retries=retries)  # workers on Ray have their own environment
        opening._open.cache_clear()
        return merge_with(
            stored_by(recipe(*inputs, f"s3://{bucket}/{folder}", shard_size="1MB"), StorageConfig({"s3://": settings})),
            acting(workers=workers, retries=retries) if engine == "local" else Resources(engine, workers),
            observer=Watcher(lambda receipt: act and act()),
        )

    folder = merge.folder = f"out {request.node.name}".replace("/", " ")
    return merge


def weights_in_store(boto, bucket, folder):
    keys = [each["Key"] for each in boto.list_objects_v2(Bucket=bucket, Prefix=f"{folder}/")["Contents"]]
    return {key.rpartition("/")[2]: boto.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys if key.endswith(".safetensors")}


def finished(boto, bucket, folder):
    """How many receipts are there, and whether a loader would take the folder for a model."""
    keys = [each["Key"] for each in boto.list_objects_v2(Bucket=bucket, Prefix=f"{folder}/").get("Contents", [])]
    return sum("/receipts/" in key for key in keys), f"{folder}/config.json" in keys


# --- what passes


FAULTS = {
    "throttled": (refused(503, "SlowDown"), {"share": 0.1}),
    "errors": (refused(500, "InternalError"), {"share": 0.1}),
    "resets in the body": (cut(1000, reset=True), {"method": "GET", "path": "safetensors$", "share": 0.3}),
    "short bodies": (cut(1000, reset=False), {"method": "GET", "path": "safetensors$", "share": 0.3}),
    "lost replies": (lost(forwarded=True), {"method": "PUT", "share": 0.5}),
}


@pytest.mark.parametrize("storage", ["obstore", "fsspec"])
@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_costs_time_only(proxy, merge, quiet, boto, bucket, name, storage):
    fault, where = FAULTS[name]
    proxy.rule(fault, times=math.inf, **where)
    result = merge(storage=storage)
    assert result.report["shards"] == {"made": SHARDS, "kept": 0}
    assert proxy.faults > 2
    assert weights_in_store(boto, bucket, merge.folder) == quiet
    assert merge(storage=storage).state == "nothing to do"


def test_reads_that_stall_are_made_again(proxy, merge, quiet, boto, bucket):
    proxy.rule(stalled(1000), method="GET", path="safetensors$", skip=5, times=3)
    merge(retries=replace(QUICK, stall=1.0))
    assert proxy.faults == 3
    assert weights_in_store(boto, bucket, merge.folder) == quiet


@pytest.mark.parametrize("storage", ["obstore", "fsspec"])
def test_a_completion_that_was_done_but_not_told_costs_a_shard_at_most(proxy, merge, quiet, boto, bucket, storage):
    proxy.rule(lost(forwarded=True), method="POST", path="uploadId")
    proxy.rule(refused(404, "NoSuchUpload"), method="POST", path="uploadId")
    result = merge(storage=storage, workers=1)
    assert result.report["retries"] == 1
    assert weights_in_store(boto, bucket, merge.folder) == quiet
    assert boto.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


@pytest.mark.parametrize("storage", ["obstore", "fsspec"])
def test_a_store_that_vanishes_for_some_seconds_is_waited_for(proxy, merge, quiet, boto, bucket, storage):
    merge(lambda: proxy.vanish(3), storage=storage)
    assert weights_in_store(boto, bucket, merge.folder) == quiet


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["obstore", "fsspec"])
def test_a_store_that_vanishes_for_half_a_minute_is_waited_for(proxy, merge, quiet, boto, bucket, storage):
    began = time.monotonic()
    result = merge(lambda: proxy.vanish(30), storage=storage, retries=DEFAULT_RETRIES)
    assert 30 < time.monotonic() - began < 70
    assert result.report["retries"] == 0, "calls outlast it; no shard starts again"
    assert weights_in_store(boto, bucket, merge.folder) == quiet


@pytest.mark.slow
@pytest.mark.usefixtures("on_shared_ray")
def test_ray_workers_wait_and_repeat_too(proxy, merge, quiet, boto, bucket):
    proxy.rule(refused(503, "SlowDown"), times=math.inf, share=0.1)
    merge(lambda: proxy.vanish(3), engine="ray")
    assert proxy.faults > 2
    assert weights_in_store(boto, bucket, merge.folder) == quiet


# --- what does not pass


@pytest.mark.parametrize("storage", ["obstore", "fsspec"])
def test_credentials_that_expire_end_it_at_once_and_new_ones_go_on(proxy, merge, quiet, boto, bucket, storage):
    asked = []

    def expire():
        asked.append(len(proxy.requests))
        proxy.rule(refused(400, "ExpiredToken"), times=math.inf)

    with pytest.raises(CredentialsError, match="expired") as caught:
        merge(expire, storage=storage)
    assert caught.value.exit_code == 4
    assert len(proxy.requests) - asked[0] < 60, "reads that are under way, and nothing twice"
    kept, loadable = finished(boto, bucket, merge.folder)
    assert 1 <= kept < SHARDS
    assert not loadable
    proxy.clear()
    assert merge(storage=storage).report["shards"] == {"made": SHARDS - kept, "kept": kept}
    assert weights_in_store(boto, bucket, merge.folder) == quiet


@pytest.mark.parametrize("fault", [refused(503, "SlowDown"), lost(forwarded=False)], ids=["throttled", "reset"])
def test_a_store_that_stays_broken_ends_it_in_bounded_time_and_keeps_what_is_finished(proxy, merge, quiet, boto, bucket, fault):
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        merge(lambda: proxy.rule(fault, times=math.inf), retries=replace(QUICK, seconds=0.5, attempts=3))
    assert caught.value.exit_code == 75
    assert time.monotonic() - began < 90
    kept, loadable = finished(boto, bucket, merge.folder)
    assert 1 <= kept < SHARDS
    assert not loadable
    proxy.clear()
    assert merge().report["shards"] == {"made": SHARDS - kept, "kept": kept}
    assert weights_in_store(boto, bucket, merge.folder) == quiet


def test_a_store_that_is_broken_from_the_start_ends_it_in_bounded_time(proxy, merge):
    proxy.rule(refused(503, "SlowDown"), times=math.inf)
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        merge(retries=replace(QUICK, seconds=0.5))
    assert caught.value.exit_code == 75
    assert time.monotonic() - began < 60


def test_an_input_that_changes_meanwhile_ends_it_without_another_try(proxy, merge, boto, bucket):
    name = "post/model-00002-of-00002.safetensors"
    before = boto.get_object(Bucket=bucket, Key=name)["Body"].read()
    try:
        with pytest.raises(InputChanged, match=name) as caught:
            merge(lambda: boto.put_object(Bucket=bucket, Key=name, Body=before[:-1] + b"x"), workers=1)
        assert caught.value.exit_code == 3
        kept, loadable = finished(boto, bucket, merge.folder)
        assert 1 <= kept < SHARDS
        assert not loadable
    finally:
        boto.put_object(Bucket=bucket, Key=name, Body=before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, and a function that makes it larger."""

    def mount(*options):
        subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)], check=True, capture_output=True)

    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount("-o", "size=4m")
    except (subprocess.CalledProcessError, OSError):
        pytest.skip("nothing can be mounted here")
    try:
        yield disk, lambda: mount("-o", "remount,size=40m")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_ends_it_with_one_message_and_more_space_goes_on(models, quiet, small_disk):
    disk, enlarge = small_disk
    with pytest.raises(StorageError, match="disk is full") as caught:
        api.merge(recipe(*models, disk / "out", shard_size="1MB"), workers=1)
    assert caught.value.exit_code == 75
    assert not caught.value.retryable
    assert "\n" not in str(caught.value)
    assert not list(disk.rglob("*-part"))
    kept = len(list((disk / "out/.paramdelta/receipts").iterdir()))
    assert 1 <= kept < SHARDS
    enlarge()
    assert api.merge(recipe(*models, disk / "out", shard_size="1MB"), workers=1).report["shards"] == {"made": SHARDS - kept, "kept": kept}
    assert weights(disk / "out") == quiet
    assert os.path.exists(disk / "out/config.json")
