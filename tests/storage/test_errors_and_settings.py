"""What goes wrong is told as what it is; where credentials, region and endpoint come from; what a URL means."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from paramdelta_dist.errors import (
    CredentialsError,
    InputChanged,
    NotFound,
    ParamDeltaError,
    StorageError,
    TransientStorageError,
    UsageError,
)
from paramdelta_dist.storage import (
    Identity,
    StorageConfig,
    Store,
    StoreSettings,
    inside,
    multipart,
    normalize,
    open_store,
    part_size,
    redact,
)
from paramdelta_dist.storage.part_names import is_earlier_part, is_part, part_name
from paramdelta_dist.storage.retry import DEFAULT_RETRIES, RetryPolicy
from tests.servers import S3Server, free_ports, http_server

ENGINES = ("obstore", "fsspec")


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def in_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)


def opened(url: str, **settings: object) -> Store:
    return open_store(url, StorageConfig({"": StoreSettings(**settings)}))  # type: ignore[arg-type]


def every_call(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "identify": lambda: store.identify("a"),
        "list": store.list,
        "read": lambda: store.read("a", limit=10),
        "read_range": lambda: store.read_range("a", 0, 1, identity=Identity(1, '"x"')),
        "put": lambda: store.put("a", [b"data"], size=4),
        "write": lambda: store.write("a", b"data"),
        "write exclusive": lambda: store.write("a", b"data", exclusive=True),
        "delete": lambda: store.delete("a"),
    }


# --- credentials


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_a_credentials_error_in_every_call(
    bucket: str, engine: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wrong")
    for call in every_call(opened(f"s3://{bucket}/folder", engine=engine)).values():
        with pytest.raises(CredentialsError, match=f"s3://{bucket}/folder") as caught:
            call()
        assert caught.value.exit_code == 4
        assert "testingsecret" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_credentials_are_told_when_the_store_is_opened(bucket: str, engine: str) -> None:
    began = time.monotonic()
    with pytest.raises(CredentialsError, match=r"AWS_ACCESS_KEY_ID.*profile.*anonymous: true"):
        opened(f"s3://{bucket}/folder", engine=engine)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_profile_is_a_credentials_error(bucket: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CredentialsError, match="nobody"):
        opened(f"s3://{bucket}/folder", engine=engine, profile="nobody")
    monkeypatch.setenv("AWS_PROFILE", "no-one")
    with pytest.raises(CredentialsError, match="no-one"):
        opened(f"s3://{bucket}/other", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unsigned_request_needs_no_credentials_and_is_refused_where_they_are_needed(
    s3_server: S3Server, bucket: str, engine: str
) -> None:
    store = opened(f"s3://{bucket}/folder", engine=engine, endpoint=s3_server.endpoint, anonymous=True)
    with pytest.raises(CredentialsError):
        store.read("a", limit=10)


# --- settings


def write_profiles(folder: Path, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    """Two profiles in the files that AWS's tools use: `good` reaches the server, `default` does not."""
    [nobody] = free_ports(1)
    folder.joinpath("config").write_text(
        f"[default]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:{nobody}\n"
        f"[profile good]\nregion = us-east-1\nendpoint_url = {s3_server.endpoint}\n"
    )
    folder.joinpath("credentials").write_text(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
        f"[good]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))


def works(store: Store) -> bool:
    store.write("object", b"data")
    return store.read("object", limit=10) == b"data" and list(store.list() or {}) == ["object"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_profile_is_all_that_is_needed(
    s3_server: S3Server, bucket: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profiles(tmp_path, monkeypatch, s3_server)
    monkeypatch.setenv("AWS_PROFILE", "good")
    assert works(opened(f"s3://{bucket}/profile {engine}", engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_profile_of_the_settings_wins_over_the_environment(
    s3_server: S3Server, bucket: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profiles(tmp_path, monkeypatch, s3_server)
    monkeypatch.setenv("AWS_PROFILE", "default")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    assert works(opened(f"s3://{bucket}/settings {engine}", engine=engine, profile="good"))


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_endpoint_and_region_of_the_settings_win_over_the_environment(
    s3_server: S3Server, bucket: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [nobody] = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{nobody}")
    monkeypatch.setenv("AWS_REGION", "nowhere")
    store = opened(f"s3://{bucket}/endpoint {engine}", engine=engine, endpoint=f"{s3_server.endpoint}/", region="us-east-1")
    assert works(store)


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_endpoint_for_s3_wins_over_the_one_for_all_services(
    s3_server: S3Server, bucket: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    assert works(opened(f"s3://{bucket}/for s3 {engine}", engine=engine))


def test_the_longest_prefix_that_fits_decides() -> None:
    everything, one_bucket, one_folder = StoreSettings(region="a"), StoreSettings(region="b"), StoreSettings(region="c")
    config = StorageConfig({"s3://": everything, "s3://bucket/out/": one_folder, "s3://bucket/": one_bucket})
    assert config.for_url("s3://other/out/x") is everything
    assert config.for_url("s3://bucket/model") is one_bucket
    assert config.for_url("s3://bucket/out/merged") is one_folder
    assert config.for_url("/local/folder") == StoreSettings()


def test_a_place_is_opened_once(tmp_path: Path) -> None:
    assert opened(str(tmp_path)) is opened(str(tmp_path))


@pytest.mark.parametrize("url", ["nosuchscheme://somewhere/x", "S3X://bucket/x", "s3://", "s3:///x", "gs://"])
def test_a_url_that_nobody_serves_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match=r"^\w+://"):
        opened(url, anonymous=True)


def test_an_engine_that_does_not_serve_a_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="fsspec"):
        opened("memory://bucket/x", engine="obstore")


# --- places that are not there


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_bucket_that_does_not_exist_is_not_found(engine: str) -> None:
    store = opened("s3://no-such-bucket-anywhere/folder", engine=engine)
    for call in ("identify", "read", "read_range"):
        with pytest.raises((NotFound, InputChanged), match="no-such-bucket-anywhere") as caught:
            every_call(store)[call]()
        assert caught.value.exit_code == 3
    try:
        assert store.list() == {}
    except ParamDeltaError as error:
        assert isinstance(error, NotFound)  # noqa: PT017


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_does_not_listen_is_a_transient_error_in_bounded_time(
    bucket: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    store = opened(f"s3://{bucket}/folder", engine=engine, retries=RetryPolicy(seconds=0.5))
    for call in every_call(store).values():
        began = time.monotonic()
        with pytest.raises(TransientStorageError, match=f"s3://{bucket}/folder") as caught:
            call()
        assert caught.value.exit_code == 75
        assert time.monotonic() - began < 40


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("folder", ["a b", "a%20b", "a#1", "a?x=1", "a+b", "ü/[x]*"])
def test_every_character_of_a_folder_counts(s3_server: S3Server, bucket: str, engine: str, folder: str) -> None:
    store = opened(f"s3://{bucket}/{engine}/{folder}", engine=engine)
    identity = store.write("object", b"data")
    assert store.list() == {"object": identity}
    found = s3_server.client().head_object(Bucket=bucket, Key=f"{engine}/{folder}/object")
    assert found["ContentLength"] == 4


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_mark_that_a_console_leaves_for_a_folder_is_not_an_object(s3_server: S3Server, bucket: str, engine: str) -> None:
    client, folder = s3_server.client(), f"{engine} marked"
    client.put_object(Bucket=bucket, Key=f"{folder}/", Body=b"")
    store = opened(f"s3://{bucket}/{folder}", engine=engine)
    assert store.list() == {}
    client.put_object(Bucket=bucket, Key=f"{folder}/sub/", Body=b"")
    store.write("sub/object", b"")
    assert list(store.list() or {}) == ["sub/object"]


# --- http


def test_files_are_read_over_http_but_not_listed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    tmp_path.joinpath("a model").mkdir()
    tmp_path.joinpath("a model", "weights #1.bin").write_bytes(data)
    with http_server(tmp_path) as base:
        store = opened(f"{base}/a%20model")
        assert store.list() is None
        assert store.remote
        identity = store.identify("weights #1.bin")
        assert identity.size == len(data)
        assert store.read("weights #1.bin", limit=len(data)) == data
        for start, stop in ((0, 1), (100, 20_000), (len(data) - 1, len(data)), (5, 5)):
            assert bytes(store.read_range("weights #1.bin", start, stop, identity=identity)) == data[start:stop]
        with pytest.raises(NotFound):
            store.identify("absent")
        with pytest.raises(StorageError) as caught:
            store.write("new", b"data")
        assert not caught.value.retryable
        for size in (len(data), 1, 0):
            time.sleep(0.03)
            tmp_path.joinpath("a model", "weights #1.bin").write_bytes(b"x" * size)
            with pytest.raises(InputChanged):
                store.read_range("weights #1.bin", 100, 200, identity=identity)


def test_writing_where_a_file_system_cannot_is_a_storage_error(tmp_path: Path) -> None:
    with http_server(tmp_path) as base:
        store = opened(base, engine="fsspec")
        for call in (lambda: store.write("a", b"data"), lambda: store.put("a", [b"data"], size=4)):
            with pytest.raises(StorageError, match=base) as caught:
                call()
            assert not caught.value.retryable


# --- local disk


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    tmp_path.joinpath("folder", "inner").mkdir(parents=True)
    store = opened(str(tmp_path))
    for call in (
        lambda: store.identify("folder"),
        lambda: store.read("folder", limit=10),
        lambda: store.read_range("folder", 0, 1, identity=Identity(1, "1")),
        lambda: store.identify("folder/inner/absent"),
    ):
        with pytest.raises(NotFound, match="folder"):
            call()
    with pytest.raises(ParamDeltaError, match="folder"):
        store.put("folder", [b"data"], size=4)
    assert store.list() == {}


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_bytes(b"data")
    for store in (opened(str(tmp_path / "file")), opened(str(tmp_path / "file" / "deeper"))):
        with pytest.raises(NotFound):
            store.identify("object")
        with pytest.raises(ParamDeltaError):
            store.write("object", b"data")
        assert store.list() == {}
    assert tmp_path.joinpath("file").read_bytes() == b"data"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_credentials_error(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"data")
    secret.chmod(0)
    with pytest.raises(CredentialsError, match="secret"):
        opened(str(tmp_path)).read("secret", limit=10)


def test_an_unwritable_file_system_is_told_with_the_path() -> None:
    with pytest.raises((CredentialsError, StorageError, NotFound), match="/proc/"):
        opened("/proc/paramdelta").write("object", b"data")


def test_local_reads_go_into_the_memory_that_is_given(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_bytes(b"0123456789")
    store, memory = opened(str(tmp_path)), bytearray(20)
    view = store.read_range("file", 2, 5, identity=store.identify("file"), into=memoryview(memory))
    assert view.obj is memory
    assert memory[:4] == b"234\0"


def test_a_file_being_written_is_not_listed_and_those_of_others_are(tmp_path: Path) -> None:
    for name in (part_name("model.safetensors"), ".model.safetensors.0a1b2c3d.part", ".0123456789abcdef.part"):
        tmp_path.joinpath(name).write_bytes(b"half")
    for name in ("model.part", ".x.part", ".model.0A1B2C3D.part"):
        tmp_path.joinpath(name).write_bytes(b"whole")
    assert set(opened(str(tmp_path)).list() or {}) == {"model.part", ".x.part", ".model.0A1B2C3D.part"}


@pytest.mark.parametrize("name", ["a", "n" * 255, "ü" * 127, "模" * 85, "a\nb", "\udcff" * 200, "[x]*{y}~!@$'()"])
def test_a_part_has_a_name_of_our_form_that_is_never_too_long(tmp_path: Path, name: str) -> None:
    made = part_name(name)
    assert is_part(made)
    assert not is_earlier_part(made)
    assert len(os.fsencode(made)) <= 255
    store = opened(str(tmp_path))
    store.put(name, [b"data"], size=4)
    assert list(store.list() or {}) == [name]


# --- URLs


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("/a/b/", "/a/b"),
        ("/a//b/../c/.", "/a/c"),
        ("file:///a/b/", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a b#1?x", "s3://bucket/a b#1?x"),
        ("s3://[odd/x", "s3://[odd/x"),
        ("sftp://user@host/a", "sftp://user@host/a"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net/a"),
        ("memory://", "memory://"),
        ("https://host:8080/a/", "https://host:8080/a"),
    ],
)
def test_one_place_has_one_spelling(given: str, normal: str) -> None:
    assert normalize(given) == normal
    assert normalize(normal) == normal


@pytest.mark.parametrize(
    ("given", "write"),
    [
        ("s3://bucket//n/new", "s3://bucket/n/new"),
        ("s3://bucket/a/./b", "s3://bucket/a/b"),
        ("s3a://bucket/a//", "s3://bucket/a"),
        ("s3://bucket//", "s3://bucket/"),
        ("gs://b/x/../m", "gs://b/m"),
        ("az://b/x/../m", "az://b/m"),
        ("https://host/a//b", "https://host/a/b"),
        ("gs://Bucket/x", "gs://bucket/x"),
        ("memory:///x", "memory://x"),
        ("local:///a/b", "the path alone, or file:///PATH"),
        ("file://localhost/a/b", "file:///PATH"),
        ("file://host/a/b", "file:///PATH"),
        ("file:/a/b", "file:///PATH"),
        ("file:a/b", "file:///PATH"),
        ("file:////a/b", "file:///PATH"),
        ("file:///a%20b", "the path as it is"),
        ("s3:/bucket/a", "s3://…"),
        ("S3:bucket", "s3://…"),
        ("s3n://bucket/a", "s3://BUCKET"),
        ("ssh://host/a", "sftp://HOST"),
        ("simplecache::s3://bucket/a", "the URL of the place itself"),
        ("filecache::file:///a", "the URL of the place itself"),
        ("simplecache://a", "the URL of that place itself"),
        ("zip://a::s3://bucket/a.zip", "the URL of that place itself"),
        ("dir://a::memory://b", "the URL of that place itself"),
    ],
)
def test_another_name_of_a_place_is_refused_with_the_one_to_write(given: str, write: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalize(given)
    assert f"write {write}" in str(caught.value)


def test_a_local_path_with_two_slashes_in_front_or_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    assert normalize("//tmp/x") == "/tmp/x"
    assert normalize("s3:") == str(tmp_path / "s3:")
    assert normalize("./s3:/a") == str(tmp_path / "s3:/a")
    assert normalize("models/a:b") == str(tmp_path / "models/a:b")


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert normalize("models/a") == str(tmp_path / "models" / "a")
    assert normalize("~/models") == "/home/someone/models"


@pytest.mark.parametrize("url", ["", "  ", "a\0b", "https://host/a?token=abc"])
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalize(url)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "S3", "s3a", "gs", "http", "https", "sftp", "ftp", "hdfs"])
def test_credentials_in_a_url_are_refused_and_never_echoed(scheme: str) -> None:
    url = f"{scheme}://AKIAKEY:pass@word@host/folder"
    with pytest.raises(UsageError) as caught:
        normalize(url)
    for secret in ("AKIAKEY", "pass", "word"):
        assert secret not in str(caught.value)
        assert secret not in redact(url)
    assert redact(url) == f"{scheme}://host/folder"


def test_redact_leaves_the_rest_of_a_url() -> None:
    assert redact("/a/b@c?d") == "/a/b@c?d"
    assert redact("s3://bucket/a@b") == "s3://bucket/a@b"
    assert redact("https://host:80/a?signature=abc") == "https://host:80/a"
    assert redact("abfss://container@account.dfs.core.windows.net/a") == "abfss://container@account.dfs.core.windows.net/a"
    assert redact("az://container/a?sv=2024&sig=abc%2Fdef&se=1") == "az://container/a?sv=2024&sig=***&se=1"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "abfss", "hf", "https", "sftp"])
@pytest.mark.parametrize("query", ["sv=2024&sig=PLANTED", "X-Amz-Signature=PLANTED", "X-Goog-Signature=PLANTED", "token=PLANTED"])
def test_a_signature_in_a_url_is_refused_whatever_the_scheme(scheme: str, query: str) -> None:
    with pytest.raises(UsageError, match=r"does not belong in a URL") as caught:
        normalize(f"{scheme}://place/folder?{query}")
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_the_container_before_an_account_is_no_secret(scheme: str) -> None:
    url = f"{scheme}://container@account.dfs.core.windows.net/a"
    assert redact(url) == url
    assert redact(f"{scheme}://user:pass@account.dfs.core.windows.net/a") == f"{scheme}://account.dfs.core.windows.net/a"


def test_inside_is_about_folders_and_not_letters(tmp_path: Path) -> None:
    assert inside("s3://bucket/a", "s3://bucket/a")
    assert inside("s3://bucket/a/b", "s3://bucket/a")
    assert inside("s3://bucket/a", "s3://bucket")
    assert not inside("s3://bucket/ab", "s3://bucket/a")
    assert not inside("s3://bucket/a", "s3://bucket/a/b")
    assert not inside("s3://bucket/a", "/bucket/a")
    tmp_path.joinpath("real").mkdir()
    tmp_path.joinpath("link").symlink_to("real")
    assert inside(str(tmp_path / "link" / "sub"), str(tmp_path / "real"))
    assert inside(str(tmp_path / "real"), str(tmp_path / "link"))
    assert inside("/a", "/")


# --- retries and parts


def test_only_transient_errors_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise StorageError("for good")

    with pytest.raises(StorageError, match="for good"):
        DEFAULT_RETRIES.retrying(fails, what="it", sleep=lambda _: pytest.fail("slept"))
    assert len(calls) == 1


def test_tries_are_bounded_and_the_last_error_comes_out() -> None:
    errors = [TransientStorageError(str(number)) for number in range(DEFAULT_RETRIES.attempts)]
    delays: list[float] = []
    left = iter(errors)

    def fails() -> None:
        raise next(left)

    with pytest.raises(TransientStorageError) as caught:
        DEFAULT_RETRIES.retrying(fails, what="it", sleep=delays.append)
    assert caught.value is errors[-1]
    assert len(delays) == DEFAULT_RETRIES.attempts - 1


def test_delays_grow_up_to_a_limit() -> None:
    policy = RetryPolicy(attempts=12, jitter=lambda longest: longest)
    delays: list[float] = []

    def fails() -> None:
        raise TransientStorageError("again")

    with pytest.raises(TransientStorageError):
        policy.retrying(fails, what="it", sleep=delays.append)
    growing = [delay for delay in delays if delay < policy.longest_delay]
    assert len(growing) >= 4
    assert all(later == 2 * earlier for earlier, later in pairwise(growing))
    assert set(delays[len(growing) :]) == {policy.longest_delay}


def test_what_works_at_last_is_returned() -> None:
    outcomes = iter([TransientStorageError("1"), TransientStorageError("2"), "done"])

    def call() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert DEFAULT_RETRIES.retrying(call, what="it", sleep=lambda _: None) == "done"


@pytest.mark.parametrize("size", [0, 1, 16 << 20, 10**10, 5 * 10**12])
def test_no_object_needs_more_parts_than_s3_allows(size: int) -> None:
    assert part_size(size) >= multipart.PART_SIZE
    assert -(-size // part_size(size)) <= multipart.MAX_PARTS
