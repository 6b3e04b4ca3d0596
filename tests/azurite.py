"""Azurite, Microsoft's emulator of Azure's blob storage, on loopback: it checks signatures, SAS and conditional requests.

`make test` puts it into `.venv/azurite` with npm; a machine without it skips what needs it, except where `.ci/run` says it must be there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.servers import free_ports, running

VERSION = "2021-08-06"
"""Of the service, as the requests made here sign it."""


@dataclass(frozen=True)
class AzureServer:
    endpoint: str
    """With the account as its path, as emulators have it."""
    account: str = "paramdelta"
    key: str = base64.b64encode(b"a key of nobody, 64 bytes as in Azure: 0123456789abcdef012345678").decode()

    @property
    def connection_string(self) -> str:
        return f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};BlobEndpoint={self.endpoint};"

    @property
    def environ(self) -> dict[str, str]:
        """What a user would set to work with this server."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string}

    def make_container(self, *, public: bool = False) -> str:
        name = f"container-{secrets.token_hex(4)}"
        self.ask("PUT", name, {"restype": "container"}, {"x-ms-blob-public-access": "container"} if public else {})
        return name

    def uncommitted(self, container: str) -> list[str]:
        """Names of blobs that have blocks and are none yet."""
        listing = self.ask("GET", container, {"restype": "container", "comp": "list", "include": "uncommittedblobs"})
        blobs = re.findall(r"<Blob>.*?</Blob>", listing.decode(), re.DOTALL)
        return [re.search("<Name>(.*?)</Name>", blob)[1] for blob in blobs if "<Content-Length>0<" in blob]  # type: ignore[index]

    def ask(self, method: str, path: str, query: dict[str, str], headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
        """A request signed with the account's key; raises HTTPError."""
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        ours = {"x-ms-date": date, "x-ms-version": VERSION, **(headers or {})}
        length = str(len(body)) if body else ""
        lines = [method, "", "", length, *[""] * 8]
        lines += [f"{name}:{ours[name]}" for name in sorted(ours)]
        lines += [f"/{self.account}{urlsplit(self.endpoint).path}/{path}", *(f"{name}:{query[name]}" for name in sorted(query))]
        signed = {"Authorization": f"SharedKey {self.account}:{self._signature(lines)}", "Content-Type": ""}
        request = urllib.request.Request(f"{self.endpoint}/{path}?{urlencode(query)}", body or None, {**ours, **signed}, method=method)
        with urllib.request.urlopen(request, timeout=10) as reply:
            return bytes(reply.read())

    def sas(self, container: str, permissions: str = "racwdl", *, hours: float = 1.0) -> str:
        """A shared access signature for a container, as `az storage container generate-sas` prints it.

        One of the whole account would do as well, but azurite answers it with status 500 when it deletes: obstore deletes by batches.
        """
        start, end = (datetime.now(UTC) + timedelta(hours=each) for each in (min(0.0, hours) - 0.5, hours))
        values = {"sp": permissions, "st": f"{start:%Y-%m-%dT%H:%M:%SZ}", "se": f"{end:%Y-%m-%dT%H:%M:%SZ}", "sv": VERSION, "sr": "c"}
        resource = f"/blob/{self.account}/{container}"
        lines = [values["sp"], values["st"], values["se"], resource, "", "", "", values["sv"], values["sr"], *[""] * 7]
        return urlencode({**values, "sig": self._signature(lines)})

    def _signature(self, lines: list[str]) -> str:
        text = "\n".join(lines)
        return base64.b64encode(hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()).decode()


def _command() -> list[str] | None:
    """How to start it, where it is installed."""
    beside = Path(sys.executable).with_name("node")
    node = shutil.which("node") or (str(beside) if beside.exists() else None)
    script = Path(sys.prefix, "azurite/node_modules/azurite/dist/src/blob/main.js")
    return [node, str(script)] if node and script.exists() else None


@contextmanager
def azure_server() -> Iterator[AzureServer]:
    command = _command()
    if command is None:
        reason = "azurite is not installed: `make test` installs it with npm"
        if "azurite" in os.environ.get("TEST_SERVERS_REQUIRED", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    [port] = free_ports(1)
    server = AzureServer(f"http://127.0.0.1:{port}/{AzureServer.account}")
    with tempfile.TemporaryDirectory(prefix="azurite-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry", "--silent"]
        with running(
            ["env", f"AZURITE_ACCOUNTS={server.account}:{server.key}", *command], log, lambda: b"successfully" in log.read_bytes()
        ):
            yield server
