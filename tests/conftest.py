"""What every test stands on: an environment that is nobody's, and servers and a Ray that start when a test first asks for one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Read at import by the libraries concerned, here and in the processes that tests start.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
pytest.register_assert_rewrite("tests.contracts")

from tests import servers  # noqa: E402

_FOREIGN = ("AWS_", "STORAGE_EMULATOR_HOST", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_")


def _leave_nobodys_settings(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests (`-n 2`), a module is one process's, for its fixtures, and so is all that starts a Ray: one at
    a time is enough for a small machine. That takes longest, so it begins first."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("xdist_group").args != ("ray",))


@pytest.fixture(scope="session", autouse=True)
def _environment_of_servers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _leave_nobodys_settings(patch)
        yield


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_dist.storage import aws, opening

    _leave_nobodys_settings(monkeypatch)
    opening._open.cache_clear()
    aws._session.cache_clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[servers.S3Server]:
    with servers.s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[servers.GcsServer]:
    with servers.gcs_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_ray(s3_server) -> Iterator[str]:
    """Address of a Ray of three cores on this machine, whose workers can reach the S3 server.

    A process that has had a Ray inside (`ray.init("local")`, a merge with `engine="ray"` and no RAY_ADDRESS) cannot join one that was
    there before, whose actors then never start: tests leave that to processes they start.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environ.items():
            patch.setenv(name, value)
        options = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 80 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=options)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def on_shared_ray(shared_ray, monkeypatch) -> None:
    """Runs with `engine="ray"` join the shared Ray, in which a worker is there in a third of the time an embedded one takes to start."""
    monkeypatch.setenv("RAY_ADDRESS", shared_ray)
