"""Google credentials as its own tools find them, of every kind, and the requests for open uploads, which obstore has no name for.

obstore alone reads keys of service accounts, what `gcloud auth application-default login` writes, and the metadata service;
workload identity federation and impersonation come through google-auth.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from paramdelta_dist.errors import CredentialsError, NotFound, ParamDeltaError, StorageError, TransientStorageError
from paramdelta_dist.storage.settings import StoreSettings

_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_OF_OBSTORE = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN")
"""Variables that only obstore knows, and that go before all others there."""
_KNOWN_TO_OBSTORE = ("service_account", "authorized_user")
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_EARLY_SECONDS = 300
_GOOGLE = "https://storage.googleapis.com"
_CODE = re.compile(r"<Code>(\w+)</Code>")


def endpoint(settings: StoreSettings) -> str:
    """Base URL of the service where it is another one than Google's own; else ""."""
    return (settings.endpoint or os.environ.get("GOOGLE_BASE_URL") or "").rstrip("/")


def credential_provider() -> Callable[[], dict[str, str | datetime | None]] | None:
    """A function that returns a fresh token each time one is needed; None where obstore finds credentials by itself.

    Raises CredentialsError where the file that the environment names cannot be read.
    """
    if any(os.environ.get(name) for name in _OF_OBSTORE):
        return None
    path = os.environ.get(_FILE, "") or _file_of_gcloud()
    if not path or _kind(path) in _KNOWN_TO_OBSTORE:
        return None
    credentials = _from_file(path)

    def provide() -> dict[str, str | datetime | None]:
        if not credentials.valid or not credentials.expiry or _seconds_left(credentials) < _EARLY_SECONDS:
            with _translated(path):
                credentials.refresh(_request())
        return {"token": credentials.token, "expires_at": credentials.expiry and credentials.expiry.replace(tzinfo=UTC)}

    return provide


def _seconds_left(credentials: Any) -> float:
    return float((credentials.expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds())


def _file_of_gcloud() -> str:
    folder = os.environ.get("CLOUDSDK_CONFIG") or os.path.join(os.path.expanduser("~"), ".config", "gcloud")
    path = os.path.join(folder, "application_default_credentials.json")
    return path if os.path.isfile(path) else ""


def _kind(path: str) -> str:
    return str(_content(path)["type"])


def _content(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise CredentialsError(f"{_FILE}={path}: {error.strerror}") from error
    except ValueError as error:
        raise CredentialsError(f"{path} is no file of Google credentials: it should be JSON") from error
    if not isinstance(content, dict) or "type" not in content:
        raise CredentialsError(f"{path} is no file of Google credentials: it should say its `type`")
    return content


def _from_file(path: str) -> Any:
    """By its type, and not by what tells the types apart in google-auth, which asks another service for the project on the way."""
    from google.auth import aws, identity_pool, impersonated_credentials, pluggable
    from google.oauth2 import credentials, service_account

    content = _content(path)
    source = content.get("credential_source") or {}
    outside: Any = identity_pool.Credentials
    impersonated: Any = impersonated_credentials.Credentials
    if "executable" in source:
        outside = pluggable.Credentials
    elif str(source.get("environment_id", "")).startswith("aws"):
        outside = aws.Credentials
    readers = {
        "service_account": lambda: service_account.Credentials.from_service_account_info(content, scopes=_SCOPES),  # type: ignore[no-untyped-call]
        "authorized_user": lambda: credentials.Credentials.from_authorized_user_info(content),  # type: ignore[no-untyped-call]
        "external_account": lambda: outside.from_info(content, scopes=_SCOPES),
        "impersonated_service_account": lambda: impersonated.from_impersonated_service_account_info(content, _SCOPES),
    }
    if content["type"] not in readers:
        raise CredentialsError(f"{path}: credentials of type {content['type']!r} are not known; known are {', '.join(readers)}")
    try:
        with _translated(path):
            return readers[content["type"]]()
    except (ValueError, KeyError, TypeError) as error:
        raise CredentialsError(f"{path} is no file of Google credentials: {error}") from error


@contextmanager
def _translated(where: str) -> Iterator[None]:
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except TransportError as error:
        raise TransientStorageError(f"{where}: {error}") from error
    except GoogleAuthError as error:
        raise CredentialsError(f"{where}: {error}") from error


def _request() -> Any:
    from google.auth.transport.requests import Request

    return Request()


def open_uploads(bucket: str, prefix: str, settings: StoreSettings) -> Iterator[tuple[str, datetime, str]]:
    """Key, beginning and id of every multipart upload of the XML API below a prefix that was neither completed nor aborted.

    Raises CredentialsError, NotFound, StorageError.
    """
    marker: dict[str, str] = {}
    while True:
        page = ElementTree.fromstring(_asked("GET", settings, bucket, uploads="", prefix=prefix, **marker))
        for upload in page.iterfind("{*}Upload"):
            begun = datetime.fromisoformat(upload.findtext("{*}Initiated", ""))
            yield upload.findtext("{*}Key", ""), begun, upload.findtext("{*}UploadId", "")
        if page.findtext("{*}IsTruncated", "") != "true":
            return
        marker = {"key-marker": page.findtext("{*}NextKeyMarker", ""), "upload-id-marker": page.findtext("{*}NextUploadIdMarker", "")}


def abort_upload(bucket: str, key: str, upload: str, settings: StoreSettings) -> None:
    """Have the parts of an upload deleted; no error where it is gone."""
    _asked("DELETE", settings, bucket, key, uploadId=upload)


def _asked(method: str, settings: StoreSettings, bucket: str, key: str = "", **query: str) -> bytes:
    """One request of the XML API, tried again as all others are."""
    where = f"gs://{bucket}/{key or query.get('prefix', '')}"
    url = f"{endpoint(settings) or _GOOGLE}/{quote(bucket, safe='')}" + (f"/{quote(key, safe='')}" if key else "")

    def ask() -> bytes:
        try:
            with _translated(where):
                reply = _session(settings).request(
                    method,
                    url,
                    params=query,
                    timeout=settings.retries.stall,
                    headers={"Content-Length": "0", "Content-Type": "application/octet-stream"},
                )
        except OSError as error:  # what requests raises
            raise TransientStorageError(f"{where}: {error}") from error
        if reply.status_code < 300 or (method == "DELETE" and reply.status_code == 404):
            return bytes(reply.content)
        code = found[1] if (found := _CODE.search(reply.text)) else str(reply.status_code)
        raise _error(reply.status_code)(f"{where}: {'listing' if method == 'GET' else 'aborting'} uploads was refused ({code})")

    return settings.retries.persisting(ask, what=f"asking for the uploads of {where}")


def _error(status: int) -> type[ParamDeltaError]:
    if status in (401, 403):
        return CredentialsError
    if status == 404:
        return NotFound
    return TransientStorageError if status in (408, 429) or status >= 500 else StorageError


def _session(settings: StoreSettings) -> Any:
    from google.auth import default
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession
    from google.oauth2.credentials import Credentials

    path = (
        os.environ.get("GOOGLE_SERVICE_ACCOUNT")
        or os.environ.get("GOOGLE_SERVICE_ACCOUNT_PATH")
        or os.environ.get(_FILE)
        or _file_of_gcloud()
    )
    credentials: Any
    if settings.anonymous:
        credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    elif token := os.environ.get("GOOGLE_BEARER_TOKEN"):
        credentials = Credentials(token)  # type: ignore[no-untyped-call]
    else:
        credentials = _from_file(path) if path else default(scopes=_SCOPES)[0]
    return AuthorizedSession(credentials, max_refresh_attempts=1)  # type: ignore[no-untyped-call]
