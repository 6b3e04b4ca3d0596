"""The same recipe gives the same shard bytes: from disk and from S3, in threads and on Ray, however many workers and tiles."""

import hashlib
import os

import pytest

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import ARCHITECTURES, make_models, recipe

SHARD = "100KB"


def digests(url):
    """MD5 of every weight file of an output, by name."""
    store = open_store(str(url), StorageConfig())
    present = {name: identity for name, identity in store.list().items() if name.endswith(".safetensors")}
    read = {n: bytes(store.read_range(n, 0, i.size, identity=i)) for n, i in present.items()}
    return {name: hashlib.md5(data).hexdigest() for name, data in read.items()}


def upload(folder, url):
    store = open_store(url, StorageConfig())
    for name in os.listdir(folder):
        store.write(name, (folder / name).read_bytes())


@pytest.fixture
def local_models(tmp_path):
    old, post, new = make_models(tmp_path / "models", ARCHITECTURES["llama"])
    return new, post, old


@pytest.fixture
def reference(tmp_path, local_models):
    """One worker, one thread, the sequential case."""
    api.merge(recipe(*local_models, tmp_path / "reference", shard_size=SHARD, weight=0.8), workers=1)
    expected = digests(tmp_path / "reference")
    assert len(expected) > 3
    return expected


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_threads_do_not_change_a_byte(tmp_path, local_models, reference, workers):
    api.merge(recipe(*local_models, tmp_path / "out", shard_size=SHARD, weight=0.8), workers=workers)
    assert digests(tmp_path / "out") == reference


@pytest.mark.parametrize("tile", [512, 5_000, 70_000])
def test_tiles_do_not_change_a_byte(tmp_path, local_models, reference, tile):
    merge_with(recipe(*local_models, tmp_path / "out", shard_size=SHARD, weight=0.8), Resources(workers=2, tile_size=tile))
    assert digests(tmp_path / "out") == reference


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_s3_does_not_change_a_byte_and_neither_does_its_client(tmp_path, local_models, reference, s3_server, monkeypatch, engine):
    bucket = _bucket(s3_server, monkeypatch)
    urls = [f"{bucket}/{folder.name}" for folder in local_models]
    for folder, url in zip(local_models, urls, strict=True):
        upload(folder, url)
    storage = {"s3://": {"engine": engine}}
    made = api.merge(recipe(*urls, f"{bucket}/out", shard_size=SHARD, weight=0.8, storage=storage), workers=2)
    assert digests(f"{bucket}/out") == reference
    again = api.merge(recipe(*urls, f"{bucket}/out", shard_size=SHARD, weight=0.8, storage=storage))
    assert (made.state, again.state) == ("merged", "nothing to do")


def test_google_storage_does_not_change_a_byte(tmp_path, local_models, reference, gcs_server, monkeypatch):
    bucket = _bucket(gcs_server, monkeypatch, "gs")
    urls = [f"{bucket}/{folder.name}" for folder in local_models]
    for folder, url in zip(local_models, urls, strict=True):
        upload(folder, url)
    api.merge(recipe(*urls, f"{bucket}/out", shard_size=SHARD, weight=0.8), workers=2)
    assert digests(f"{bucket}/out") == reference


@pytest.mark.usefixtures("on_shared_ray")
def test_ray_does_not_change_a_byte_on_disk_and_on_s3(tmp_path, local_models, reference, s3_server, monkeypatch):
    bucket = _bucket(s3_server, monkeypatch)
    urls = [f"{bucket}/{folder.name}" for folder in local_models]
    for folder, url in zip(local_models, urls, strict=True):
        upload(folder, url)
    for workers in (1, 3):
        made = api.merge(recipe(*local_models, tmp_path / f"out{workers}", shard_size=SHARD, weight=0.8), engine="ray", workers=workers)
        assert made.report["workers"] <= workers  # the first may be done before the others have started
        assert digests(tmp_path / f"out{workers}") == reference
    api.merge(recipe(*urls, f"{bucket}/out", shard_size=SHARD, weight=0.8), engine="ray", workers=2)
    assert digests(f"{bucket}/out") == reference


def _bucket(server, monkeypatch, scheme="s3"):
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return f"{scheme}://{server.make_bucket()}"
