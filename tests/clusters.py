"""Ray clusters of real `ray start` processes on loopback, with ports and folders of their own; ended by their process ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tests.servers import START_SECONDS, free_ports

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

T = TypeVar("T")
ROOT = str(Path(__file__).parent.parent)
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class RayServer:
    dashboard: str
    """URL of the dashboard, where jobs are submitted."""
    folder: str
    nodes: tuple[subprocess.Popen[bytes], ...]
    """Those with a core, by the `ray start` they live in."""

    def processes(self, number: int) -> list[int]:
        """A node's processes, each after its parent: `ray start`, its raylet, its workers and agents."""
        return [self.nodes[number].pid, *_descendants(self.nodes[number].pid)]

    def kill(self, number: int) -> None:
        """End all of a node at once, as a machine does that loses power: who starts processes goes before what was started."""
        for pid in self.processes(number):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def ray_cluster(environ: Mapping[str, str], *, workers: int = 2, ray: Path = RAY) -> Iterator[RayServer]:
    """A head without cores and `workers` nodes of one core, started by this `ray`, each with `environ` and this package on its path.

    Nothing is on the PATH by which the nodes' Python could be found.
    """
    gcs, dashboard, client = free_ports(3)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True))
        url = f"http://127.0.0.1:{dashboard}"
        head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=0"]
        _node(stack, folder, "head", ray, [*head, f"--ray-client-server-port={client}"], environ)
        _wait(lambda: _answers(f"{url}/api/version"), folder, "head")
        address = f"--address={_own_address()}:{gcs}"
        one = [address, "--num-cpus=1"]
        nodes = tuple(_started_node(stack, folder, f"node{number}", ray, one, environ) for number in range(workers))
        yield RayServer(url, folder, nodes)


def node_in_this_process(**options: Any) -> Cluster:
    """A cluster whose head belongs to this process."""
    from ray.cluster_utils import Cluster

    options = {"include_dashboard": False, "object_store_memory": 80 << 20, **options}
    return _at_last(lambda: Cluster(initialize_head=True, head_node_args=options))


def _started_node(
    stack: ExitStack, folder: str, name: str, ray: Path, options: list[str], environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        node = _node(stack, folder, name, ray, options, environ)
        _wait(lambda: node.poll() is not None or "Ray runtime started" in _log(folder, name).read_text(), folder, name)
        if node.poll() is not None:
            raise RuntimeError(f"{name} did not start:\n{_log(folder, name).read_text(errors='replace')[-3000:]}")
        return node

    return _at_last(start)


def _at_last(start: Callable[[], T]) -> T:
    """Ray gives a node up that takes half a minute to start, as on a busy machine: then it is started again."""
    for _ in range(2):
        with suppress(Exception):
            return start()
    return start()


def _own_address() -> str:
    """The address Ray's head takes for itself; it does not listen at another."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _log(folder: str, name: str) -> Path:
    return Path(folder, f"{name}.log")


def _node(stack: ExitStack, folder: str, name: str, ray: Path, options: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    agent, agent_grpc, metrics, runtime = free_ports(4)
    Path(folder, name).mkdir(exist_ok=True)
    ports = [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}"]
    ports += [f"--runtime-env-agent-port={runtime}", "--min-worker-port=0", "--max-worker-port=0"]
    place = [f"--temp-dir={folder}/{name}"]
    line = [str(ray), "start", "--block", "--object-store-memory=80000000", *options, *ports, *place]
    ours = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": ROOT}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    with _log(folder, name).open("wb") as log:
        process = subprocess.Popen(
            line,
            env={**kept, "PATH": "/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true", **ours, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=f"{folder}/{name}",
            start_new_session=True,
        )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """`ray start --block` ends its own children when it is told to."""
    children = _descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    process.kill()
    process.wait()
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _wait(ready: object, folder: str, name: str) -> None:
    deadline = time.monotonic() + 2 * START_SECONDS
    while not ready():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} did not start:\n{_log(folder, name).read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


class Relay:
    """A port that passes bytes on to a server, whose connections can be cut."""

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._listener = socket.create_server(("127.0.0.1", free_ports(1)[0]))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.connections = 0
        self.refusing = False
        """Whether new connections are closed at once."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection now."""
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                self.connections += 1
                server = socket.create_connection(self._target)
                with self._lock:
                    self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    made = Relay(url)
    try:
        yield made
    finally:
        made.close()
