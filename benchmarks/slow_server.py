"""An S3 server that is slow in a known way: each request waits, each connection sends at a given speed. Models made on the fly.

    python -m benchmarks.slow_server PORT LATENCY_SECONDS BYTES_A_SECOND LAYERS

It knows as much of S3 as reading takes: ListObjectsV2, HEAD, GET with and without a range. `GET /_taken` tells what was read since it
was last asked, as JSON. Data are one random pattern repeated, so that serving costs next to nothing but the copies of the kernel.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import parse_qs, urlsplit

from benchmarks.checkpoints import MODELS, header, llama

BUCKET = "slow"
LARGE = 1 << 20
"""Bytes from which on a read counts as one of weights, and not of a header."""
TICK_SECONDS = 0.01
"""A connection sends what it may send in so long at a time."""
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@dataclass
class Taken:
    """What was read of weights since this was last asked."""

    size: int = 0
    requests: int = 0
    began: float = 0.0
    ended: float = 0.0
    """When the first request came and the last byte was sent."""
    most: int = 0
    """Requests under way at the same time, at most."""
    request_seconds: float = 0.0
    """Of all requests, added up: divided by the time from began to ended it is how many were under way on average."""
    cpu: float = field(default_factory=time.process_time)


class Store:
    """The objects and the state of the server."""

    def __init__(self, latency: float, speed: float, layers: int) -> None:
        import numpy as np

        self.latency, self.speed = latency, speed
        values = (0.02 * np.random.default_rng(0).standard_normal(4 << 20)).astype(np.float32)
        once = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bfloat16, cut and not rounded
        self.repeats = len(once)
        self.pattern = memoryview(once + once)
        shapes = llama(layers=layers, hidden=2048, intermediate=8192, kv=512, vocabulary=32_000, tied=True)
        head, size = header(shapes)
        self.objects: dict[str, tuple[bytes, int]] = {}
        """Key → beginning, and bytes of pattern behind it."""
        for model in MODELS:
            self.objects[f"{model}/config.json"] = (b'{"model_type": "bench", "architectures": ["Bench"]}', 0)
            self.objects[f"{model}/model.safetensors"] = (head, size)
        self.taken = Taken()
        self.under_way = 0

    def data(self, key: str, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of an object, at most `repeats` of them, and fewer where its beginning ends."""
        head, _ = self.objects[key]
        if start < len(head):
            return memoryview(head)[start : min(stop, len(head))]
        shift = 4096 * MODELS.index(key.partition("/")[0])  # so that the models differ
        place = (start - len(head) + shift) % self.repeats
        return self.pattern[place : place + min(stop - start, self.repeats)]

    async def serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with client:
            while True:
                while b"\r\n\r\n" not in received:
                    more = await loop.sock_recv(client, 65536)
                    if not more:
                        return
                    received += more
                request, _, received = received.partition(b"\r\n\r\n")
                await self.answer(client, request.decode("latin-1"))

    async def answer(self, client: socket.socket, request: str) -> None:
        method, target, _ = request.partition("\r\n")[0].split()
        url = urlsplit(target)
        if url.path == "/_taken":
            self.taken.cpu = time.process_time() - self.taken.cpu
            body, self.taken = json.dumps(asdict(self.taken)).encode(), Taken()
            return await self.reply(client, "200 OK", body, {})
        arrived = time.monotonic()
        await asyncio.sleep(self.latency)
        key = url.path.removeprefix(f"/{BUCKET}").strip("/")
        if "list-type" in (query := parse_qs(url.query)):
            return await self.reply(client, "200 OK", self.listing(query.get("prefix", [""])[0]), {"Content-Type": "application/xml"})
        if key not in self.objects:
            return await self.reply(client, "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"})
        size = len(self.objects[key][0]) + self.objects[key][1]
        headers = {"ETag": '"1"', "Last-Modified": DATE, "Accept-Ranges": "bytes"}
        asked = re.search(r"^range: *bytes=(\d+)-(\d*)", request, re.IGNORECASE | re.MULTILINE)
        start, stop = (int(asked[1]), min(int(asked[2] or size) + 1, size)) if asked else (0, size)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await self.reply(client, "206 Partial Content" if asked else "200 OK", None, {**headers, "Content-Length": str(stop - start)})
        if method == "HEAD":
            return None
        large = stop - start >= LARGE
        if large:
            self.begin(arrived)
        try:
            await self.send(client, key, start, stop)
        finally:
            if large:
                self.end(arrived, stop - start)
        return None

    async def reply(self, client: socket.socket, status: str, body: bytes | None, headers: dict[str, str]) -> None:
        if body is not None:
            headers = {**headers, "Content-Length": str(len(body))}
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        await asyncio.get_running_loop().sock_sendall(client, "\r\n".join(lines).encode() + (body or b""))

    async def send(self, client: socket.socket, key: str, start: int, stop: int) -> None:
        """The bytes at the speed of a connection: each piece when its last byte would have come."""
        loop, began, place = asyncio.get_running_loop(), time.monotonic(), start
        while place < stop:
            piece = self.data(key, place, min(stop, place + max(1, int(self.speed * TICK_SECONDS))))
            place += len(piece)
            await asyncio.sleep(max(0.0, began + (place - start) / self.speed - time.monotonic()))
            await loop.sock_sendall(client, piece)

    def begin(self, arrived: float) -> None:
        self.under_way += 1
        self.taken.began = self.taken.began or arrived
        self.taken.most = max(self.taken.most, self.under_way)

    def end(self, arrived: float, size: int) -> None:
        self.under_way -= 1
        self.taken.ended = time.monotonic()
        self.taken.size += size
        self.taken.requests += 1
        self.taken.request_seconds += self.taken.ended - arrived

    def listing(self, prefix: str) -> bytes:
        found = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
            f"<Size>{len(head) + size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, (head, size) in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        ).encode()


async def main(port: int, store: Store) -> None:
    loop, listener, tasks = asyncio.get_running_loop(), socket.create_server(("127.0.0.1", port), backlog=256), set()
    listener.setblocking(False)
    while True:
        client, _ = await loop.sock_accept(listener)
        task = asyncio.create_task(store.serve(client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Store(float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))))
