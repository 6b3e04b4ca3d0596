"""What every test stands on: an environment that is nobody's, and servers and a Ray that start when a test first asks for one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A hundred processes that import torch or Ray would each compile them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Read at import by the libraries concerned, here and in the processes that tests start.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
pytest.register_assert_rewrite("tests.contracts")
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is nobody's mistake
settings.load_profile("busy")

from tests import azurite, google_xml, servers  # noqa: E402

_FOREIGN = (
    "AWS_", "AZURE_", "GOOGLE_", "GCE_METADATA_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS",
    "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip
"""How the names of variables begin, in upper case, that say which stores, clusters, authorities and proxies a user has."""


def _leave_nobodys_settings(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(_FOREIGN)]:
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("CLOUDSDK_CONFIG", os.devnull)
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


_RAYS = re.compile(r"test_stragglers|tests/chaos/|test_on_a_cluster|test_a_lost_node|(?<![a-z])ray(?![a-z])")
"""In the names of tests that start a Ray, or share fixtures with one that does."""


_LONG_ONES = ("test_stopping", "storage/", "methods/test_contract", "memory/", "output/", "shards/", "engine/", "docs/")
_LONG = tuple(f"tests/{name}" for name in _LONG_ONES)
"""Modules that would be waited for at the end."""


def _group(nodeid: str) -> str:
    """What of the tests is one process's where processes share them (`-n 2`): a module, for its fixtures; and all Rays, one of
    which at a time is enough for a small machine."""
    return "rays" if _RAYS.search(nodeid) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (_group(item.nodeid) != "rays", not item.nodeid.startswith(_LONG)))  # what takes longest begins first


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Not by the mark `xdist_group`, which has no effect with pytest 9.2 and xdist 3.8."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Grouped(config, log)


@pytest.fixture(scope="session", autouse=True)
def _environment_of_servers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _leave_nobodys_settings(patch)
        yield


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_dist.storage import aws
    from paramdelta_dist.storage import open as opening

    _leave_nobodys_settings(monkeypatch)
    opening._open.cache_clear()
    aws._session.cache_clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[servers.S3Server]:
    """With it, what botocore has on disk of AWS's services is read once, not for every session that a test makes."""
    import botocore.session

    with pytest.MonkeyPatch.context() as patch, servers.s3_server() as server:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[servers.GcsServer]:
    with servers.gcs_server() as server:
        yield server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[azurite.AzureServer]:
    with azurite.azure_server() as server:
        yield server


@pytest.fixture(scope="session")
def google_server() -> Iterator[google_xml.GoogleServer]:
    with google_xml.google_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_ray(s3_server) -> Iterator[str]:
    """Address of a Ray of three cores on this machine, whose workers can reach the S3 server.

    A process that has had a Ray inside (`ray.init("local")`, a merge with `engine="ray"` and no RAY_ADDRESS) cannot join one that was
    there before, whose actors then never start: tests leave that to processes they start.
    """
    from tests.clusters import node_in_this_process

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environ.items():
            patch.setenv(name, value)
        cluster = node_in_this_process(num_cpus=3)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Any]:
    """The cluster of a head that runs no workers and soon notices that a node is lost; tests add the nodes."""
    from tests.clusters import node_in_this_process

    periods = {"health_check_period_ms": 500, "health_check_initial_delay_ms": 0, "metrics_report_interval_ms": 500}
    cluster = node_in_this_process(num_cpus=0, _system_config={**periods, "health_check_failure_threshold": 3})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def on_shared_ray(shared_ray, monkeypatch) -> None:
    """Runs with `engine="ray"` join the shared Ray, in which a worker is there in a third of the time an embedded one takes to start."""
    monkeypatch.setenv("RAY_ADDRESS", shared_ray)
