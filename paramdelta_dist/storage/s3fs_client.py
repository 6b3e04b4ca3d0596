"""s3fs with one layer of retries, and reads of one version."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from paramdelta_dist import stopping
from paramdelta_dist.storage import aws
from paramdelta_dist.storage.fsspec_errors import classified, library_errors, service_reply
from paramdelta_dist.storage.retry import RetryPolicy, log
from paramdelta_dist.storage.settings import StoreSettings

CHECK_INTERVAL_SECONDS = 0.2
"""Seconds between two looks for a stop."""


class PersistentS3(S3FileSystem):  # type: ignore[misc]
    """Every request of s3fs, parts of uploads included, is tried again by the rule of retry.py and by nobody else."""

    retries = 1
    """s3fs's own tries."""

    def __init__(self, *, policy: RetryPolicy, **options: Any) -> None:
        self.policy = policy
        super().__init__(**options)

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        delays, waiting = self.policy.pauses(), stopping.Waiting()
        while True:
            try:
                return await super()._call_s3(method, *arguments, **options)
            except library_errors() as error:
                meaning = classified(error, f"{method} of {options.get('Key') or options.get('Bucket')}")
                gone = service_reply(error)[0] == "NoSuchUpload"  # only the whole shard can be tried again
                if gone or not meaning.retryable or (delay := next(delays, None)) is None:
                    raise
                log.warning("%s; next attempt in %.1f s", meaning, delay)
                await _sleep(waiting, delay)

    call_s3 = sync_wrapper(_call_s3)


async def _sleep(waiting: stopping.Waiting, seconds: float) -> None:
    """Raises Interrupted a moment after a stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, CHECK_INTERVAL_SECONDS))
        waiting.sleep(0)


def connect(settings: StoreSettings) -> PersistentS3:
    if not settings.anonymous:
        aws.credential_provider(settings)  # raises at once when there are none; s3fs would at the first request
    return PersistentS3(
        policy=settings.retries,
        anon=settings.anonymous,
        profile=settings.profile,
        endpoint_url=aws.endpoint(settings),
        client_kwargs={"region_name": aws.region(settings), "verify": aws.verify(settings)},
        requester_pays=aws.requester_pays(),
        s3_additional_kwargs=aws.encryption(),
        config_kwargs={
            "max_pool_connections": 32,
            "read_timeout": settings.retries.stall,
            "connect_timeout": settings.retries.connect,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "proxies": aws.proxies(settings),
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


async def pinned_range(fs: PersistentS3, path: str, start: int, stop: int, tag: str) -> bytes:
    """Bytes [start, stop) of the version with the ETag `tag`."""
    bucket, key, _ = fs.split_path(path)
    reply = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=tag)
    async with reply["Body"] as body:
        return bytes(await body.read())
