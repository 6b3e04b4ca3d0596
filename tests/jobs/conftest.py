"""A cluster of three nodes that share nothing but an S3 server, whose uploads can be held up."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.clusters import ROOT, RayServer, ray_cluster
from tests.faults import FaultProxy, fault_proxy
from tests.models import save_model
from tests.servers import S3Server
from tests.terminal import call


@dataclass
class Site:
    """A user's place: a cluster, a bucket with three models, and a terminal."""

    cluster: RayServer
    bucket: str
    server: S3Server
    proxy: FaultProxy
    folder: Path

    def recipe(self, name: str, **changes: str) -> Path:
        """A recipe file for a merge of eight shards into a folder of its own."""
        models = {"base": "new", "post": "post", "old": "old", **changes}
        path = self.folder / f"{name}.yaml"
        path.write_text(
            f"base: s3://{self.bucket}/{models['base']}\n"
            f"deltas: [{{post: s3://{self.bucket}/{models['post']}, base: s3://{self.bucket}/{models['old']}}}]\n"
            f"output: s3://{self.bucket}/{name}\nshard_size: 1MB\n"
        )
        return path

    def start(
        self, *arguments: object, address: str | None = None, program: tuple[str, ...] = ("-m", "paramdelta_dist"), **environment: str
    ) -> subprocess.Popen[str]:
        line = [sys.executable, *program, *map(str, arguments), "--address", address or self.cluster.dashboard]
        return subprocess.Popen(
            line,
            cwd=self.folder,
            env={**os.environ, **self.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, address: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, address=address, **environment)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def document(self, *arguments: str, **environment: str) -> dict:
        done = call(*arguments, "--json", "--address", self.cluster.dashboard, cwd=self.folder, **self.environ, **environment)
        return json.loads(done.stdout)

    @property
    def environ(self) -> dict[str, str]:
        return {**self.server.environ, "AWS_ENDPOINT_URL": self.proxy.endpoint, "PYTHONPATH": ROOT, "TERM": "dumb", "COLUMNS": "200"}

    def hold(self, name: str, shards: str) -> threading.Event:
        """Hold the uploads of this output's shards whose numbers match until the event is set."""
        go = threading.Event()

        def fault(exchange):
            go.wait(120)
            exchange.answer(exchange.forward())

        self.proxy.rule(fault, method="PUT", path=f"/{re.escape(name)}/model-0000{shards}-", times=math.inf)
        return go

    def objects(self, name: str) -> set[str]:
        listed = self.server.client().list_objects_v2(Bucket=self.bucket, Prefix=f"{name}/").get("Contents", [])
        return {entry["Key"].partition("/")[2] for entry in listed}


@pytest.fixture(scope="package")
def s3_proxy(s3_server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="package")  # it does not rest: what would run beside it to the end of the tests takes a third of a core
def cluster(s3_server, s3_proxy) -> Iterator[RayServer]:
    with ray_cluster({**s3_server.environ, "AWS_ENDPOINT_URL": s3_proxy.endpoint}) as started:
        yield started


@pytest.fixture(scope="package")
def head(s3_server, s3_proxy) -> Iterator[RayServer]:
    """A cluster on which nothing can be merged, there in a third of the time."""
    with ray_cluster({**s3_server.environ, "AWS_ENDPOINT_URL": s3_proxy.endpoint}, workers=0) as started:
        yield started


@pytest.fixture(scope="package")
def models(s3_server, tmp_path_factory) -> str:
    """A bucket with new, post and old: eight tensors of 1 MB."""
    root, bucket = tmp_path_factory.mktemp("models"), s3_server.make_bucket()
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(500, 500, generator=generator) for n in range(8)}
    for name, scale in (("new", 1.0), ("post", 1.1), ("old", 0.9)):
        for path in save_model(root / name, {n: t * scale for n, t in tensors.items()}, files=2).iterdir():
            s3_server.client().put_object(Bucket=bucket, Key=f"{name}/{path.name}", Body=path.read_bytes())
    return bucket


@pytest.fixture
def site_of_a_head(head, models, s3_server, s3_proxy, tmp_path) -> Iterator[Site]:
    s3_proxy.clear()
    yield Site(head, models, s3_server, s3_proxy, tmp_path)
    s3_proxy.clear()


@pytest.fixture
def site(cluster, models, s3_server, s3_proxy, tmp_path) -> Iterator[Site]:
    s3_proxy.clear()
    yield Site(cluster, models, s3_server, s3_proxy, tmp_path)
    s3_proxy.clear()
