"""What Azure's and Google's tools take from the environment works here too, and what a store refuses is said at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paramdelta_dist.errors import (
    AlreadyExists,
    CredentialsError,
    InputChanged,
    NotFound,
    ParamDeltaError,
    UsageError,
)
from paramdelta_dist.storage import StorageConfig, Store, StoreSettings, azure, find_leftovers, open_store, remove_leftover
from tests.azurite import AzureServer
from tests.contracts.store_contract import borrowed, content, same
from tests.google_xml import GoogleServer, Upload

PARTS = content(12_000_000)
AT_ONCE = 20.0
"""Seconds: less than one round of trying again takes, more than a busy machine needs for a request."""


def opened(url: str, **settings: object) -> Store:
    return open_store(url, StorageConfig({"": StoreSettings(**settings)}))  # type: ignore[arg-type]


def works(store: Store) -> None:
    written = store.write("a b/object", b"bytes")
    assert store.list() == {"a b/object": written}
    assert bytes(store.read_range("a b/object", 1, 3, identity=written)) == b"yt"
    store.delete("a b/object")
    assert store.list() == {}


def refused_at_once(call: Callable[[], object], kind: type[ParamDeltaError], *words: str) -> str:
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        call()
    assert time.monotonic() - began < AT_ONCE
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# --- Azure


ENVIRONMENTS: dict[str, Callable[[AzureServer, str], dict[str, str]]] = {
    "connection string": lambda server, _: server.environ,
    "connection string with SAS": lambda server, container: {
        "AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={server.endpoint}/;SharedAccessSignature={server.sas(container)}"
    },
    "names of obstore and adlfs": lambda server, _: {
        "AZURE_STORAGE_ACCOUNT_NAME": server.account,
        "AZURE_STORAGE_ACCOUNT_KEY": server.key,
        "AZURE_STORAGE_ENDPOINT": server.endpoint,
    },
    "names of az": lambda server, _: {
        "AZURE_STORAGE_ACCOUNT": server.account,
        "AZURE_STORAGE_KEY": server.key,
        "AZURE_STORAGE_SERVICE_ENDPOINT": f"{server.endpoint}/",
    },
    "SAS": lambda server, container: {
        "AZURE_STORAGE_ACCOUNT": server.account,
        "AZURE_STORAGE_SAS_TOKEN": f"?{server.sas(container)}",
        "AZURE_STORAGE_ENDPOINT": server.endpoint,
    },
    "emulator": lambda server, _: {
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": server.endpoint.rpartition("/")[0],
        "AZURE_STORAGE_ACCOUNT": server.account,
        "AZURE_STORAGE_KEY": server.key,
    },
}
FORMS = ("az://{0}/m", "azure://{0}/m", "abfs://{0}/m", "abfss://{0}@{1}/m", "abfss://{0}@{1}.dfs.core.windows.net/m")


@pytest.fixture
def container(azure_server: AzureServer) -> str:
    return azure_server.make_container()


def _set(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_azures_tools_take_from_the_environment(
    azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    _set(monkeypatch, ENVIRONMENTS[environment](azure_server, container))
    works(opened(f"az://{container}/m"))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_an_azure_url(azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    _set(monkeypatch, azure_server.environ)
    works(opened(form.format(container, azure_server.account)))


def test_the_endpoint_of_the_recipe_goes_before_the_environment(
    azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, {"AZURE_STORAGE_KEY": azure_server.key, "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/nobody"})
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    works(opened(f"az://{container}/m", endpoint=azure_server.endpoint))


def test_a_public_container_is_read_without_an_account_key(
    azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = azure_server.make_container(public=True)
    with monkeypatch.context() as patch:
        _set(patch, azure_server.environ)
        written = opened(f"az://{public}").write("object", b"bytes")
    reader = opened(f"az://{public}", anonymous=True, endpoint=azure_server.endpoint)
    assert reader.list() == {"object": written}
    assert bytes(reader.read_range("object", 0, 5, identity=written)) == b"bytes"
    private = opened(f"az://{container}", anonymous=True, endpoint=azure_server.endpoint)
    began = time.monotonic()
    with pytest.raises((NotFound, CredentialsError)):
        private.list()
    assert time.monotonic() - began < AT_ONCE


def test_what_azure_refuses_is_said_at_once(azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, azure_server.environ)
    absent = opened("az://no-such-container/m")
    refused_at_once(absent.list, NotFound, "no such container")
    refused_at_once(lambda: absent.write("object", b""), NotFound, "no such container")
    refused_at_once(lambda: absent.put("object", [b"1"], size=1), NotFound, "no such container")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure_server.connection_string.replace(azure_server.key, "bm90IHRoZSBrZXk="))
    wrong = opened(f"az://{container}/wrong key")
    refused_at_once(wrong.list, CredentialsError, "access denied")
    refused_at_once(lambda: wrong.identify("object"), CredentialsError, "access denied")
    refused_at_once(lambda: wrong.put("object", [b"1"], size=1), CredentialsError, "access denied")


def test_a_signature_that_expired_or_may_not_write_is_exit_4_and_not_shown(
    azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure_server.endpoint)
    for number, signature in enumerate((azure_server.sas(container, hours=-0.2), azure_server.sas(container, "rl"))):
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", signature)
        store = opened(f"az://{container}/{number}")
        said = refused_at_once(lambda store=store: store.write("object", b"1"), CredentialsError, "access denied")  # type: ignore[misc]
        assert "sig=" not in said
        assert CredentialsError.exit_code == 4
    assert opened(f"az://{container}/1").list() == {}


MISTAKES: dict[str, tuple[dict[str, str], str, type[ParamDeltaError], str]] = {
    "no account": ({}, "az://container/m", CredentialsError, "AZURE_STORAGE_ACCOUNT_NAME"),
    "a key that is none": (
        {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "not base64!"},
        "az://container/m",
        CredentialsError,
        "AZURE_STORAGE_KEY",
    ),
    "a cut key in a connection string": (
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=abcde"},
        "az://container/m",
        CredentialsError,
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    "no connection string": (
        {"AZURE_STORAGE_CONNECTION_STRING": "secret"},
        "az://container/m",
        UsageError,
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    "an account in place of a container": ({}, "az://account.blob.core.windows.net/m", UsageError, "abfss://CONTAINER@account"),
    "a host that is no account": ({}, "abfss://container@files.example.com/m", UsageError, "abfss://CONTAINER@ACCOUNT"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_azures_settings_is_named_and_not_echoed(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    environment, url, kind, words = MISTAKES[mistake]
    _set(monkeypatch, environment)
    said = refused_at_once(lambda: opened(url), kind, words)
    for secret in ("not base64!", "abcde", "secret"):
        assert secret not in said


def test_the_endpoint_and_the_key_of_one_account_are_not_used_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = "abfss://c@other.dfs.core.windows.net/m", "abfss://c@mine.dfs.core.windows.net/m"
    for variables in (
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=mine;AccountKey=YQ==;BlobEndpoint=https://mine.blob.core.windows.net/"},
        {"AZURE_STORAGE_ENDPOINT": "https://mine.blob.core.windows.net/"},
        {"AZURE_STORAGE_ENDPOINT": "https://models.example.com", "AZURE_STORAGE_ACCOUNT": "mine"},
    ):
        with monkeypatch.context() as patch:
            _set(patch, variables)
            assert "endpoint" not in azure.config(theirs, StoreSettings())
            assert "account_key" not in azure.config(theirs, StoreSettings())
            assert azure.config(theirs, StoreSettings())["account_name"] == "other"
            assert azure.config(ours, StoreSettings())["endpoint"].startswith("https://m")
    assert (
        azure.config(ours.replace("windows.net", "chinacloudapi.cn"), StoreSettings())["endpoint"]
        == "https://mine.blob.core.chinacloudapi.cn"
    )


def test_blocks_of_a_failed_upload_to_azure_are_no_blob(azure_server: AzureServer, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay for a week, for azure only: nothing can list or remove them but a new upload of that name."""
    _set(monkeypatch, azure_server.environ)
    store = opened(f"az://{container}/m")

    def broken() -> object:
        yield PARTS
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        store.put("object", broken(), size=2 * len(PARTS))  # type: ignore[arg-type]
    assert store.list() == {}
    assert find_leftovers(f"az://{container}/m", StorageConfig()) == []
    written = store.put("object", borrowed(PARTS, 3_000_001), size=len(PARTS))
    assert same(store.read_range("object", 0, len(PARTS), identity=written), PARTS)
    assert azure_server.uncommitted(container) == []


# --- Google


@pytest.fixture
def bucket(google_server: GoogleServer) -> str:
    return google_server.make_bucket()


def _service_account(server: GoogleServer, folder: Path) -> dict[str, str]:
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(server.service_account(folder))}


def _federation(server: GoogleServer, folder: Path) -> dict[str, str]:
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(server.federation(folder))}


def _gcloud(server: GoogleServer, folder: Path) -> dict[str, str]:
    server.federation(folder).rename(folder / "application_default_credentials.json")
    return {"CLOUDSDK_CONFIG": str(folder)}


def _metadata(server: GoogleServer, folder: Path) -> dict[str, str]:
    return {name: value for name, value in server.environ.items() if name.startswith("GCE_")}


@pytest.mark.parametrize("credentials", [_service_account, _federation, _gcloud, _metadata])
def test_what_googles_tools_take_from_the_environment(
    google_server: GoogleServer,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    credentials: Callable[[GoogleServer, Path], dict[str, str]],
) -> None:
    _set(monkeypatch, credentials(google_server, tmp_path))
    works(opened(f"gs://{bucket}/m", endpoint=google_server.endpoint))


def test_a_public_bucket_is_read_without_credentials(google_server: GoogleServer) -> None:
    public = google_server.make_bucket(public=True)
    google_server.store(public, "m/object", b"bytes")
    store = opened(f"gs://{public}/m", endpoint=google_server.endpoint, anonymous=True)
    identity = store.identify("object")
    assert store.list() == {"object": identity}
    assert bytes(store.read_range("object", 0, 5, identity=identity)) == b"bytes"


def test_what_google_refuses_is_said_at_once(
    google_server: GoogleServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = opened(f"gs://{bucket}/m", endpoint=google_server.endpoint, anonymous=True)
    refused_at_once(nobody.list, CredentialsError, "access denied")
    _set(monkeypatch, google_server.environ)
    absent = opened("gs://no-such-bucket/m")
    refused_at_once(absent.list, NotFound, "no such bucket")
    refused_at_once(lambda: absent.put("object", [b"1"], size=1), NotFound, "no such bucket")
    with monkeypatch.context() as patch:
        _set(patch, _service_account(google_server, tmp_path))
        refused_at_once(lambda: find_leftovers("gs://no-such-bucket/m", StorageConfig()), NotFound, "NoSuchBucket")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "of-nobody")
    refused_at_once(lambda: find_leftovers(f"gs://{bucket}/m", StorageConfig()), CredentialsError)
    stranger = opened(f"gs://{bucket}/m", region="another-client")
    said = refused_at_once(stranger.list, CredentialsError, "access denied")
    refused_at_once(lambda: stranger.put("object", [b"1"], size=1), CredentialsError, "access denied")
    assert "of-nobody" not in said


@pytest.mark.parametrize("text", [None, "no json", "[]", "{}", '{"type": "external_account"}'])
def test_a_file_of_google_credentials_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    path = tmp_path / "credentials.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    refused_at_once(lambda: opened("gs://bucket/m"), CredentialsError, str(path))


def test_an_object_replaced_by_the_same_bytes_is_the_same_and_by_others_is_not(
    google_server: GoogleServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, google_server.environ)
    store = opened(f"gs://{bucket}/m")
    planned = store.write("object", b"bytes")
    google_server.store(bucket, "m/object", b"bytes")
    assert bytes(store.read_range("object", 0, 5, identity=planned)) == b"bytes"
    google_server.store(bucket, "m/object", b"BYTES")
    with pytest.raises(InputChanged):
        store.read_range("object", 0, 5, identity=planned)


@pytest.mark.parametrize("credentials", [_service_account, _federation])
def test_an_open_upload_to_google_is_found_and_aborted(
    google_server: GoogleServer,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    credentials: Callable[[GoogleServer, Path], dict[str, str]],
) -> None:
    _set(monkeypatch, {**google_server.environ, **credentials(google_server, tmp_path)})
    monkeypatch.setattr(google_server, "page", 2)
    url, config = f"gs://{bucket}/m", StorageConfig()
    store = open_store(url, config)
    store.write("object", b"kept")
    for name in ("m/a b#1.safetensors", "m/b", "m/c/d", "m-beside/e", "f"):
        google_server.uploads[name.encode().hex()] = Upload(bucket, name, time.time() - 9e4)
    found = find_leftovers(url, config)
    assert sorted(leftover.name for leftover in found) == ["a b#1.safetensors", "b", "c/d"]
    assert all(9e4 <= leftover.age_seconds < 9.1e4 and leftover.kind == "upload" for leftover in found)
    for leftover in [*found, found[0]]:  # another one may have been quicker
        remove_leftover(url, config, leftover)
    assert {upload.name for upload in google_server.uploads.values() if upload.bucket == bucket} == {"m-beside/e", "f"}
    assert list(store.list() or {}) == ["object"]


def test_obstore_sends_what_is_written_down(google_server: GoogleServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the docstring of the server, which answers these and no others."""
    _set(monkeypatch, google_server.environ)
    monkeypatch.setattr(google_server, "page", 2)
    store = opened(f"gs://{bucket}/a b")
    google_server.requests.clear()
    store.write("free", b"1", exclusive=True)
    with pytest.raises(AlreadyExists):
        store.write("free", b"2", exclusive=True)
    written = store.put("deep/parts", borrowed(PARTS, 3_000_001), size=len(PARTS))
    assert store.identify("deep/parts") == written
    store.read_range("deep/parts", 5, 9, identity=written)
    for name in ("1", "2", "3"):
        store.write(name, b"")
    store.list()
    store.read("1", limit=9)
    with pytest.raises(ZeroDivisionError):
        store.put("failed", (PARTS[: 1 // 0] for _ in range(1)), size=1)
    store.delete("1")
    asked = [each for each in google_server.requests if not each[1].startswith("/computeMetadata/")]
    shapes = {_shape(method, path) for method, path, _ in asked}
    documented = set(re.findall(r"^\| `(.*?)`", _docstring(), re.MULTILINE))
    assert shapes - {"GET /BUCKET?list-type=2&prefix=P/&continuation-token=T"} == documented
    assert all(headers["authorization"].startswith("Bearer ya29.") for _, _, headers in asked)
    by_shape = {_shape(method, path): headers for method, path, headers in reversed(asked)}
    assert by_shape["PUT /BUCKET/NAME"]["x-goog-if-generation-match"] == "0"
    assert {"range", "if-match"} <= set().union(*(headers for method, path, headers in asked if method == "GET" and "deep%2Fparts" in path))


def _docstring() -> str:
    from tests import google_xml

    return google_xml.__doc__ or ""


def _shape(method: str, path: str) -> str:
    place, _, query = path.partition("?")
    for pattern, letter in ((r"prefix=[^&]*%2F", "prefix=P/"), (r"uploadId=\w+", "uploadId=ID"), (r"partNumber=\d+", "partNumber=N")):
        query = re.sub(pattern, letter, query)
    query = (
        "&".join(sorted(re.sub(r"continuation-token=[^&]*", "continuation-token=T", query).split("&"), key=_ORDER.index)) if query else ""
    )
    return f"{method} /BUCKET{'/NAME' if place.count('/') > 1 else ''}{'?' * bool(query)}{query}"


_ORDER = ["list-type=2", "prefix=P/", "continuation-token=T", "uploads=", "partNumber=N", "uploadId=ID"]


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_no_credentials_and_no_metadata_service_is_exit_4_at_once(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    _set(monkeypatch, {"GCE_METADATA_HOST": "127.0.0.1:9", "GCE_METADATA_IP": "127.0.0.1:9"})
    _set(monkeypatch, {"AZURE_MSI_ENDPOINT": "http://127.0.0.1:9/metadata/identity/oauth2/token", "AZURE_STORAGE_ACCOUNT": "account"})
    refused_at_once(lambda: opened(f"{scheme}://bucket/m").identify("object"), CredentialsError, "no credentials found")


def test_a_token_that_is_refused_is_exit_4_at_once(
    google_server: GoogleServer, azure_server: AzureServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whoever gives out tokens, a 4xx is about the credentials and not about the store."""
    _set(monkeypatch, _federation(google_server, tmp_path))
    (tmp_path / "subject-token").write_text("of nobody")
    refused_at_once(
        lambda: opened(f"gs://{bucket}/m", endpoint=google_server.endpoint).identify("object"), CredentialsError, "federation.json"
    )
    _set(monkeypatch, {"AZURE_STORAGE_ACCOUNT": azure_server.account, "AZURE_CLIENT_ID": "1", "AZURE_CLIENT_SECRET": "very secret"})
    _set(monkeypatch, {"AZURE_TENANT_ID": "tenant", "AZURE_AUTHORITY_HOST": google_server.endpoint})
    said = refused_at_once(lambda: opened("az://container/m", endpoint=azure_server.endpoint).identify("object"), CredentialsError)
    assert "very secret" not in said
