"""What stores and networks do wrong between us and Azure or Google: the same proxy as before S3, the same promises."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from paramdelta_dist.errors import AlreadyExists, CredentialsError, InputChanged, NotFound, StorageError, TransientStorageError
from paramdelta_dist.storage import StorageConfig, Store, StoreSettings, open_store
from paramdelta_dist.storage.retry import RetryPolicy
from tests.azurite import AzureServer
from tests.contracts.store_contract import borrowed, content, same
from tests.faults import Fault, FaultProxy, cut, fault_proxy, lost, refused, stalled
from tests.google_xml import GoogleServer

DATA = content(1_000_000)
PARTS = content(20_000_000)
"""Two parts of an upload."""
PART = {"az": r"comp=block&", "gs": r"partNumber=1"}
COMPLETE = {"az": ("PUT", r"comp=blocklist"), "gs": ("POST", r"\?uploadId")}
PASSING = {
    "503": refused(503, "ServerBusy"),
    "500": refused(500, "InternalError"),
    "429": refused(429, "TooManyRequests"),
    "reset before the reply": lost(forwarded=False),
    "reset in the body": cut(300_000, reset=True),
    "short body": cut(300_000, reset=False),
}


def opened(url: str, **numbers: float) -> Store:
    quick = RetryPolicy(first_delay=0.01, longest_delay=0.2, stall=2.0, **numbers)  # type: ignore[arg-type]
    return open_store(url, StorageConfig({"": StoreSettings(retries=quick)}))


@pytest.fixture(params=["az", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, FaultProxy]]:
    """A store with an object in it, and the proxy it goes through. Delays are short, and a stall is one after a second."""
    server: Any = request.getfixturevalue("azure_server" if scheme == "az" else "google_server")
    with fault_proxy(server.endpoint) as proxy:
        if scheme == "az":
            azure: AzureServer = server
            there = azure.connection_string.replace(azure.endpoint, f"{proxy.endpoint}/{azure.account}")
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", there)
            url = f"az://{azure.make_container()}/m"
        else:
            google: GoogleServer = server
            for name, value in {**google.environ, "GOOGLE_BASE_URL": proxy.endpoint}.items():
                monkeypatch.setenv(name, value)
            url = f"gs://{google.make_bucket()}/m"
        store = opened(url)
        store.put("object", [DATA], size=len(DATA))
        proxy.clear()
        yield store, proxy


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_read_is_repeated_until_it_is_whole(place: tuple[Store, FaultProxy], fault: Fault) -> None:
    store, proxy = place
    identity = store.identify("object")
    proxy.rule(fault, method="GET", times=3)
    assert same(store.read_range("object", 1000, 900_000, identity=identity), DATA[1000:900_000])
    assert proxy.faults == 3


def test_a_read_that_stalls_is_given_up_and_repeated(place: tuple[Store, FaultProxy]) -> None:
    store, proxy = place
    identity = store.identify("object")
    proxy.rule(stalled(after=1000), method="GET")
    assert same(store.read_range("object", 0, len(DATA), identity=identity), DATA)


@pytest.mark.parametrize(
    "fault", [refused(503, "ServerBusy"), lost(forwarded=False), lost(forwarded=True)], ids=["503", "lost", "done and lost"]
)
def test_a_part_of_an_upload_is_sent_again(place: tuple[Store, FaultProxy], scheme: str, fault: Fault) -> None:
    store, proxy = place
    proxy.rule(fault, method="PUT", path=PART[scheme], times=2)
    written = store.put("out", borrowed(PARTS, 3_000_001), size=len(PARTS))
    assert proxy.faults == 2
    assert same(store.read_range("out", 0, len(PARTS), identity=written), PARTS)


def test_an_upload_whose_completion_was_refused_for_a_moment_is_completed(place: tuple[Store, FaultProxy], scheme: str) -> None:
    store, proxy = place
    method, path = COMPLETE[scheme]
    proxy.rule(refused(503, "ServerBusy"), method=method, path=path, times=2)
    written = store.put("out", borrowed(PARTS, 3_000_001), size=len(PARTS))
    assert same(store.read_range("out", 0, len(PARTS), identity=written), PARTS)


def test_a_create_only_write_whose_reply_was_lost_has_written_once(place: tuple[Store, FaultProxy]) -> None:
    store, proxy = place
    proxy.rule(lost(forwarded=True), method="PUT")
    with suppress(AlreadyExists):  # taken by this very write: callers look what is there
        store.write("claim", b"mine", exclusive=True)
    assert store.read("claim", limit=10) == b"mine"


FINAL = {
    "gone container": (refused(404, "ContainerNotFound"), NotFound),
    "gone bucket": (refused(404, "NoSuchBucket"), NotFound),
    "changed": (refused(412, "ConditionNotMet"), InputChanged),
    "denied": (refused(403, "AuthorizationFailure"), CredentialsError),
    "nobody": (refused(401, "NoAuthenticationInformation"), CredentialsError),
    "not public": (refused(409, "PublicAccessNotPermitted"), CredentialsError),
    "archived": (refused(409, "BlobArchived"), StorageError),
    "leased": (refused(412, "LeaseIdMissing"), StorageError),
    "requester pays": (refused(400, "UserProjectMissing"), StorageError),
}


@pytest.mark.parametrize("meaning", FINAL)
def test_what_will_be_the_same_next_time_is_asked_once(place: tuple[Store, FaultProxy], meaning: str) -> None:
    store, proxy = place
    fault, kind = FINAL[meaning]
    identity = store.identify("object")
    proxy.rule(fault, method="GET", times=9)
    with pytest.raises(kind) as caught:
        store.read_range("object", 0, 10, identity=identity)
    assert type(caught.value) is kind
    assert not isinstance(caught.value, TransientStorageError)
    assert proxy.faults == 1


def test_a_store_that_stays_away_is_exit_75_after_the_time_that_was_set(place: tuple[Store, FaultProxy]) -> None:
    store, proxy = place
    store = opened(store.url, seconds=1.0)
    proxy.rule(refused(503, "ServerBusy"), times=1e9)
    began = time.monotonic()
    with pytest.raises(TransientStorageError):
        store.identify("object")
    assert time.monotonic() - began < 40
