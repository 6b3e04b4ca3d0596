"""Mistakes in the environment are told with the variable's name, at once, and no library of a store has the last word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import obstore
import pytest

from paramdelta_dist.errors import CredentialsError, ParamDeltaError, StorageError, UsageError
from paramdelta_dist.storage import Identity, StorageConfig, Store, StoreSettings, aws, find_leftovers, open_store
from paramdelta_dist.storage.retry import RetryPolicy
from tests.faults import Exchange, fault_proxy
from tests.servers import S3Server
from tests.terminal import call

ENGINES = ("obstore", "fsspec")


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def opened(url: str, **settings: object) -> Store:
    return open_store(url, StorageConfig({"": StoreSettings(**settings)}))  # type: ignore[arg-type]


ADDRESSES = [
    "127.0.0.1:9000", "minio", "http://my host:9000", "http://host:99999", "http://host:port", "http://", "http://host/ ", "http://host\n",
    "ftp://host", "http://[::1", "http://me:PLANTED@host:9000",
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("value", ADDRESSES)
def test_an_address_that_cannot_be_is_told_with_its_variable(
    environment: pytest.MonkeyPatch, engine: str, variable: str, value: str
) -> None:
    environment.setenv(variable, value)
    began = time.monotonic()
    with pytest.raises(UsageError, match=rf"^{variable}\b") as caught:
        opened("s3://bucket/folder", engine=engine).list()
    assert time.monotonic() - began < 10
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", ADDRESSES)
def test_an_address_that_cannot_be_is_told_wherever_it_was_written(
    environment: pytest.MonkeyPatch, tmp_path: Path, engine: str, value: str
) -> None:
    with pytest.raises(UsageError, match="storage:"):
        opened("s3://bucket/folder", engine=engine, endpoint=value)
    if "\n" in value or value.endswith(" "):
        return  # no value of a file ends like this
    environment.delenv("AWS_ENDPOINT_URL")
    tmp_path.joinpath("config").write_text(f"[default]\nendpoint_url = {value}\n")
    environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(UsageError, match="profile"):
        opened("s3://bucket/folder", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("value", ["http://my proxy:1", "http://proxy:99999", "socks5://proxy:1080", "ftp://proxy", "http://", "proxy:1\n"])
def test_a_proxy_that_cannot_be_is_told_with_its_variable(environment: pytest.MonkeyPatch, engine: str, variable: str, value: str) -> None:
    environment.setenv(variable, value)
    with pytest.raises(UsageError, match=rf"^{variable}\b"):
        opened("s3://bucket/folder", engine=engine).list()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize(
    "value", ["PLANTED-value\n", "\nPLANTED-value", "PLANTED value", "PLANTED\nvalue", "PLANTED-välue", " PLANTED-value"]
)
def test_a_key_with_a_newline_or_a_space_is_told_with_its_variable_and_not_shown(
    environment: pytest.MonkeyPatch, engine: str, variable: str, value: str
) -> None:
    environment.setenv(variable, value)
    with pytest.raises(CredentialsError, match=rf"^{variable} (ends|begins|holds)") as caught:
        opened("s3://bucket/folder", engine=engine).list()
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("variable", "value", "kind"),
    [
        ("AWS_REGION", "us east 1", UsageError),
        ("AWS_REGION", "us-east-1\n", UsageError),
        ("AWS_DEFAULT_REGION", "-", UsageError),
        ("AWS_PROFILE", "nobody", CredentialsError),
        ("AWS_PROFILE", "default\n", UsageError),
        ("AWS_CONFIG_FILE", "{tmp}/no-ini", CredentialsError),
        ("AWS_SHARED_CREDENTIALS_FILE", "{tmp}/no-ini", CredentialsError),
        ("AWS_CA_BUNDLE", "/no/such/file", UsageError),
        ("AWS_SSE_KMS_KEY_ID", "arn:aws:kms:x\n", UsageError),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_its_variable(
    environment: pytest.MonkeyPatch, tmp_path: Path, engine: str, variable: str, value: str, kind: type[ParamDeltaError]
) -> None:
    tmp_path.joinpath("no-ini").write_text("this is no file of that kind\n")
    environment.setenv(variable, value.format(tmp=tmp_path))
    with pytest.raises(kind, match=variable):
        opened("s3://bucket/folder", engine=engine).list()


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("AZURE_STORAGE_ACCOUNT_KEY", "PLANTED==\n", "az://container/x"),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=PLANTED\n", "abfss://container@account.dfs.core.windows.net/x"),
        ("HF_TOKEN", "hf_PLANTED\n", "hf://someone/model"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json", "gs://bucket/x"),
        ("GOOGLE_APPLICATION_CREDENTIALS", __file__, "gs://bucket/x"),
    ],
)
def test_secrets_of_other_stores_are_looked_at_too(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, url: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CredentialsError, match=variable) as caught:
        opened(url)
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://my bucket/x", "s3://bücket/x", "gs://a\tb/x", "az://my container/x", "https://host:99999/x", "s3://a%b/x"]
)
def test_a_bucket_that_cannot_be_is_a_usage_error(environment: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(UsageError):
        opened(url, anonymous=True)


@pytest.mark.parametrize(
    ("variables", "url", "code", "named"),
    [
        ({"AWS_ENDPOINT_URL": "http://my host:99999"}, "s3://bucket/x", 2, "AWS_ENDPOINT_URL"),
        ({"AWS_SESSION_TOKEN": "abcdefgh\n"}, "s3://bucket/x", 4, "AWS_SESSION_TOKEN"),
        ({}, "s3://my bucket/", 2, "my bucket"),
    ],
)
def test_the_command_line_tells_it_in_one_line(environment, tmp_path, capfd, variables, url, code, named) -> None:
    """And nothing of what a library prints on its own, past Python, when it panics."""
    done = call("inspect", url, cwd=tmp_path, **variables)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert capfd.readouterr() == ("", "")


# --- the border


class Panic(BaseException):
    """Of the kind that pyo3 raises where Rust gives up: no `Exception`."""


RAISED = [Panic("at the store's"), RuntimeError("odd"), KeyError("field"), AttributeError("no"), asyncio.CancelledError(), AssertionError()]


OPERATIONS = ("head", "list", "get", "get range", "put", "put small", "delete")


def calls(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "head": lambda: store.identify("a"),
        "list": store.list,
        "get": lambda: store.read("a", limit=10),
        "get range": lambda: store.read_range("a", 0, 1, identity=Identity(1, '"x"')),
        "put": lambda: store.put("a", [b"data"], size=4),
        "put small": lambda: store.write("a", b"data"),
        "delete": lambda: store.delete("a"),
    }


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_obstore_raises_becomes_an_error_of_ours(
    environment: pytest.MonkeyPatch, bucket: str, operation: str, error: BaseException
) -> None:
    store = opened(f"s3://{bucket}/folder")

    def fails(*_: object, **__: object) -> None:
        raise error

    environment.setattr(obstore, operation.partition(" ")[0], fails)
    with pytest.raises(StorageError, match=f"s3://{bucket}/folder.*{type(error).__name__}") as caught:
        calls(store)[operation]()
    assert not caught.value.retryable
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_a_file_system_raises_becomes_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, operation: str, error: BaseException
) -> None:
    store = opened("memory://folder")

    def fails(*_: object, **__: object) -> None:
        raise error

    memory = fsspec.get_filesystem_class("memory")
    for method in ("info", "find", "cat_file", "open", "pipe_file", "rm_file", "makedirs"):
        monkeypatch.setattr(memory, method, fails)
    with pytest.raises(StorageError, match=f"memory://folder.*{type(error).__name__}|{error}") as caught:
        calls(store)[operation]()
    assert not caught.value.retryable


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["get_credentials", "get_scoped_config", "create_client"])
def test_whatever_botocore_raises_becomes_an_error_of_ours(
    environment: pytest.MonkeyPatch, bucket: str, place: str, error: BaseException
) -> None:
    from botocore.session import Session

    def fails(*_: object, **__: object) -> None:
        raise error

    environment.delenv("AWS_ENDPOINT_URL")
    environment.setattr(Session, place, fails)
    aws._session.cache_clear()
    with pytest.raises((CredentialsError, StorageError)) as caught:
        find_leftovers(f"s3://{bucket}/folder", StorageConfig())
    assert not caught.value.retryable


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), UsageError("ours")], ids=lambda error: type(error).__name__)
def test_what_is_ours_goes_through_the_border_unchanged(environment: pytest.MonkeyPatch, bucket: str, error: BaseException) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    environment.setattr(obstore, "head", fails)
    with pytest.raises(type(error)) as caught:
        opened(f"s3://{bucket}/folder").identify("a")
    assert caught.value is error


def test_a_producer_s_exception_comes_out_of_a_put_unchanged(environment: pytest.MonkeyPatch, bucket: str) -> None:
    class Odd(BaseException):
        pass

    def chunks():
        yield b"data"
        raise Odd

    for engine in ENGINES:
        with pytest.raises(Odd):
            opened(f"s3://{bucket}/{engine}", engine=engine).put("a", chunks(), size=8)


# --- what is asked of the service beside the bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_encryption_and_payer_are_sent_with_every_kind_of_write(
    environment: pytest.MonkeyPatch, s3_server: S3Server, bucket: str, engine: str
) -> None:
    """The server of the tests keeps no keys, so what it is sent is written down and answered by hand."""
    seen: dict[str, dict[str, str]] = {}

    def answer(exchange: Exchange) -> None:
        kind = exchange.command if "uploadId" not in exchange.path and "uploads" not in exchange.path else f"{exchange.command} upload"
        kind = "begin" if exchange.command == "POST" and "uploads" in exchange.path else kind
        seen.setdefault(kind, {name.lower(): value for name, value in exchange.headers.items()})
        exchange.answer(exchange.forward())

    environment.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    environment.setenv("AWS_SSE_KMS_KEY_ID", "arn:aws:kms:us-east-1:111122223333:key/abc")
    environment.setenv("AWS_REQUEST_PAYER", "requester")
    with fault_proxy(s3_server.endpoint) as between:
        between.rule(answer, times=float("inf"))
        environment.setenv("AWS_ENDPOINT_URL", between.endpoint)
        store = opened(f"s3://{bucket}/sse {engine}", engine=engine, retries=RetryPolicy(seconds=0.2))  # what it refuses, it refuses again
        for call_store in (
            lambda: store.write("small", b"data"),
            lambda: store.put("large", (bytes(1 << 20) for _ in range(40)), size=40 << 20),
            store.list,
        ):
            try:
                call_store()
            except ParamDeltaError as error:
                assert "KMS" in str(error) or error.exit_code == 75  # by then it was sent  # noqa: PT017
        find_leftovers(f"s3://{bucket}/sse {engine}", StorageConfig())
    for kind in ("PUT", "begin"):
        assert seen[kind]["x-amz-server-side-encryption"] == "aws:kms", kind
        assert seen[kind]["x-amz-server-side-encryption-aws-kms-key-id"].endswith(":key/abc"), kind
    unpaid = {kind for kind, headers in seen.items() if headers.get("x-amz-request-payer") != "requester"}
    assert unpaid == set()
