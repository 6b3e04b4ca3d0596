"""What AWS's own tools would use: credentials, region and endpoint from the environment, profiles and roles.

obstore alone knows environment variables and the metadata service; profiles, SSO and the rest come through botocore.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from paramdelta_dist.errors import CredentialsError
from paramdelta_dist.storage.settings import StoreSettings

if TYPE_CHECKING:
    from datetime import datetime

DENIED_CODES = {
    "AccessDenied", "AccountProblem", "ExpiredToken", "Forbidden", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
"""What S3 says to credentials, some of it with status 400."""
PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "NoSuchUpload", "OperationAborted", "RequestTimeout",
    "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
}  # fmt: skip
"""What S3 says with status 4xx although it is no one's mistake: bytes were lost on the way, another request was in the way, or an
upload was completed or removed."""


@lru_cache(maxsize=32)
def _session(profile: str | None) -> Any:
    from botocore.session import Session

    return Session(profile=profile)


def endpoint(settings: StoreSettings) -> str | None:
    """Base URL of the S3 service, or None for AWS itself."""
    return (
        settings.endpoint
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or _scoped(settings).get("endpoint_url")
    )


def region(settings: StoreSettings) -> str:
    return (
        settings.region
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or _scoped(settings).get("region")
        or "us-east-1"
    )


def checksums(settings: StoreSettings) -> bool:
    """Whether uploads carry a checksum that the store verifies; the switch is that of AWS's tools, for stores that know none."""
    wanted = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or _scoped(settings).get("request_checksum_calculation") or ""
    return wanted.lower() != "when_required"


def _scoped(settings: StoreSettings) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError

    try:
        return dict(_session(settings.profile).get_scoped_config())
    except BotoCoreError as error:
        raise CredentialsError(f"AWS configuration: {error}") from error


def credential_provider(settings: StoreSettings) -> Callable[[], dict[str, str | datetime | None]]:
    """A function that returns fresh credentials each time they are needed.

    Raises CredentialsError at once when there are none, rather than minutes later from a metadata service that is not there.
    """
    from botocore.exceptions import BotoCoreError

    try:
        credentials = _session(settings.profile).get_credentials()
    except BotoCoreError as error:
        raise CredentialsError(f"AWS credentials: {error}") from error
    if credentials is None:
        raise CredentialsError(
            "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile (AWS_PROFILE, or "
            "`profile:` under `storage:` in the recipe), run where a role is attached, or set `anonymous: true` for a public bucket"
        )

    def provide() -> dict[str, str | datetime | None]:
        from datetime import datetime, timedelta, timezone

        frozen = credentials.get_frozen_credentials()  # refreshes temporary ones when they are about to end
        expiry = getattr(credentials, "_expiry_time", None)
        if expiry is None and frozen.token:
            expiry = datetime.now(timezone.utc) + timedelta(minutes=10)  # ask again: a profile's file may have been renewed
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": expiry,
        }

    return provide


def client(settings: StoreSettings) -> Any:
    """A botocore client for the few S3 calls that only administration needs."""
    from botocore.config import Config

    return _session(settings.profile).create_client(
        "s3",
        endpoint_url=endpoint(settings),
        region_name=region(settings),
        config=Config(s3={"addressing_style": "path" if endpoint(settings) else "auto"}, connect_timeout=10, read_timeout=60),
    )
