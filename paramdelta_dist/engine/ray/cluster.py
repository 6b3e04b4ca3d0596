"""A Ray cluster as the driver sees it: joining or starting one, its nodes, those that are about to go, and why no worker comes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from paramdelta_dist import stopping
from paramdelta_dist.engine.machine import available_cores
from paramdelta_dist.errors import CredentialsError, EngineError, UsageError
from paramdelta_dist.sizes import format_memory

CONNECT_SECONDS = 10.0
"""Seconds that a cluster's address may take to answer; Ray itself would try for minutes and then end the process."""
SHUTDOWN_SECONDS = 3.0
"""Seconds that leaving a cluster may take, or ending one of ours."""
POLL_SECONDS = 0.5
EMBEDDED_OBJECT_STORE = 100 << 20
"""Bytes of an embedded Ray's object store: no weights pass through it."""
FEW = 12
"""Nodes that a diagnosis lists before the rest is only counted."""


@dataclass(frozen=True)
class Share:
    """The resources that each worker asks Ray for."""

    memory: int
    gpus: float = 0
    cpus: float = 1

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names; memory in bytes."""
        return {"CPU": self.cpus, "memory": self.memory} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        return _amounts(self.resources)


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    leaving: bool = False

    def lacks(self, share: Share) -> list[str]:
        """Resources it has too little of for a worker, even with nothing else on it."""
        return [name for name, amount in share.resources.items() if self.total.get(name, 0) < amount]

    def __str__(self) -> str:
        free = {name: self.free.get(name, 0) for name, amount in self.total.items() if amount and name in ("CPU", "GPU", "memory")}
        whole = _amounts({name: self.total[name] for name in free})
        return f"{self.address}: {whole}; free: {_amounts(free)}{'; about to go' if self.leaving else ''}"


def join(workers: int | None, connect_seconds: float = CONNECT_SECONDS) -> int | None:
    """Join the cluster that RAY_ADDRESS names, else start one in this process's name. Returns how many workers it can ever
    have: None where that is the cluster's affair.

    Raises EngineError when none can be had, CredentialsError when it wants another token, UsageError when the address is not
    one a driver can join, or the cluster's Ray or Python is not ours.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "").strip()
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme:
        what = "a dashboard" if scheme.startswith("http") else "a Ray Client server"
        raise UsageError(
            f"RAY_ADDRESS={address} is the address of {what}, which a merge cannot run through: `submit` takes a dashboard's; on a "
            "machine of the cluster, RAY_ADDRESS is HOST:6379 or auto"
        )
    arguments: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    cores = None
    if address in ("", "local"):  # without an address, Ray would join what runs on this machine
        cores = workers or available_cores()
        arguments |= {"address": "local", "num_cpus": cores, "include_dashboard": False, "object_store_memory": EMBEDDED_OBJECT_STORE}
    elif not _answers(address, connect_seconds):
        raise EngineError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start one, correct the address, or unset it for an embedded one"
        )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**arguments)
    except KeyboardInterrupt:
        stopping.alive(SHUTDOWN_SECONDS)
        ray.shutdown()  # what has been started of one
        raise
    except Exception as error:  # Ray raises the bare class too, for a node that takes too long to start
        told = str(error).strip()
        if "Version mismatch" in told:
            raise UsageError(f"the cluster at {address} has other versions than this driver: {told}. Use the same on both") from error
        if _is_refusal(error):
            raise CredentialsError(
                f"the Ray cluster at {address} refuses this driver's token, or got none: give it the cluster's, as RAY_AUTH_TOKEN or in "
                "the file that RAY_AUTH_TOKEN_PATH names, and set RAY_AUTH_MODE=token"
            ) from error
        raise EngineError(f"no Ray cluster could be joined or started ({address or 'embedded'}): {told.partition(chr(10))[0]}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own, which ends the process without a word
    return cores


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a cluster's authentication is behind an error."""
    while error is not None:
        if "AuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def leaving_nodes() -> dict[str, float]:
    """Ids of the nodes that are about to go, and when on the monotonic clock; infinite where nobody said."""
    try:
        draining = ray._private.state.state.get_draining_nodes()
    except (AttributeError, RayError, RuntimeError, OSError):  # not an interface Ray promises
        return {}
    ahead = time.monotonic() - time.time()
    return {node: deadline / 1000 + ahead if deadline else float("inf") for node, deadline in draining.items()}


def diagnose(share: Share) -> str:
    """Why no worker can be had, as far as the cluster tells."""
    free = ray._private.state.available_resources_per_node()
    leaving = leaving_nodes()
    nodes = [
        Node(each["NodeManagerAddress"], each["Resources"], free.get(each["NodeID"], {}), each["NodeID"] in leaving)
        for each in ray.nodes()
        if each["Alive"]
    ]
    return explain(share, nodes, _demand())


def explain(share: Share, nodes: Sequence[Node], demand: Sequence[tuple[Mapping[str, float], int]]) -> str:
    """A diagnosis in words: the resources asked for, those of the cluster, the demand that waits there, and the way out."""
    lines = [f"A worker needs {share}; the cluster has:"]
    lines += [f"  {node}" for node in nodes[:FEW]]
    if len(nodes) > FEW:
        lines.append(f"  and {len(nodes) - FEW} more nodes")
    if demand:
        waiting = ", ".join(f"{count} × ({_amounts(resources)})" for resources, count in demand[:FEW])
        lines.append(f"Waiting for resources there: {waiting}")
    return "\n".join([*lines, _remedy(share, nodes)])


def _remedy(share: Share, nodes: Sequence[Node]) -> str:
    staying = [node for node in nodes if not node.leaving]
    if not any(node.total.get("CPU") for node in nodes):
        return "No node has CPUs for workers: start some (ray start --address=…), or look why the autoscaler adds none"
    if not staying:
        return "All its nodes are about to go: start others"
    if all(node.lacks(share) for node in staying):
        scarce = min((node.lacks(share) for node in staying), key=len)
        largest = {name: max(node.total.get(name, 0) for node in staying) for name in scarce}
        ways = {"memory": "ask for less (--memory)", "GPU": "compute on CPUs (--device cpu)"}
        way = " or ".join(ways[name] for name in scarce if name in ways)
        return f"No node is large enough, the most on one is {_amounts(largest)}: {way + ', or ' if way else ''}add larger nodes"
    return "What it needs is in use by others: wait for them, add nodes, or ask for less (--memory)"


def _demand() -> list[tuple[Mapping[str, float], int]]:
    """The demand that waits in the whole cluster, ours included: resources and how often, as its autoscaler is told."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        waiting = status.resource_demands.ray_task_actor_demand + status.resource_demands.placement_group_demand
        return [(each.bundle, each.count) for one in waiting for each in one.bundles_by_count]
    except Exception:  # nothing of this is promised by Ray, and without it the diagnosis is still one
        return []


def _amounts(resources: Mapping[str, float]) -> str:
    texts = [_amount(name, resources[name]) for name in sorted(resources)]
    return ", ".join(texts[:-1]) + (" and " if len(texts) > 1 else "") + texts[-1] if texts else "nothing"


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{format_memory(amount)} of memory"
    return f"{amount:g} {name}{'s' * (amount != 1)}"


def _answers(address: str, connect_seconds: float) -> bool:
    """Whether something listens at host:port, asked for some seconds; other forms (auto) are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return True
    deadline = time.monotonic() + connect_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=connect_seconds).close()
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
