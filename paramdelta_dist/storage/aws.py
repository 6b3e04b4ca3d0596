"""AWS settings as its own tools find them: credentials, region and endpoint from the environment, profiles and roles.

obstore alone knows environment variables and the metadata service; profiles, SSO and the rest come through botocore.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from paramdelta_dist.errors import CredentialsError
from paramdelta_dist.storage import network, trust
from paramdelta_dist.storage.border import translated
from paramdelta_dist.storage.environment import check_region, checked_url, problem_of
from paramdelta_dist.storage.settings import StoreSettings

if TYPE_CHECKING:
    from datetime import datetime

DENIED_CODES = {
    "AccessDenied", "AccountProblem", "ExpiredToken", "Forbidden", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
"""Error codes of S3 about credentials; some come with status 400."""
PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "NoSuchUpload", "OperationAborted", "RequestTimeout",
    "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
}  # fmt: skip
"""Error codes of S3 with status 4xx that are no one's mistake: bytes were lost on the way, another request was in the way, or an
upload was completed or removed."""


_NAMES_OF_FILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


@lru_cache(maxsize=32)
def _session(profile: str | None) -> Any:
    from botocore.session import Session

    return Session(profile=profile)


def endpoint(settings: StoreSettings) -> str | None:
    """Base URL of the S3 service, or None for AWS itself."""
    given = settings.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if given:
        return given
    of_profile = _scoped(settings).get("endpoint_url")
    return checked_url(of_profile, "endpoint_url of the AWS profile") if of_profile else None


def ca_bundle(settings: StoreSettings) -> str | None:
    """The file of certificates that the profile names."""
    return _scoped(settings).get("ca_bundle")


def verify(settings: StoreSettings) -> str | None:
    """The file of certificates that botocore is to trust; None for those it trusts by itself."""
    path = trust.bundle(ca_bundle(settings))
    return str(path) if path else None


def proxies(settings: StoreSettings) -> dict[str, str]:
    """For botocore, which alone would leave out ALL_PROXY and what NO_PROXY says of networks."""
    return network.proxies(endpoint(settings) or "https://s3.amazonaws.com")


def requester_pays() -> bool:
    """Whether requests say that who sends them pays, by the variable that obstore reads too."""
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() in ("requester", "true", "1")


def encryption() -> dict[str, Any]:
    """Options, in botocore's words, by which S3 encrypts what is written; from the variables that obstore reads too."""
    kind, key = os.environ.get("AWS_SERVER_SIDE_ENCRYPTION"), os.environ.get("AWS_SSE_KMS_KEY_ID")
    if not kind and not key:
        return {}
    options: dict[str, Any] = {"ServerSideEncryption": kind or "aws:kms"}
    if key:
        options["SSEKMSKeyId"] = key
    if os.environ.get("AWS_SSE_BUCKET_KEY_ENABLED", "").lower() in ("true", "1"):
        options["BucketKeyEnabled"] = True
    return options


def region(settings: StoreSettings) -> str:
    given = settings.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not given and (of_profile := _scoped(settings).get("region")):
        check_region(of_profile, "region of the AWS profile")
        given = of_profile
    return given or "us-east-1"


def checksums(settings: StoreSettings) -> bool:
    """Whether uploads carry a checksum that the store verifies; the switch is that of AWS's tools, for stores that know none."""
    wanted = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or _scoped(settings).get("request_checksum_calculation") or ""
    return wanted.lower() != "when_required"


def _scoped(settings: StoreSettings) -> dict[str, Any]:
    with translated("AWS configuration", partial(_misread, settings)):
        return dict(_session(settings.profile).get_scoped_config())


def _misread(settings: StoreSettings, error: BaseException, where: str) -> CredentialsError:
    """The error that says who named the profile or the file that is missing or broken."""
    sources = [("`profile:` under `storage:` in the recipe", settings.profile)]
    sources += [(name, os.environ.get(name)) for name in _NAMES_OF_FILES]
    told = " ".join(str(error).split())
    named = [source for source, value in sources if value and os.path.expanduser(value.strip()) in told]
    return CredentialsError(f"{where}: {told}" + (f" ({named[0]} names it)" if named else ""))


def credential_provider(settings: StoreSettings) -> Callable[[], dict[str, str | datetime | None]]:
    """A function that returns fresh credentials each time they are needed.

    Raises CredentialsError at once when there are none, rather than minutes later from a metadata service that is not there.
    """
    with translated("AWS credentials", partial(_misread, settings)):
        credentials = _session(settings.profile).get_credentials()
    if credentials is None:
        raise CredentialsError(
            "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile (AWS_PROFILE, or "
            "`profile:` under `storage:` in the recipe), run where a role is attached, or set `anonymous: true` for a public bucket"
        )

    if type(credentials).__name__ == "Credentials":  # those that are there, and need not be asked for
        for name in ("access_key", "secret_key", "token"):
            if problem := problem_of(getattr(credentials, name) or ""):
                raise CredentialsError(f"AWS credentials ({credentials.method}): the {name.replace('_', ' ')} {problem}")

    def provide() -> dict[str, str | datetime | None]:
        from datetime import datetime, timedelta

        frozen = credentials.get_frozen_credentials()  # refreshes temporary ones when they are about to end
        expiry = getattr(credentials, "_expiry_time", None)
        if expiry is None and frozen.token:
            expiry = datetime.now(UTC) + timedelta(minutes=10)  # ask again: a profile's file may have been renewed
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
        verify=verify(settings),
        config=Config(
            s3={"addressing_style": "path" if endpoint(settings) else "auto"},
            connect_timeout=10,
            read_timeout=60,
            retries={"total_max_attempts": 4, "mode": "standard"},
            proxies=proxies(settings),
        ),
    )
