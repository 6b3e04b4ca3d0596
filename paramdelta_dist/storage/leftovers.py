"""Leftovers of killed processes in a folder: files being written on disks, open multipart uploads on S3 and Google's storage."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from paramdelta_dist.errors import CredentialsError, ParamDeltaError, StorageError
from paramdelta_dist.storage import aws, google, network
from paramdelta_dist.storage.border import translated
from paramdelta_dist.storage.part_names import may_be_part
from paramdelta_dist.storage.settings import StorageConfig, StoreSettings
from paramdelta_dist.storage.urls import redact, scheme_of


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something unfinished that takes room and that no reader sees."""

    kind: str
    """file or upload."""
    name: str
    """Relative to the folder: of the file itself, or of the object the upload was to become."""
    age_seconds: float
    """Since it was begun (upload) or last written (file)."""
    upload: str = ""
    """The store's id of an upload."""


def find_leftovers(url: str, config: StorageConfig) -> list[Leftover]:
    """Possibly unfinished files and uploads below a normalized URL, oldest first, whoever left them.

    Only local disks, S3 and Google's storage have any that can be listed. The stores keep uploads, and have them paid for, until
    somebody aborts them; Azure forgets blocks that were not committed after a week.
    """
    scheme = scheme_of(url)
    if scheme == "":
        found = list(_parts(url))
    elif scheme == "s3":
        found = list(_uploads(url, config.for_url(url)))
    elif scheme == "gs" and "STORAGE_EMULATOR_HOST" not in os.environ:
        found = list(_uploads_to_google(url, config.for_url(url)))
    else:
        found = []
    return sorted(found, key=lambda leftover: -leftover.age_seconds)


def remove_leftover(url: str, config: StorageConfig, leftover: Leftover) -> None:
    """Delete the file, or abort the upload, so that its parts are no longer stored and paid for."""
    if leftover.kind == "file":
        try:
            os.unlink(os.path.join(url, leftover.name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{url}/{leftover.name}: {error.strerror}") from error
        return
    bucket, prefix = _place(url)
    if scheme_of(url) == "gs":
        google.abort_upload(bucket, prefix + leftover.name, leftover.upload, config.for_url(url))
        return
    _asked(url, config.for_url(url), "abort_multipart_upload", Bucket=bucket, Key=prefix + leftover.name, UploadId=leftover.upload)


def _parts(folder: str) -> Iterator[Leftover]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if may_be_part(name):
                path = os.path.join(parent, name)
                try:
                    status = os.lstat(path)
                except FileNotFoundError:  # finished while we looked
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield Leftover("file", os.path.relpath(path, folder).replace(os.sep, "/"), time.time() - status.st_mtime)


def _uploads(url: str, settings: StoreSettings) -> Iterator[Leftover]:
    bucket, prefix = _place(url)
    marker: dict[str, str] = {}
    while True:
        page = _asked(url, settings, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
        for upload in page.get("Uploads") or ():
            if upload["Key"].startswith(prefix):
                age = (datetime.now(UTC) - upload["Initiated"]).total_seconds()
                yield Leftover("upload", upload["Key"][len(prefix) :], age, upload["UploadId"])
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _uploads_to_google(url: str, settings: StoreSettings) -> Iterator[Leftover]:
    bucket, prefix = _place(url)
    for key, begun, upload in google.open_uploads(bucket, prefix, settings):
        if key.startswith(prefix):
            yield Leftover("upload", key[len(prefix) :], (datetime.now(UTC) - begun).total_seconds(), upload)


def _place(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.partition("://")[2].partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix else ""


def _asked(url: str, settings: StoreSettings, operation: str, **arguments: Any) -> dict[str, Any]:
    """One S3 call that obstore has no name for."""
    from botocore.exceptions import ClientError

    def meaning(error: BaseException, where: str) -> ParamDeltaError:
        endpoint = aws.endpoint(settings)
        if told_by_network := network.explained(error, where, endpoint):
            return told_by_network
        if not isinstance(error, ClientError):
            return StorageError(f"{where}: {' '.join(str(error).split())}{network.by_proxy(error, endpoint)}")
        code = error.response.get("Error", {}).get("Code", "")
        kind = CredentialsError if code in aws.DENIED_CODES else StorageError
        return kind(f"{where}: {operation.replace('_', ' ')} was refused ({code})")

    if not settings.anonymous:
        aws.credential_provider(settings)  # raises where there are none, and says what to do
    if aws.requester_pays():
        arguments["RequestPayer"] = "requester"
    with translated(redact(url), meaning):
        try:
            reply: dict[str, Any] = getattr(aws.client(settings), operation)(**arguments)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchUpload":
                return {}
            raise
    return reply
