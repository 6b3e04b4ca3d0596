"""Networks as companies have them, on loopback: a server behind TLS with a certificate of its own authority, and a proxy."""

from __future__ import annotations

import base64
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import trustme

Serve = Callable[[socket.socket], None]


@contextmanager
def _listening(serve: Serve) -> Iterator[int]:
    """A port on loopback, each connection to which is served by a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def one(client: socket.socket) -> None:
        with client, suppress(OSError):
            serve(client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _joined(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until either side ends."""

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=pass_on, args=(other, one), daemon=True)
    back.start()
    pass_on(one, other)
    back.join()


@dataclass(frozen=True)
class Authority:
    """Who signs certificates that no public authority vouches for."""

    ca: trustme.CA
    pem: Path
    """Its own certificate."""

    @classmethod
    def at(cls, folder: Path) -> Authority:
        ca, pem = trustme.CA(organization_name="a company"), folder / "company-ca.pem"
        ca.cert_pem.write_to_path(str(pem))
        return cls(ca, pem)

    def context(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1) if expired else None
        begins = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=ends, not_before=begins).configure_cert(context)
        return context


@contextmanager
def tls_before(url: str, context: ssl.SSLContext) -> Iterator[str]:
    """The https:// URL, on localhost, of what speaks TLS and passes the bytes on to the server at `url`."""
    host, _, port = urlsplit(url).netloc.partition(":")

    def serve(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as safe, socket.create_connection((host, int(port))) as server:
            _joined(safe, server)

    with _listening(serve) as mine:
        yield f"https://localhost:{mine}"


@dataclass
class Proxy:
    """An HTTP proxy that tunnels (CONNECT) and forwards, and asks for a password where it has one."""

    port: int = 0
    password: str | None = None
    """Of the user `clerk`."""
    asked: list[str] = field(default_factory=list)
    """First words of every request: CONNECT host:port, or a method and the scheme and host it is for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url_with_password(self) -> str:
        return f"http://clerk:{self.password}@127.0.0.1:{self.port}"

    def serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(1 << 16)):
                return
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        first, *headers = head.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        named = dict(line.split(": ", 1) for line in headers)
        login = next((value for name, value in named.items() if name.lower() == "proxy-authorization"), "")
        if self.password and login != "Basic " + base64.b64encode(f"clerk:{self.password}".encode()).decode():
            self.asked.append(f"refused {method}")
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            return
        if method == "CONNECT":
            self.asked.append(f"CONNECT {target}")
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                server.sendall(rest)
                _joined(client, server)
            return
        parts = urlsplit(target)
        self.asked.append(f"{method} {parts.scheme}://{parts.netloc}")
        kept = [line for line in headers if not line.lower().startswith(("proxy-", "connection:"))]
        path = target[len(f"{parts.scheme}://{parts.netloc}") :] or "/"
        forwarded = "\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""]).encode("latin-1")
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as server:
            server.sendall(forwarded + rest)
            _joined(client, server)


@contextmanager
def proxy(password: str | None = None) -> Iterator[Proxy]:
    made = Proxy(password=password)
    with _listening(made.serve) as made.port:
        yield made
