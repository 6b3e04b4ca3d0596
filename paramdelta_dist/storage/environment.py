"""The environment is checked before a library reads it: what cannot work is told with the variable's name, at once.

Libraries notice it later, some with a panic, some as a connection that fails and is tried again for a minute and a half. Nothing is
corrected silently: a secret that ends with a newline, as files of Kubernetes secrets do, is refused, because every other tool that
uses it fails with it too.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import urlsplit

from paramdelta_dist.errors import CredentialsError, UsageError
from paramdelta_dist.redaction import redacted

_SECRETS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (
        "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET",
    ),
    "hf": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"),
}  # fmt: skip
_PLAIN = {
    "s3": (
        "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE", "AWS_SSE_KMS_KEY_ID", "AWS_SERVER_SIDE_ENCRYPTION", "AWS_REQUEST_PAYER",
        "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
    "hf": ("HF_HOME",),
}  # fmt: skip
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), "hf": ("HF_ENDPOINT",)}
_FAMILIES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "az", "abfss": "az", "hf": "hf"}
_PATHS = ("_FILE", "_PATH", "_CREDENTIALS", "_PROFILE", "_HOME", "_CONNECTION_STRING", "_ACCOUNT")
"""Ends of the names of variables whose value may hold a space in its middle."""


def check_environment(scheme: str) -> None:
    """Raises CredentialsError or UsageError, naming the variable, for a value that no store of this kind could use."""
    family = _FAMILIES.get(scheme, "")
    for name in (*_SECRETS.get(family, ()), *_PLAIN.get(family, ())):
        _check_text(name, secret=name in _SECRETS[family])
    if family == "s3":
        for name in _REGIONS:
            if value := os.environ.get(name):
                check_region(value, name)
    for name in _ENDPOINTS.get(family, ()):
        if value := os.environ.get(name):
            checked_url(value, name)
    if family == "gs":
        _check_google()


def _check_text(name: str, *, secret: bool) -> None:
    value = os.environ.get(name)
    if value and (problem := problem_of(value, spaces=name.endswith(_PATHS))):
        kind = CredentialsError if secret else UsageError
        raise kind(f"{name} {problem}; set it to the value alone, without it")


def problem_of(value: str, *, spaces: bool = False) -> str:
    """The characters of a value that no header or file name could carry, as a half sentence; empty where there are none."""
    if value != value.strip():
        what = "a newline" if "\n" in value[:1] + value[-1:] else "white space"
        return f"{'begins' if value != value.lstrip() else 'ends'} with {what}"
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        return "holds a newline or another control character"
    if not spaces and any(character.isspace() for character in value):
        return "holds a space"
    return "" if spaces or value.isascii() else "holds a character that is not ASCII"


def check_region(value: str, source: str) -> None:
    """Raises UsageError for what cannot be the name of a region."""
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", value):
        raise UsageError(f"{source}: {value!r} is no region; write its name, such as us-east-1")


def checked_url(value: str, source: str, *, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """`value`, which `source` gives as the address of a service. Raises UsageError, naming the source, where it cannot be one."""
    shown = redacted(value)
    if problem := problem_of(value):
        raise UsageError(f"{source}: {shown!r} {problem}; write {schemes[0]}://HOST:PORT")
    try:
        parts = urlsplit(value)
        port, host = parts.port, parts.hostname
    except ValueError:  # a port that is no number below 65536, brackets that do not close
        raise UsageError(f"{source}: {shown} has a port or a host that cannot be; write {schemes[0]}://HOST:PORT") from None
    if parts.scheme.lower() not in schemes or "://" not in value:
        raise UsageError(f"{source}: {shown} does not begin with {' or '.join(f'{each}://' for each in schemes)}")
    if not host or port == 0:
        raise UsageError(f"{source}: {shown} names no host, or port 0; write {schemes[0]}://HOST:PORT")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{source}: {shown} holds a user or a password, which a signed request has no place for; leave it out")
    return value


def check_place(url: str) -> None:
    """Raises UsageError where the bucket, container or host of a URL of an object store cannot be one."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("/")[0]
    if scheme in ("http", "https"):
        checked_url(f"{scheme}://{place}", redacted(url))
    elif _FAMILIES.get(scheme, "hf") != "hf" and not re.fullmatch(r"[A-Za-z0-9$][A-Za-z0-9._$@:-]*", place):
        raise UsageError(f"{redacted(url)}: {place!r} cannot be the name of a bucket")


def _check_google() -> None:
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    if not (path := os.environ.get(name)):
        return
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(1 << 20))
    except OSError as error:
        raise CredentialsError(f"{name}: {path} cannot be read ({error.strerror}); name the JSON file of an account") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "type" not in found:
        raise CredentialsError(f"{name}: {path} is no JSON file of an account's credentials")
