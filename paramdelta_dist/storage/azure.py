"""Azure credentials as its own tools find them: account, key, SAS and endpoint from the environment, and the account in a URL.

obstore reads its own names of the environment's variables; those of `az` and the SDKs that it does not know, connection strings
above all, are read here.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from paramdelta_dist.errors import CredentialsError, UsageError
from paramdelta_dist.storage.settings import StoreSettings
from paramdelta_dist.storage.urls import redact

SCHEMES = ("az", "azure", "abfs", "abfss")

DENIED_CODES = {
    "AccountIsDisabled", "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch", "AuthorizationProtocolMismatch",
    "AuthorizationResourceTypeMismatch", "AuthorizationServiceMismatch", "AuthorizationSourceIPMismatch", "InsufficientAccountPermissions",
    "InvalidAuthenticationInfo", "KeyBasedAuthenticationNotPermitted", "NoAuthenticationInformation", "PublicAccessNotPermitted",
}  # fmt: skip
"""Error codes of Azure about credentials; some come with status 400 or 409."""
REFUSED_CODES = {
    "BlobArchived", "BlobBeingRehydrated", "BlobImmutableDueToPolicy", "BlobTypeNotSupported", "InvalidBlobType", "LeaseIdMissing",
    "SnapshotsPresent",
}  # fmt: skip
"""Error codes of Azure with status 409 or 412, those of a taken name or a changed blob, for requests that meet neither."""

_CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_KEY = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_KEY")
_SAS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
_ENDPOINT = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURE_STORAGE_SERVICE_ENDPOINT")
_CLOUD = "core.windows.net"


@dataclass(frozen=True, slots=True)
class Place:
    """The container, path and account that a URL names."""

    container: str
    prefix: str
    account: str = ""
    cloud: str = _CLOUD
    """Domain of the cloud: another one for Azure China or Azure Government."""


def place(url: str) -> Place | None:
    """The parts of `az://container/path`, which fsspec's users write `abfs://` as well, and of Hadoop's
    `abfss://container@account.dfs.core.windows.net/path`, whose domain may be left out; None for Microsoft Fabric.

    Raises UsageError where the host is neither.
    """
    host, _, prefix = url.partition("://")[2].partition("/")
    container, at, host = host.rpartition("@")
    if not at:
        if "." in host:
            raise UsageError(f"{redact(url)}: {host} is no container; an account is named by abfss://CONTAINER@{host}/…")
        return Place(host, prefix)
    account, _, domain = host.partition(".")
    service, _, cloud = domain.partition(".")
    if domain.endswith("fabric.microsoft.com"):
        return None
    if not container or not re.fullmatch(r"[A-Za-z0-9-]+", account) or (domain and (service not in ("dfs", "blob") or not cloud)):
        raise UsageError(f"{redact(url)}: should be abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…")
    return Place(container, prefix, account, cloud or _CLOUD)


def config(url: str, settings: StoreSettings) -> dict[str, Any]:
    """obstore's settings for a URL.

    What the recipe says goes before the connection string, which goes before the other variables. A connection string or an
    endpoint that is known to belong to another account than the URL names is left alone, since containers there may have the same
    names. Raises CredentialsError where no account is known, or where a key is none; UsageError for a connection string that is none.
    """
    found = place(url)
    named = found.account if found else ""
    connection = _connection_string()
    theirs = connection.get("accountname", "") or _account_of(connection.get("blobendpoint", ""))
    if named and theirs and named != theirs:
        connection, theirs = {}, ""
    usual = _variable(_ACCOUNT)
    account = named or theirs or usual or _account_of(settings.endpoint or "") or _account_of(_variable(_ENDPOINT))
    emulated = not settings.endpoint and connection.get("usedevelopmentstorage", "").lower() == "true"
    emulated = emulated or (not settings.endpoint and not connection and _true(os.environ.get("AZURE_STORAGE_USE_EMULATOR", "")))
    config: dict[str, Any] = {"use_emulator": emulated}
    if account:
        config["account_name"] = account
    elif not emulated and found:
        raise CredentialsError(
            f"{redact(url)}: which storage account? Set AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING, or name it in the "
            f"URL: abfss://{found.container}@ACCOUNT.dfs.core.windows.net/…"
        )
    base = (
        settings.endpoint
        or connection.get("blobendpoint")
        or _endpoint_from_variables(account, usual)
        or _default_endpoint(found, connection)
    )
    if base and not emulated:
        config["endpoint"] = base.rstrip("/")
    if settings.anonymous:
        config["skip_signature"] = True
        return config
    key = connection.get("accountkey") or ("" if connection.get("sharedaccesssignature") else _variable(_KEY))
    sas = connection.get("sharedaccesssignature") or _variable(_SAS)
    if key:
        config["account_key"] = _checked_key(key, _CONNECTION if connection.get("accountkey") else _name(_KEY))
    elif sas:
        config["sas_key"] = sas
    return config


def _connection_string() -> dict[str, str]:
    """The parts of AZURE_STORAGE_CONNECTION_STRING by name in lower case; empty where there is none."""
    parts = [part.strip() for part in os.environ.get(_CONNECTION, "").split(";") if part.strip()]
    if any("=" not in part for part in parts):
        raise UsageError(f"{_CONNECTION} should be NAME=VALUE;NAME=VALUE;…, as `az storage account show-connection-string` prints it")
    found = {name.strip().lower(): value.strip() for name, _, value in (part.partition("=") for part in parts)}
    if "blobendpoint" not in found and found.get("accountname") and found.get("endpointsuffix"):
        found["blobendpoint"] = f"{found.get('defaultendpointsprotocol', 'https')}://{found['accountname']}.blob.{found['endpointsuffix']}"
    return found


def _endpoint_from_variables(account: str, usual: str) -> str:
    """The endpoint that the environment names, unless it is that of another account, whose containers may have the same names."""
    endpoint = _variable(_ENDPOINT)
    whose = _account_of(endpoint) or usual
    return endpoint if not whose or whose == account else ""


def _default_endpoint(found: Place | None, connection: dict[str, str]) -> str:
    """For the clouds whose domain obstore does not put in by itself."""
    return f"https://{found.account}.blob.{found.cloud}" if found and found.account and found.cloud != _CLOUD and not connection else ""


def _account_of(endpoint: str) -> str:
    """The account in https://ACCOUNT.blob.core.windows.net or, as emulators have it, in http://host:port/ACCOUNT; "" where none is."""
    parts = urlsplit(endpoint)
    path = parts.path.strip("/")
    account, _, rest = (parts.hostname or "").partition(".")
    return path.partition("/")[0] or (account if rest.startswith(("blob.", "dfs.", "privatelink.")) else "")


def _checked_key(key: str, variable: str) -> str:
    try:
        base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CredentialsError(
            f"{variable}: the account's key in it is no base64, as keys of Azure are; was it cut, or a line break added?"
        ) from error
    return key


def _variable(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _name(names: tuple[str, ...]) -> str:
    return next(name for name in names if os.environ.get(name, "").strip())


def _true(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "y", "on")
