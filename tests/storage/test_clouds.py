"""Whole merges on Azure's and Google's stores, as a user makes them: killed, run again, verified, looked at and cleaned up after."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paramdelta_dist import api
from paramdelta_dist.storage import StorageConfig, open_store
from tests.azurite import AzureServer
from tests.driver.test_same_bytes import SHARD, digests, upload
from tests.faults import FaultProxy, fault_proxy, stalled
from tests.google_xml import GoogleServer
from tests.models import ARCHITECTURES, make_models, recipe
from tests.terminal import call

SECONDS = 120


@pytest.fixture(scope="module")
def local_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    old, post, new = make_models(tmp_path_factory.mktemp("models"), ARCHITECTURES["llama"])
    return new, post, old


@pytest.fixture(scope="module")
def reference(local_models: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("reference") / "out"
    api.merge(recipe(*local_models, out, shard_size=SHARD, weight=0.8), workers=1)
    return digests(out)


class Cloud:
    """A prefix of a store, its models, and a proxy before the server that can hold requests up."""

    def __init__(self, root: str, proxy: FaultProxy, environ: dict[str, str]) -> None:
        self.root, self.proxy, self.environ = root, proxy, environ

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "paramdelta_dist", *arguments]
        return subprocess.Popen(command, env={**os.environ, **self.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The command in this process, whose start is what takes long."""
        done = call(*arguments, "--json", cwd=Path())
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else {}


@pytest.fixture(params=["az", pytest.param("abfss", marks=pytest.mark.slow), "gs"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    if request.param == "gs":
        google: GoogleServer = request.getfixturevalue("google_server")
        with fault_proxy(google.endpoint) as proxy:
            file = google.service_account(tmp_path)
            environ = {"GOOGLE_APPLICATION_CREDENTIALS": str(file), "GOOGLE_BASE_URL": proxy.endpoint}
            yield from _set_up(Cloud(f"gs://{google.make_bucket()}/nightly", proxy, environ), monkeypatch)
        return
    server: AzureServer = request.getfixturevalue("azure_server")
    container = server.make_container()
    with fault_proxy(server.endpoint) as proxy:
        endpoint = f"{proxy.endpoint}/{server.account}"
        if request.param == "az":
            environ = {"AZURE_STORAGE_CONNECTION_STRING": server.connection_string.replace(server.endpoint, endpoint)}
            root = f"az://{container}/nightly"
        else:
            environ = {"AZURE_STORAGE_SAS_TOKEN": server.sas(container), "AZURE_STORAGE_ENDPOINT": endpoint}
            root = f"abfss://{container}@{server.account}.dfs.core.windows.net/nightly"
        yield from _set_up(Cloud(root, proxy, environ), monkeypatch)


def _set_up(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in cloud.environ.items():
        monkeypatch.setenv(name, value)
    yield cloud


def test_a_killed_merge_goes_on_and_its_output_is_verified_and_cleaned_up_after(
    cloud: Cloud, local_models: tuple[Path, Path, Path], reference: dict[str, str], tmp_path: Path
) -> None:
    urls = [f"{cloud.root}/{folder.name}" for folder in local_models]
    for folder, url in zip(local_models, urls, strict=True):
        upload(folder, url)
    new, post, old = urls
    out, last = f"{cloud.root}/out", sorted(reference)[-1]
    path = tmp_path / "recipe.yaml"
    text = {"base": new, "deltas": [{"post": post, "base": old, "weight": 0.8}], "output": out, "shard_size": SHARD}
    path.write_text(json.dumps(text))

    cloud.proxy.rule(stalled(), method="PUT", path=f"out.*model(-|%2D){last[6:11]}", times=math.inf)  # its last shard never arrives
    merge = cloud.start("merge", str(path), "--workers", "1")
    deadline = time.monotonic() + SECONDS
    while not cloud.proxy.faults:
        assert merge.poll() is None, merge.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    merge.kill()
    merge.communicate()
    state = cloud.run("status", out)
    assert state["state"] == "unfinished"
    cloud.proxy.clear()

    again = cloud.run("merge", str(path), "--workers", "2")
    assert again["state"] == "merged"
    assert digests(out) == reference
    assert again["shards"]["kept"] == len(reference) - 1
    assert cloud.run("merge", str(path))["state"] == "nothing to do"
    assert cloud.run("status", out)["state"] == "complete"
    cloud.run("verify", out, "--deep", "--recompute", "0.5")

    left = cloud.run("clean", out, "--older-than", "0s", "--yes")["leftovers"]
    assert [leftover["name"] for leftover in left] == ([last] if cloud.root.startswith("gs") else [])
    assert cloud.run("clean", out, "--older-than", "0s")["leftovers"] == []
    cloud.run("verify", out)

    store = open_store(new, StorageConfig())
    weights = next(name for name in store.list() or {} if name.endswith(".safetensors"))
    store.write(weights, store.read(weights, limit=1 << 20)[:-1] + b"\1")
    cloud.run("merge", str(path), code=3)
    cloud.run("merge", str(path), "--overwrite")
    cloud.run("verify", out, "--deep")
    assert digests(out) != reference


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["az"], indirect=True)
def test_ray_does_not_change_a_byte_on_azure(
    cloud: Cloud, local_models: tuple[Path, Path, Path], reference: dict[str, str], tmp_path: Path
) -> None:
    """An embedded Ray, whose workers have the environment of the command; on a cluster it is the nodes' own."""
    urls = [f"{cloud.root}/{folder.name}" for folder in local_models]
    for folder, url in zip(local_models, urls, strict=True):
        upload(folder, url)
    new, post, old = urls
    out, path = f"{cloud.root}/out", tmp_path / "recipe.yaml"
    text = {"base": new, "deltas": [{"post": post, "base": old, "weight": 0.8}], "output": out, "shard_size": SHARD}
    path.write_text(json.dumps(text))
    merge = cloud.start("merge", str(path), "--engine", "ray", "--workers", "1")
    errors = merge.communicate(timeout=2 * SECONDS)[1]
    assert merge.returncode == 0, errors
    assert digests(out) == reference
