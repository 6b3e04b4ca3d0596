"""Object stores through obstore, whose data path is Rust and runs outside the interpreter lock: s3, gs, az, http."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import AzureStore, S3Store, from_url

from paramdelta_dist import stopping
from paramdelta_dist.errors import (
    AlreadyExists,
    CredentialsError,
    InputChanged,
    InputError,
    IntegrityError,
    NotFound,
    ParamDeltaError,
    StorageError,
    TransientStorageError,
    UsageError,
)
from paramdelta_dist.storage import aws, azure, google, network, trust
from paramdelta_dist.storage.border import OURS, translated
from paramdelta_dist.storage.multipart import PARTS_IN_FLIGHT, part_size
from paramdelta_dist.storage.retry import RetryPolicy
from paramdelta_dist.storage.settings import StoreSettings
from paramdelta_dist.storage.store import Buffer, Identity, check_length, check_range
from paramdelta_dist.storage.urls import redact, scheme_of

_S3_ENDPOINT = "aws_endpoint_url_s3"
"""Set beside `endpoint` where the environment has AWS_ENDPOINT_URL_S3, which otherwise wins over the endpoint asked for."""

_TOKEN_RETRIES = 6
"""For gs and az, whose metadata service obstore asks for tokens: it fails for moments while a machine starts."""
_UNTIL_TIME_IS_UP = 1000

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BARE = re.compile(r"0x[0-9A-Fa-f]+")
"""An ETag of Azure as its listings write it, without the quotes that all other replies have and that If-Match wants."""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].partition(": <?xml")[0][:400]


def _client(policy: RetryPolicy) -> dict[str, Any]:
    seconds = {"timeout": policy.request, "read_timeout": policy.stall, "connect_timeout": policy.connect}
    return {"pool_idle_timeout": "60s", **{key: timedelta(seconds=value) for key, value in seconds.items()}}


def _retries(policy: RetryPolicy, most: int) -> dict[str, Any]:
    backoff = {"init_backoff": policy.first_delay, "max_backoff": policy.longest_delay}
    return {
        "max_retries": most,
        "retry_timeout": timedelta(seconds=policy.seconds),
        "backoff": {"base": 2, **{key: timedelta(seconds=value) for key, value in backoff.items()}},
    }


def _classified(error: BaseException, where: str) -> ParamDeltaError:
    """The error of our tree that an exception of obstore means.

    obstore has a type for most conditions; GenericError covers both a lost connection and any status it has no
    type for, so there the service's code and the status decide: a 4xx and "not implemented" will be the same next time,
    everything else may pass.
    """
    if told_by_network := network.explained(error, where):
        return told_by_network
    text = str(error)
    if not isinstance(error, (BaseError, OSError)):  # a panic of Rust
        return StorageError(f"{where}: the library of this store failed ({type(error).__name__}: {_first_line(error)})")
    status, code = (found[1] if (found := pattern.search(text)) else "" for pattern in (_STATUS, _CODE))
    told = f"{_first_line(error)} {code}".rstrip()
    if "token request" in text:  # of whoever gives out tokens: the store itself was not asked
        if "metadata" in text.lower() and status != "429" and not status.startswith("5"):
            return CredentialsError(f"{where}: no credentials found in the environment, and no metadata service to ask ({told})")
        return (
            _denied(where, told) if status.startswith("4") and status not in ("408", "429") else TransientStorageError(f"{where}: {told}")
        )
    if code in aws.PASSING_CODES:
        return TransientStorageError(f"{where}: {told}")
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return NotFound(f"{where}: no such {'bucket' if code == 'NoSuchBucket' else 'container'}")
    if code in azure.REFUSED_CODES:
        return StorageError(f"{where}: {told}")
    if code in azure.DENIED_CODES:
        return _denied(where, told)
    if code == "ResourceNotFound":  # what Azure says to whoever is nobody
        return NotFound(f"{where}: no such container or object, or none that the public may read")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{where}: no such object")
    if isinstance(error, AlreadyExistsError):
        return AlreadyExists(f"{where} exists already")
    if isinstance(error, PreconditionError) or status == "416":  # 416: it has become shorter
        return InputChanged(f"{where} changed since the plan was made; run again to plan with the new version")
    unexplained = status == "400" and not code and "performing HEAD" in text  # a HEAD has no body to say ExpiredToken in
    denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in ("401", "403") or code in aws.DENIED_CODES
    if denied or unexplained:
        return _denied(where, told)
    if isinstance(error, NotSupportedError):
        return StorageError(f"{where}: the store does not support this ({told})")
    if status == "501" or (status.startswith("4") and status not in ("408", "409", "425", "429")):
        return StorageError(f"{where}: {told}")
    return TransientStorageError(f"{where}: {told}{network.by_proxy(error)}")


def _denied(where: str, told: str) -> CredentialsError:
    return CredentialsError(f"{where}: access denied; check the credentials, whether they expired, and the permissions they carry ({told})")


class ObstoreStore:
    """A `Store` on one prefix of an object store."""

    remote = True

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self.url = redact(url)
        self._retries, self._part_size = settings.retries, settings.part_size
        self._listable = scheme_of(url) not in ("http", "https")
        repeats = 0 if scheme_of(url) in ("s3", "s3a", "http", "https") else _TOKEN_RETRIES
        self._store = _connect(url, settings, _retries(settings.retries, repeats))
        self._uploader = _connect(url, settings, _retries(settings.retries, _UNTIL_TIME_IS_UP))
        """For uploads in parts, each of which only obstore can send again; everything else is repeated here."""

    def _translated(self, name: str) -> AbstractContextManager[None]:
        return translated(f"{self.url}/{name}" if name else self.url, _classified)

    def identify(self, name: str) -> Identity:
        def ask() -> Identity:
            with self._translated(name):
                return _identity(obstore.head(self._store, name))

        return self._retries.persisting(ask, what=f"asking for {self.url}/{name}")

    def list(self) -> dict[str, Identity] | None:
        def ask() -> dict[str, Identity]:
            with self._translated(""):
                batches = obstore.list(self._store, chunk_size=1000)
                return {meta["path"]: _identity(meta) for batch in batches for meta in batch}

        if not self._listable:
            return None
        found = self._retries.persisting(ask, what=f"listing {self.url}")
        # consoles mark a folder with an empty object `folder/`, whose slash obstore takes away
        folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
        return {name: identity for name, identity in found.items() if name and not (identity.size == 0 and name in folders)}

    def read_range(self, name: str, start: int, stop: int, *, identity: Identity, into: memoryview | None = None) -> memoryview:
        check_range(f"{self.url}/{name}", start, stop, identity)
        if start == stop:
            return memoryview(b"")
        options: Any = {"range": (start, stop)}
        if identity.tag.startswith(('"', "W/")):
            options["if_match"] = identity.tag

        def get() -> memoryview:
            with self._translated(name):
                result = obstore.get(self._store, name, options=options)
                if _identity(result.meta) != identity:
                    raise InputChanged(f"{self.url}/{name} changed since the plan was made; run again to plan with the new version")
                data = memoryview(result.bytes())
            check_length(f"{self.url}/{name}", start, stop, data)
            return data

        return self._retries.persisting(get, what=f"reading {self.url}/{name}")

    def read(self, name: str, *, limit: int) -> bytes:
        def get() -> bytes:
            with self._translated(name):
                result = obstore.get(self._store, name)
                if result.meta["size"] > limit:
                    raise InputError(f"{self.url}/{name} is larger than the {limit} bytes such a file may have")
                return result.bytes().to_bytes()

        return self._retries.persisting(get, what=f"reading {self.url}/{name}")

    def put(self, name: str, chunks: Iterable[Buffer], *, size: int) -> Identity:
        source = _Counted(chunks)
        try:
            done = obstore.put(
                self._uploader,
                name,
                source.pieces(size=size, where=f"{self.url}/{name}"),
                chunk_size=part_size(size, self._part_size),
                max_concurrency=PARTS_IN_FLIGHT,
            )
        except OURS:
            raise
        except BaseException as error:
            if error is source.error:
                raise
            raise _classified(error, f"{self.url}/{name}") from error
        identity = self._put_identity(name, done, size)
        if identity.size != size:
            raise IntegrityError(f"{self.url}/{name}: {size} bytes sent, the store holds {identity.size}")
        return identity

    def write(self, name: str, data: bytes, *, exclusive: bool = False, replacing: Identity | None = None) -> Identity:
        def send() -> Identity:
            with self._translated(name):
                mode: Any = self._version(name, replacing) if replacing else "create" if exclusive else "overwrite"
                done = obstore.put(self._store, name, data, mode=mode, use_multipart=False)
            return self._put_identity(name, done, len(data))

        return self._retries.persisting(send, what=f"writing {self.url}/{name}")

    def _put_identity(self, name: str, done: Any, size: int) -> Identity:
        """Of what was written, from the reply itself: in the next moment somebody else may write to that name."""
        if not (done["e_tag"] or done["version"]):
            return self.identify(name)
        return _identity({"size": size, **done})

    def _version(self, name: str, expected: Identity) -> dict[str, str]:
        """The version, in obstore's words, of the object that a write replaces. Raises InputChanged where it is another one."""
        try:
            meta: Any = obstore.head(self._store, name)
        except FileNotFoundError:
            meta = None
        if meta is None or _identity(meta) != expected:
            raise InputChanged(f"{self.url}/{name} is no longer what was to be replaced")
        return {key: meta[key] for key in ("e_tag", "version") if meta[key]}

    def publish(self) -> None:
        """Nothing: what is written is there."""

    def delete(self, name: str) -> None:
        def remove() -> None:
            with self._translated(name), suppress(FileNotFoundError):
                obstore.delete(self._store, name)

        self._retries.persisting(remove, what=f"deleting {self.url}/{name}")


class _Counted:
    """Chunks on their way to obstore, which holds a buffer of each until its part is sent."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = chunks
        self.error: BaseException | None = None
        """The exception that the producer raised, to tell it from those of obstore."""

    def pieces(self, *, size: int, where: str) -> Iterator[Buffer]:
        sent = 0
        try:
            for chunk in self._chunks:
                sent += len(chunk)
                stopping.alive()  # there is room for more, since parts have arrived
                yield chunk
        except BaseException as error:
            self.error = error
            stopping.alive()  # the upload is taken back now
            raise
        if sent != size:
            raise IntegrityError(f"{where}: {size} bytes announced, {sent} produced; nothing was published")


def _identity(meta: Any) -> Identity:
    tag = meta["e_tag"] or meta["version"] or meta["last_modified"].isoformat()
    return Identity(size=meta["size"], tag=f'"{tag}"' if _BARE.fullmatch(tag) else tag)


def _s3(url: str, config: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """The S3 store itself, since `from_url` does not know `_S3_ENDPOINT`; neither do versions that ignore that variable."""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    try:
        return S3Store(bucket, prefix=prefix or None, **arguments)
    except UnknownConfigurationKeyError:
        arguments["config"] = {key: value for key, value in config.items() if key != _S3_ENDPOINT}
        return S3Store(bucket, prefix=prefix or None, **arguments)


def _quoted(url: str) -> str:
    """`url` such that obstore arrives at the very key: in s3://bucket/a#1%20 every character counts, as in all S3 tools."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return url if scheme in ("http", "https") else f"{scheme}://{host}{slash}{quote(path)}"


def _connect(url: str, settings: StoreSettings, retries: dict[str, Any]) -> Any:
    scheme = scheme_of(url)
    client = _client(settings.retries)
    config: dict[str, Any] = {}
    provider: Any = None
    base: str | None = None
    if scheme in ("s3", "s3a"):
        base = aws.endpoint(settings)
        config["region"] = aws.region(settings)
        if aws.checksums(settings):
            config["checksum_algorithm"] = "SHA256"  # which signing computes anyway
        if base:
            config["endpoint"] = base.rstrip("/")
            client["allow_http"] = base.startswith("http://")
            if "AWS_ENDPOINT_URL_S3" in os.environ:
                config[_S3_ENDPOINT] = config["endpoint"]
        if settings.anonymous:
            config["skip_signature"] = True
        else:
            provider = aws.credential_provider(settings)
    elif scheme == "gs":
        if base := google.endpoint(settings):
            config["base_url"] = base
            client["allow_http"] = base.startswith("http://")
        if settings.anonymous:
            config["skip_signature"] = True
        else:
            provider = google.credential_provider()
    elif scheme in ("http", "https"):
        client["allow_http"] = scheme == "http"
    else:
        config |= azure.config(url, settings)
        client["allow_http"] = config.get("endpoint", "").startswith("http://")
        base = config.get("endpoint")
    if asked := base or (url if scheme in ("http", "https") else None):
        client |= network.for_obstore(asked)
    if trusted := trust.certificates(aws.ca_bundle(settings) if scheme in ("s3", "s3a") else None):
        client["root_certificate"] = trusted
    arguments: dict[str, Any] = {"client_options": client, "retry_config": retries}
    if config:
        arguments["config"] = config
    if provider is not None:
        arguments["credential_provider"] = provider
    while True:
        try:
            if scheme in ("s3", "s3a"):
                return _s3(url, config, arguments)
            if scheme in azure.SCHEMES and (place := azure.place(url)):
                return AzureStore(place.container, prefix=place.prefix or None, **arguments)
            return from_url(_quoted(url), **arguments)
        except OURS:
            raise
        except BaseException as error:
            if "read_timeout" in str(error) and client.pop("read_timeout", None):
                continue  # a version that has only the timeout of the whole request
            if "root_certificate" in str(error) and client.pop("root_certificate", None) and os.environ.get("SSL_CERT_FILE"):
                continue  # one that takes certificates from this variable alone
            raise UsageError(f"{redact(url)}: {_first_line(error)}") from error
