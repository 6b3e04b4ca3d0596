"""Private authorities and proxies mean the same to every library, and what lies between here and a store is told by its name."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.retries import standard

from paramdelta_dist.errors import CredentialsError, ParamDeltaError, TransientStorageError, UsageError
from paramdelta_dist.storage import StorageConfig, StoreSettings, find_leftovers, open_store, trust
from paramdelta_dist.storage.network import proxy_for
from paramdelta_dist.storage.retry import RetryPolicy
from tests.networks import Authority, Proxy, proxy, tls_before
from tests.servers import S3Server, free_ports, http_server

ROADS = ("obstore", "fsspec", "botocore")
"""The three ways to S3: for reading and writing, for the same where the recipe asks for it, and for what only `clean` needs."""
AT_ONCE = 30.0
"""Seconds on a busy machine; a call that is tried again takes 90."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.at(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture(scope="module")
def secure(s3_server: S3Server, authority: Authority) -> Iterator[str]:
    """The S3 server behind TLS, with a certificate that only its own authority vouches for."""
    with tls_before(s3_server.endpoint, authority.context()) as url:
        yield url


@pytest.fixture
def environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in trust.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)  # of botocore, before each of its four attempts
    return monkeypatch


def ask(road: str, bucket: str, **settings: object) -> None:
    """One question to the store on one of the roads to it."""
    url = f"s3://{bucket}/folder"
    if road == "botocore":
        find_leftovers(url, StorageConfig({"": StoreSettings(**settings)}))  # type: ignore[arg-type]
        return
    store = open_store(url, StorageConfig({"": StoreSettings(engine=road, **settings)}))  # type: ignore[arg-type]
    assert store.list() == {}


def refused(call: Callable[[], object], kind: type[ParamDeltaError]) -> str:
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        call()
    assert time.monotonic() - began < AT_ONCE
    return str(caught.value)


# --- certificates


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("variable", trust.VARIABLES)
def test_every_variable_for_certificates_counts_on_every_road(
    environment: pytest.MonkeyPatch, secure: str, bucket: str, authority: Authority, road: str, variable: str, tmp_path: Path
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", secure)
    path = authority.pem
    if variable == "SSL_CERT_DIR":
        path = tmp_path / "certificates"
        path.mkdir()
        path.joinpath("company.crt").write_bytes(authority.pem.read_bytes())
    environment.setenv(variable, str(path))
    ask(road, bucket)


@pytest.mark.parametrize("road", ROADS)
def test_the_ca_bundle_of_a_profile_counts_on_every_road(
    environment: pytest.MonkeyPatch, s3_server: S3Server, secure: str, bucket: str, authority: Authority, road: str, tmp_path: Path
) -> None:
    keys = f"aws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    tmp_path.joinpath("config").write_text(f"[profile company]\n{keys}endpoint_url = {secure}\nca_bundle = {authority.pem}\n")
    environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in s3_server.environ:
        environment.delenv(name)
    ask(road, bucket, profile="company")


@pytest.mark.parametrize("road", ROADS)
def test_an_untrusted_certificate_is_told_at_once_and_the_way_that_is_offered_works(
    environment: pytest.MonkeyPatch, secure: str, bucket: str, authority: Authority, road: str
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", secure)
    told = refused(lambda: ask(road, bucket), CredentialsError)
    assert f"certificate of {secure.removeprefix('https://')} is signed by nobody who is trusted here" in told
    offered = re.findall(r"[A-Z]+_[A-Z_]+", told)
    assert len(offered) == 3
    for variable in offered:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, str(authority.pem))
            open_store.__globals__["_open"].cache_clear()
            ask(road, bucket)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    ("names", "expired", "told"), [(("store.example",), False, "is for another name"), ((), True, "has expired")], ids=["name", "expired"]
)
def test_a_certificate_that_does_not_fit_is_told_for_what_it_is(
    environment: pytest.MonkeyPatch, s3_server: S3Server, bucket: str, authority: Authority, road: str, names, expired, told
) -> None:
    environment.setenv("AWS_CA_BUNDLE", str(authority.pem))
    with tls_before(s3_server.endpoint, authority.context(*names, expired=expired)) as url:
        environment.setenv("AWS_ENDPOINT_URL", url)
        assert told in refused(lambda: ask(road, bucket), CredentialsError)


@pytest.mark.parametrize("road", ROADS)
def test_a_server_without_tls_at_an_https_address_is_told(
    environment: pytest.MonkeyPatch, s3_server: S3Server, bucket: str, road: str
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("http:", "https:"))
    assert "does not speak TLS" in refused(lambda: ask(road, bucket), UsageError)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("variable", [name for name in trust.VARIABLES if name != "SSL_CERT_DIR"])
def test_a_file_of_certificates_that_is_none_is_told_with_the_variable(
    environment: pytest.MonkeyPatch, bucket: str, road: str, variable: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
    for path in ("/no/such.pem", __file__, str(broken)):
        environment.setenv(variable, path)
        open_store.__globals__["_open"].cache_clear()
        assert variable in refused(lambda: ask(road, bucket), UsageError)


def test_a_private_authority_is_trusted_beside_the_public_ones(environment: pytest.MonkeyPatch, authority: Authority) -> None:
    import certifi

    environment.setenv("AWS_CA_BUNDLE", str(authority.pem))
    path = trust.bundle()
    assert path is not None
    trusted = path.read_bytes()
    assert authority.pem.read_bytes().strip() in trusted
    assert trusted.count(b"BEGIN CERTIFICATE") >= Path(certifi.where()).read_bytes().count(b"BEGIN CERTIFICATE")


def test_a_bundle_that_was_told_to_the_environment_is_not_made_of_itself_again(authority, monkeypatch):
    """Each open of a file system tells it: one bundle a process, and variables that are set once."""
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(authority.pem))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    told = trust.tell_environment()
    assert {os.environ[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")} == {str(told)}
    assert trust.tell_environment() == trust.bundle() == told


def test_threads_that_ask_at_once_find_the_certificates_whole(environment: pytest.MonkeyPatch, authority: Authority) -> None:
    environment.setenv("SSL_CERT_FILE", str(authority.pem))
    whole = trust.certificates()
    assert whole
    for _ in range(20):
        trust._bundle.cache_clear()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: trust.certificates(), range(8))) == {whole}


def test_files_over_https_are_read_with_the_same_variables(environment: pytest.MonkeyPatch, authority: Authority, tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_bytes(b"data")
    with http_server(tmp_path) as base, tls_before(base, authority.context()) as url:
        store = open_store(url, StorageConfig())
        assert "trusted" in refused(lambda: store.read("file", limit=10), CredentialsError)
        environment.setenv("REQUESTS_CA_BUNDLE", str(authority.pem))
        open_store.__globals__["_open"].cache_clear()
        assert open_store(url, StorageConfig()).read("file", limit=10) == b"data"


# --- proxies


@pytest.fixture
def between() -> Iterator[Proxy]:
    with proxy() as made:
        yield made


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_an_https_store_is_reached_through_the_proxy(
    environment: pytest.MonkeyPatch, secure: str, bucket: str, authority: Authority, between: Proxy, road: str, variable: str
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", secure)
    environment.setenv("AWS_CA_BUNDLE", str(authority.pem))
    environment.setenv(variable, between.url)
    ask(road, bucket)
    assert set(between.asked) == {f"CONNECT {secure.removeprefix('https://')}"}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_an_http_store_is_reached_through_the_proxy(
    environment: pytest.MonkeyPatch, s3_server: S3Server, bucket: str, between: Proxy, road: str, variable: str
) -> None:
    environment.setenv(variable, between.url.removeprefix("http://") if variable == "HTTP_PROXY" else between.url)
    ask(road, bucket)
    assert {each.partition(" ")[2] for each in between.asked} == {s3_server.endpoint}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("excepted", ["127.0.0.1", "*", "localhost,127.0.0.0/8", " .example.com , 127.0.0.1"])
def test_what_no_proxy_names_is_reached_directly(
    environment: pytest.MonkeyPatch, bucket: str, between: Proxy, road: str, excepted: str
) -> None:
    environment.setenv("HTTP_PROXY", between.url)
    environment.setenv("NO_PROXY", excepted)
    ask(road, bucket)
    assert between.asked == []


@pytest.mark.parametrize("road", ROADS)
def test_a_proxy_with_a_password_is_used_and_one_without_it_told_at_once(
    environment: pytest.MonkeyPatch, secure: str, s3_server: S3Server, bucket: str, authority: Authority, road: str
) -> None:
    environment.setenv("AWS_CA_BUNDLE", str(authority.pem))
    with proxy("PLANTED-password") as locked:
        for endpoint, variable in ((secure, "HTTPS_PROXY"), (s3_server.endpoint, "HTTP_PROXY")):
            environment.setenv("AWS_ENDPOINT_URL", endpoint)
            environment.setenv(variable, locked.url_with_password)
            open_store.__globals__["_open"].cache_clear()
            ask(road, bucket)
            assert not any("refused" in each for each in locked.asked)
            for wrong in (locked.url, locked.url.replace("//", "//clerk:PLANTED-wrong@")):
                environment.setenv(variable, wrong)
                open_store.__globals__["_open"].cache_clear()
                told = refused(lambda: ask(road, bucket), CredentialsError)
                assert f"the proxy {locked.url} wants" in told
                assert f"USER:PASSWORD@ before its host in {variable}" in told
                assert "PLANTED" not in told
            environment.delenv(variable)
            locked.asked.clear()


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("host", ["127.0.0.1", "proxy.invalid"])
def test_a_proxy_that_is_away_is_named(environment: pytest.MonkeyPatch, bucket: str, road: str, host: str) -> None:
    address = f"{host}:{free_ports(1)[0]}"
    environment.setenv("HTTP_PROXY", f"http://clerk:PLANTED-password@{address}")
    with pytest.raises(ParamDeltaError, match=re.escape(f"go through the proxy http://{address} (HTTP_PROXY)")) as caught:
        ask(road, bucket, retries=RetryPolicy(seconds=0.5))
    assert caught.value.exit_code == 75
    assert road == "botocore" or isinstance(caught.value, TransientStorageError)
    assert "PLANTED" not in str(caught.value)


def test_which_proxy_is_meant(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "http://lower:1")
    environment.setenv("HTTPS_PROXY", "http://upper:1")
    environment.setenv("NO_PROXY", "s3.local,.internal.example,10.0.0.0/8,[::1],store:9000")
    assert proxy_for("https://anywhere/x") == ("https_proxy", "http://lower:1")
    assert proxy_for("http://anywhere/x") is None
    for direct in ("s3.local", "a.s3.local", "x.internal.example:80", "10.2.3.4", "[::1]:9000", "store:9000"):
        assert proxy_for(f"https://{direct}/x") is None, direct
    for through in ("s3.locale", "xs3.local", "11.0.0.1", "[::2]", "store:9001"):
        assert proxy_for(f"https://{through}/x"), through
