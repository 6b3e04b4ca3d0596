"""What stores and networks do wrong, done by a proxy before a real server: what can be mended is, the rest is asked once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paramdelta_dist.errors import (
    AlreadyExists,
    CredentialsError,
    InputChanged,
    IntegrityError,
    NotFound,
    ParamDeltaError,
    StorageError,
    TransientStorageError,
)
from paramdelta_dist.storage import Identity, StorageConfig, Store, StoreSettings, open_store
from paramdelta_dist.storage.retry import DEFAULT_RETRIES, RetryPolicy
from tests.contracts.store_contract import SMALLEST_PART, borrowed, content, same
from tests.faults import Fault, FaultProxy, cut, fault_proxy, flipped_upload, lost, refused, shortened, stalled
from tests.servers import S3Server

DATA = content(3_000_000)
PARTS = content(7_000_000)
"""Two parts of an upload."""

BOUND = 40.0
"""Seconds: more than these calls take on a machine that is busy with other things, less than they would by the limits that users have."""
BEGIN, PART, COMPLETE = ("POST", r"\?uploads"), ("PUT", "partNumber=1"), ("POST", r"\?uploadId")


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def boto(s3_server: S3Server) -> Any:
    """A client that asks the server itself."""
    return s3_server.client()


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    bucket = s3_server.make_bucket()
    for engine in ("obstore", "fsspec"):
        s3_server.client().put_object(Bucket=bucket, Key=f"{engine}/object", Body=DATA)
    return bucket


@pytest.fixture(params=["obstore", "fsspec"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clients() -> dict[object, Store]:
    """By engine and numbers: a client of s3fs takes half a second to make."""
    return {}


@pytest.fixture
def opened(
    s3_server: S3Server,
    proxy: FaultProxy,
    bucket: str,
    engine: str,
    clients: dict[object, Store],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Store]:
    """Opens the store behind the proxy with numbers of `RetryPolicy` that are given; small parts and short delays need no asking."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

    def opened(**numbers: float) -> Store:
        retries = RetryPolicy(**{"first_delay": 0.01, "longest_delay": 0.2, **numbers})  # type: ignore[arg-type]
        settings = StoreSettings(engine=engine, retries=retries, part_size=SMALLEST_PART)  # type: ignore[arg-type]
        key = (engine, *sorted(numbers.items()))
        if key not in clients:
            clients[key] = open_store(f"s3://{bucket}/{engine}", StorageConfig({"": settings}))
            clients[key].identify("object")
        proxy.clear()
        return clients[key]

    return opened


@pytest.fixture
def identity(boto: Any, bucket: str, engine: str) -> Identity:
    return Identity(len(DATA), boto.head_object(Bucket=bucket, Key=f"{engine}/object")["ETag"])


@pytest.fixture(autouse=True)
def no_upload_is_left(boto: Any, bucket: str) -> Iterator[None]:
    yield
    assert boto.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def read(store: Store, identity: Identity) -> bool:
    return same(store.read_range("object", 1000, 2_900_000, identity=identity), DATA[1000:2_900_000])


def put(store: Store) -> Identity:
    return store.put("out", borrowed(PARTS, 3_000_001), size=len(PARTS))


def holds(boto: Any, bucket: str, store: Store) -> bool:
    """Whether the put above has arrived; asked of the server itself."""
    key = f"{store.url.rpartition('/')[2]}/out"
    return same(boto.get_object(Bucket=bucket, Key=key)["Body"].read(), PARTS)


# --- reads


PASSING = {
    "503": refused(503, "SlowDown"),
    "500": refused(500, "InternalError"),
    "429": refused(429, "TooManyRequests"),
    "request timeout": refused(400, "RequestTimeout"),
    "reset before the reply": lost(forwarded=False),
    "reset in the body": cut(1_000_000, reset=True),
    "reset after the headers": cut(0, reset=True),
    "short body": cut(1_000_000, reset=False),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_read_is_repeated_until_it_is_whole(opened: Callable[..., Store], proxy: FaultProxy, identity: Identity, fault: Fault) -> None:
    store = opened()
    proxy.rule(fault, method="GET", times=3)
    assert read(store, identity)
    assert proxy.count("GET") == 4


@pytest.mark.parametrize("fault", [stalled(), stalled(0), stalled(1_000_000)], ids=["no reply", "no body", "half a body"])
def test_a_stalled_read_is_given_up_and_repeated(opened: Callable[..., Store], proxy: FaultProxy, identity: Identity, fault: Fault) -> None:
    store = opened(stall=0.5)
    proxy.rule(fault, method="GET", times=2)
    began = time.monotonic()
    assert read(store, identity)
    assert 1 <= time.monotonic() - began < BOUND
    assert proxy.count("GET") >= 3


@pytest.mark.parametrize("name", ["503", "reset after the headers", "short body"])
def test_a_read_that_never_succeeds_ends_in_bounded_time(
    opened: Callable[..., Store], proxy: FaultProxy, identity: Identity, name: str
) -> None:
    store = opened(seconds=1)
    proxy.rule(PASSING[name], method="GET", times=math.inf)
    began = time.monotonic()
    with pytest.raises(TransientStorageError) as caught:
        read(store, identity)
    assert caught.value.exit_code == 75
    assert 1 <= time.monotonic() - began < BOUND
    assert 3 <= proxy.count("GET") <= 60


@pytest.mark.parametrize("times", [2, math.inf])
def test_a_reply_of_the_wrong_length_is_asked_for_again_and_never_used(
    opened: Callable[..., Store], proxy: FaultProxy, identity: Identity, times: float
) -> None:
    store = opened(seconds=1)
    proxy.rule(shortened(1000), method="GET", times=times)
    if times == 2:
        assert read(store, identity)
        return
    with pytest.raises((IntegrityError, TransientStorageError)) as caught:
        read(store, identity)
    assert caught.value.exit_code in (5, 75)


# --- what cannot succeed


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", CredentialsError),
        (400, "ExpiredToken", CredentialsError),
        (403, "RequestTimeTooSkewed", CredentialsError),
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", NotFound),
        (412, "PreconditionFailed", InputChanged),
        (416, "InvalidRange", InputChanged),
        (400, "InvalidArgument", StorageError),
        (501, "NotImplemented", StorageError),
    ],
)
def test_what_cannot_succeed_is_asked_once(
    opened: Callable[..., Store], proxy: FaultProxy, identity: Identity, status: int, code: str, kind: type[ParamDeltaError]
) -> None:
    store = opened()
    proxy.rule(refused(status, code), method="GET", times=math.inf)
    for call in (lambda: read(store, identity), lambda: store.read_range("object", 0, 9, identity=identity)):
        proxy.requests.clear()
        with pytest.raises(kind) as caught:
            call()
        assert not caught.value.retryable
        assert proxy.count("GET") == 1


def test_expired_credentials_are_told_as_such_and_at_once_in_every_call(
    opened: Callable[..., Store], proxy: FaultProxy, identity: Identity
) -> None:
    store = opened()
    proxy.rule(refused(400, "ExpiredToken"), times=math.inf)
    calls: list[Callable[[], object]] = [
        lambda: store.identify("object"),
        store.list,
        lambda: store.read("object", limit=10**7),
        lambda: read(store, identity),
        lambda: put(store),
        lambda: store.write("small", b"data"),
        lambda: store.write("small", b"data", exclusive=True),
        lambda: store.delete("small"),
    ]
    for call in calls:
        proxy.requests.clear()
        with pytest.raises(CredentialsError, match="expired") as caught:
            call()
        assert caught.value.exit_code == 4
        assert len(proxy.requests) <= 2, "s3fs asks for the bucket's region once when a HEAD fails like this"


@pytest.mark.parametrize("step", [BEGIN, PART, COMPLETE], ids=["begin", "part", "complete"])
def test_a_put_that_is_not_allowed_is_not_repeated_and_leaves_no_upload(
    opened: Callable[..., Store], proxy: FaultProxy, step: tuple[str, str]
) -> None:
    store = opened()
    proxy.rule(refused(403, "AccessDenied"), method=step[0], path=step[1], times=math.inf)
    with pytest.raises(CredentialsError):
        put(store)
    assert proxy.count(*step) == 1


# --- writes


@pytest.mark.parametrize("step", [BEGIN, PART, COMPLETE], ids=["begin", "part", "complete"])
@pytest.mark.parametrize("name", ["503", "500", "reset before the reply"])
def test_a_request_of_a_put_is_repeated(
    opened: Callable[..., Store], proxy: FaultProxy, boto: Any, bucket: str, step: tuple[str, str], name: str
) -> None:
    store = opened()
    proxy.rule(PASSING[name], method=step[0], path=step[1], times=2)
    assert put(store) == store.identify("out")
    assert proxy.count(*step) == 3
    assert holds(boto, bucket, store)


@pytest.mark.parametrize("step", [PART, COMPLETE], ids=["part", "complete"])
@pytest.mark.parametrize("fault", [lost(forwarded=True), stalled()], ids=["lost", "stalled"])
def test_a_put_whose_replies_do_not_come_ends_well(
    opened: Callable[..., Store], proxy: FaultProxy, boto: Any, bucket: str, step: tuple[str, str], fault: Fault
) -> None:
    store = opened(stall=3)
    proxy.rule(fault, method=step[0], path=step[1])
    assert put(store).size == len(PARTS)
    assert proxy.count(*step) >= 2
    assert holds(boto, bucket, store)


def test_an_error_in_a_reply_of_status_200_is_an_error(opened: Callable[..., Store], proxy: FaultProxy, boto: Any, bucket: str) -> None:
    store = opened()
    proxy.rule(refused(200, "InternalError"), method="POST", path=COMPLETE[1], times=2)
    put(store)
    assert proxy.count(*COMPLETE) == 3
    assert holds(boto, bucket, store)


def test_a_completion_whose_reply_was_lost_and_that_is_gone_when_asked_again_is_worth_another_put(
    opened: Callable[..., Store], proxy: FaultProxy, boto: Any, bucket: str
) -> None:
    store = opened()
    proxy.rule(lost(forwarded=True), method="POST", path=COMPLETE[1])
    proxy.rule(refused(404, "NoSuchUpload"), method="POST", path=COMPLETE[1])
    with pytest.raises(TransientStorageError):
        put(store)
    assert proxy.count(*COMPLETE) == 2
    put(store)
    assert holds(boto, bucket, store)


@pytest.mark.parametrize("step", [BEGIN, PART, COMPLETE], ids=["begin", "part", "complete"])
def test_a_put_that_never_succeeds_ends_in_bounded_time_and_leaves_no_upload(
    opened: Callable[..., Store], proxy: FaultProxy, step: tuple[str, str]
) -> None:
    store = opened(seconds=1)
    before = store.write("out", b"before")
    proxy.rule(PASSING["503"], method=step[0], path=step[1], times=math.inf)
    began = time.monotonic()
    with pytest.raises(TransientStorageError):
        put(store)
    assert 1 <= time.monotonic() - began < BOUND
    assert 3 <= proxy.count(*step) <= 60
    assert store.identify("out") == before


def test_bytes_that_change_on_their_way_to_the_store_are_not_kept(
    opened: Callable[..., Store], proxy: FaultProxy, boto: Any, bucket: str
) -> None:
    store = opened()
    for _ in range(2):
        proxy.rule(flipped_upload, method="PUT", path="partNumber=2")
        try:
            put(store)
        except TransientStorageError:
            put(store)
        assert holds(boto, bucket, store)


WRITES = PASSING | {"lost reply": lost(forwarded=True), "flipped": flipped_upload}


@pytest.mark.parametrize("name", ["503", "500", "429", "reset before the reply", "lost reply", "flipped"])
def test_a_small_write_is_repeated(opened: Callable[..., Store], proxy: FaultProxy, name: str) -> None:
    store = opened()
    proxy.rule(WRITES[name], method="PUT", times=2)
    identity = store.write("small", b"of some length")
    assert proxy.count("PUT") == 3
    assert store.identify("small") == identity
    assert store.read("small", limit=100) == b"of some length"


def test_an_exclusive_write_whose_reply_was_lost_finds_the_name_taken(opened: Callable[..., Store], proxy: FaultProxy) -> None:
    store = opened()
    store.delete("claim")
    proxy.rule(lost(forwarded=True), method="PUT")
    with pytest.raises(AlreadyExists):
        store.write("claim", b"ours", exclusive=True)
    assert store.read("claim", limit=10) == b"ours"


def test_every_other_call_is_repeated_too(opened: Callable[..., Store], proxy: FaultProxy) -> None:
    store = opened()
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.identify("object"),
        store.list,
        lambda: store.read("object", limit=10**7),
        lambda: store.delete("absent"),
    )
    for fault in (PASSING["503"], PASSING["reset before the reply"]):
        for call in calls:
            proxy.clear()
            proxy.rule(fault, times=2)
            call()
            assert len(proxy.requests) >= 3


# --- a store that goes away


def test_a_store_that_comes_back_is_waited_for(
    opened: Callable[..., Store], proxy: FaultProxy, identity: Identity, boto: Any, bucket: str
) -> None:
    store = opened()
    proxy.vanish(1)
    assert read(store, identity)
    proxy.rule(lambda exchange: exchange.proxy.vanish(1), method="PUT", path=PART[1])
    put(store)
    assert holds(boto, bucket, store)


@pytest.mark.slow
def test_half_a_minute_is_waited_for_with_the_numbers_that_ship(
    boto: Any, proxy: FaultProxy, bucket: str, engine: str, identity: Identity, opened: Callable[..., Store]
) -> None:
    store = opened(first_delay=DEFAULT_RETRIES.first_delay, longest_delay=DEFAULT_RETRIES.longest_delay)
    assert DEFAULT_RETRIES.seconds >= 60
    proxy.vanish(30)
    began = time.monotonic()
    assert read(store, identity)
    assert 29 < time.monotonic() - began < 45
    proxy.rule(lambda exchange: exchange.proxy.vanish(30), method="PUT", path=PART[1])
    began = time.monotonic()
    put(store)
    assert 29 < time.monotonic() - began < 60
    assert holds(boto, bucket, store)


# --- the rule itself


def test_a_call_is_repeated_until_its_time_is_up_and_not_longer() -> None:
    policy = RetryPolicy(seconds=0.5, first_delay=0.01)
    calls: list[float] = []

    def fails() -> None:
        calls.append(time.monotonic())
        raise TransientStorageError("again")

    began = time.monotonic()
    with pytest.raises(TransientStorageError):
        policy.persisting(fails, what="it")
    assert len(calls) >= 3
    assert 0.5 <= calls[-1] - began < 10


def test_one_rule_inside_another_adds_up_and_does_not_multiply() -> None:
    policy = RetryPolicy(seconds=1.0, first_delay=0.01)

    def fails() -> None:
        raise TransientStorageError("again")

    began = time.monotonic()
    with pytest.raises(TransientStorageError):
        policy.persisting(lambda: policy.persisting(lambda: policy.persisting(fails, what="1"), what="2"), what="3")
    assert time.monotonic() - began < 3.3


def test_waiting_ends_when_it_is_told_to() -> None:
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise TransientStorageError("again")

    with pytest.raises(TransientStorageError):
        DEFAULT_RETRIES.retrying(fails, what="it", sleep=lambda _: True)
    assert len(calls) == 1
