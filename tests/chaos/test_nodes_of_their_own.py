"""Nodes with addresses and disks of their own, started as a user starts them: models on S3, the driver on a head without cores."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import servers
from tests.chaos.runs import SHARDS, Chaos, Place, assert_complete, end, wait_for, write_recipe

PORT = 6379


def why_not() -> str:
    """Why this machine cannot do it; empty if it can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [tool for tool in ("ip", "unshare", "nsenter") if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} is not installed"
    name = f"pd{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine has no bridges: {tried.stderr.strip()}"
    ip("link", "del", name)
    return ""


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Lan:
    """A bridge on this machine, and namespaces that are connected to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.name, self.net = f"pd{secrets.token_hex(3)}", f"10.231.{secrets.randbelow(256)}"
        self.address = f"{self.net}.1"
        self._stack, self._count = stack, 1
        ip("link", "add", self.name, "type", "bridge")
        stack.callback(ip, "link", "del", self.name)
        ip("addr", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")

    def connect(self) -> tuple[str, str]:
        """A new namespace and its address."""
        self._count += 1
        space, address = f"{self.name}n{self._count}", f"{self.net}.{self._count}"
        here, there = f"{self.name}h{self._count}", f"{self.name}t{self._count}"
        ip("netns", "add", space)
        self._stack.callback(ip, "netns", "del", space)
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", space)
        ip("link", "set", here, "master", self.name, "up")
        for command in (("addr", "add", f"{address}/24", "dev", there), ("link", "set", there, "up"), ("link", "set", "lo", "up")):
            ip("-n", space, *command)
        return space, address


def kill(space: str) -> None:
    """End every process of a namespace, as a machine does that loses power."""
    while processes := ip("netns", "pids", space).split():
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.05)


@dataclass(frozen=True)
class Node:
    space: str
    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def cluster(lan: Lan, environ: dict[str, str], nodes: int) -> Iterator[list[Node]]:
    """A head without cores and nodes of one core, each in a namespace and with a disk of its own where Ray keeps its files."""
    folder = tempfile.mkdtemp(prefix="pd", dir="/tmp")
    alone = f'mount -t tmpfs none {folder} && mount -t tmpfs none /dev/shm && cd {folder} && exec "$@"'
    ray = str(Path(sys.executable).with_name("ray"))
    started: list[Node] = []
    try:
        for number in range(nodes + 1):
            space, address = lan.connect()
            command = ["ip", "netns", "exec", space, "unshare", "--mount", "sh", "-c", alone, "sh", ray, "start", "--block"]
            command += [f"--node-ip-address={address}", f"--object-store-memory={80 << 20}"]
            if number == 0:
                command += ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
            else:
                command += [f"--address={started[0].address}:{PORT}", "--num-cpus=1"]
            process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.append(Node(space, address, process))
            if number == 0:
                wait_for(lambda: answers(started[0].address))
        yield started
    finally:
        for node in started:
            kill(node.space)
            node.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    with suppress(OSError), socket.create_connection((address, PORT), timeout=1):
        return True
    return False


def stored(server: servers.S3Server, models: tuple[Path, ...]) -> Place:
    """The models in a bucket of the server, and an output there."""
    bucket, client = server.make_bucket(), server.client()
    for path in (path for folder in models for path in folder.iterdir()):
        client.put_object(Bucket=bucket, Key=f"{path.parent.name}/{path.name}", Body=path.read_bytes())
    new, post, old = (f"s3://{bucket}/{folder.name}" for folder in models)
    return Place((new, post, old), f"s3://{bucket}/out", server.environ, client)


@pytest.mark.slow
def test_a_merge_over_nodes_with_addresses_and_disks_of_their_own_survives_one_that_loses_power(models, quiet, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    chaos = Chaos(tmp_path / "chaos", pace=0.3)
    health = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "0"}
    with ExitStack() as stack:
        lan = Lan(stack)
        server = stack.enter_context(servers.s3_server(lan.address))
        place = stored(server, models)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environ = {**os.environ, **server.environ, **chaos.environ, **health, **token}
        head, first, second = stack.enter_context(cluster(lan, environ, nodes=2))
        recipe = write_recipe(tmp_path / "recipe.yaml", place)
        merge = [sys.executable, "-m", "paramdelta_dist", "merge", str(recipe), "--engine", "ray", "--json", "--patience", "90s"]
        merge = ["nsenter", f"--target={head.process.pid}", "--mount", "--net", *merge]
        environ |= {"RAY_ADDRESS": f"{head.address}:{PORT}"}

        def run(**more):
            return subprocess.Popen(merge, env={**environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        refused = end(run(RAY_AUTH_TOKEN="0" * 64))
        assert refused.code == 4, refused
        assert "RAY_AUTH_TOKEN" in refused.errors
        assert token["RAY_AUTH_TOKEN"] not in str(refused)
        process = run()
        wait_for(lambda: len({worker for _, worker in chaos.started}) == 2 or process.poll() is not None)
        kill(first.space)
        done = end(process)
        assert done.code == 0, done
        report = assert_complete(place, quiet)
    assert report["shards"] == {"made": SHARDS, "kept": 0}
    assert report["workers_lost"] == 1, done
    assert f" on {first.address})" in done.errors, "the log names the node that was lost"
    assert report["nodes"] in (1, 2), "the lost one may have finished nothing"
    assert second.address not in done.errors
