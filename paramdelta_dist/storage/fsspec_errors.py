"""Errors of fsspec and the clients behind it, as errors of our tree."""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import cache

from fsspec.exceptions import FSTimeoutError

from paramdelta_dist.errors import (
    AlreadyExists,
    CredentialsError,
    InputChanged,
    NotFound,
    ParamDeltaError,
    StorageError,
    TransientStorageError,
)
from paramdelta_dist.storage import aws, network

_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "botocore", "paramiko")
"""Libraries whose own exceptions are about a connection."""


def service_reply(error: BaseException) -> tuple[str, str]:
    """The service's own error code and the HTTP status, from the library's exception or one it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):  # botocore, which gives the status as code where a reply has no body
            return str(response.get("Error", {}).get("Code", "")), str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        status = getattr(response, "status_code", None) or getattr(seen, "code", None) or getattr(seen, "status", None)
        if isinstance(status, (int, str)) and status:
            return "", str(status)
        seen = seen.__cause__ or seen.__context__
    return "", ""


def classified(error: BaseException, where: str, endpoint: str | None = None) -> ParamDeltaError:
    """The error of our tree that an exception of a file system means; `endpoint` is the service's URL where it is known."""
    if told_by_network := network.explained(error, where, endpoint):
        return told_by_network
    kind, text = type(error).__name__, str(error).partition("\n")[0][:400]
    code, status = service_reply(error)
    if code in aws.PASSING_CODES or kind == "ClientPayloadError":  # a broken body, which aiohttp gives the status 400
        return TransientStorageError(f"{where}: {text or kind}")
    if isinstance(error, FileNotFoundError) or status == "404":
        return NotFound(f"{where}: no such object")
    if isinstance(error, FileExistsError):
        return AlreadyExists(f"{where} exists already")
    if status in ("412", "416"):  # a range of the version that was planned with fits
        return InputChanged(f"{where} changed since the plan was made; run again to plan with the new version")
    denied = isinstance(error, PermissionError) or status in ("401", "403") or code in aws.DENIED_CODES
    unexplained = code == "400"  # a HEAD has no body to say ExpiredToken in
    if denied or unexplained or kind in ("NoCredentialsError", "DefaultCredentialsError"):
        return CredentialsError(f"{where}: access denied, or credentials missing or expired; check the environment ({text or kind})")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{where}: no space left; free some and run again")
    refused = status == "501" or (status.startswith("4") and status not in ("408", "409", "425", "429"))
    if isinstance(error, (NotImplementedError, ValueError, TypeError)) or refused:
        return StorageError(f"{where}: {text or kind}")
    if not isinstance(error, library_errors()) and type(error).__module__.partition(".")[0] not in _CLIENTS:
        return StorageError(f"{where}: the library of this store failed ({kind}: {text})")
    return TransientStorageError(f"{where}: {text or kind}{network.by_proxy(error, endpoint)}")


@cache
def library_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that file systems raise for reasons outside this program: never a bug of ours."""
    errors: list[type[BaseException]] = [OSError, NotImplementedError, FSTimeoutError]
    with suppress(ImportError):
        import aiohttp

        errors.append(aiohttp.ClientError)
    with suppress(ImportError):
        from botocore.exceptions import BotoCoreError, ClientError

        errors += [BotoCoreError, ClientError]
    with suppress(ImportError):
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError

        errors += [HttpError, GoogleAuthError]
    return tuple(errors)
