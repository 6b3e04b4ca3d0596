"""Moving objects with obstore alone, as little as can be said: what a merge on S3 is compared with.

    python -m benchmarks.objects copy      REQUESTS s3://BUCKET/TO s3://BUCKET/FIRST s3://BUCKET/OTHER …
    python -m benchmarks.objects read      REQUESTS s3://BUCKET/KEY …
    python -m benchmarks.objects download  REQUESTS FILE s3://BUCKET/KEY
    python -m benchmarks.objects upload    REQUESTS FILE s3://BUCKET/KEY

`copy` reads all sources with so many requests of 16 MiB under way and writes the first. Servers and credentials as the AWS variables say.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import obstore
from obstore.store import S3Store

PART = 16 << 20
UPLOADS = 4
"""Parts of an upload under way: as many as the package has."""


def open_object(url: str) -> tuple[Any, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return S3Store(bucket, config={"endpoint": os.environ["AWS_ENDPOINT_URL"]}, client_options={"allow_http": True}), key


def pieces(urls: list[str], requests: int) -> Iterator[tuple[int, int, Any]]:
    """(position of the URL, start, bytes) of all objects, 16 MiB of each in turn, with so many requests under way."""
    opened = [open_object(url) for url in urls]
    sizes = [obstore.head(store, key)["size"] for store, key in opened]
    wanted = iter([(which, start) for start in range(0, max(sizes), PART) for which, size in enumerate(sizes) if start < size])

    def fetched() -> Iterator[tuple[int, int, Any]]:  # obstore runs this where it can make no request itself
        waiting: deque[tuple[int, int, Future[Any]]] = deque()
        with ThreadPoolExecutor(requests) as pool:
            while True:
                while len(waiting) < requests and (each := next(wanted, None)):
                    which, start = each
                    place = {"start": start, "end": min(start + PART, sizes[which])}
                    waiting.append((which, start, pool.submit(obstore.get_range, *opened[which], **place)))
                if not waiting:
                    return
                which, start, future = waiting.popleft()
                yield which, start, future.result()

    return fetched()


def copy(requests: int, to: str, *urls: str) -> None:
    store, key = open_object(to)
    first = (memoryview(data) for which, _, data in pieces(list(urls), requests) if which == 0)
    obstore.put(store, key, first, chunk_size=PART, max_concurrency=UPLOADS)


def read(requests: int, *urls: str) -> None:
    for _ in pieces(list(urls), requests):
        pass


def download(requests: int, path: str, url: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for _, start, data in pieces([url], requests):
        os.pwrite(file, memoryview(data), start)


def upload(requests: int, path: str, url: str) -> None:
    store, key = open_object(url)
    with open(path, "rb") as file:
        obstore.put(store, key, file, chunk_size=PART, max_concurrency=requests)


if __name__ == "__main__":
    {"copy": copy, "read": read, "download": download, "upload": upload}[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
