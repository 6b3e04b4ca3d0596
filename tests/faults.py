"""A proxy on loopback that stands before a real server and does to chosen requests what networks and stores do."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.servers import free_ports

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
"""Headers that belong to one connection and are made anew for the next."""


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Exchange(BaseHTTPRequestHandler):
    """One request of a client. A fault decides what becomes of it."""

    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    sent_body: bytes

    def forward(self) -> Reply:
        """What the real server says. The Host header stays the client's, since signatures cover it."""
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            if self.sent_body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(self.sent_body)))
            connection.endheaders(self.sent_body)
            reply = connection.getresponse()
            body = reply.read()
            length = reply.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            headers = [pair for pair in reply.getheaders() if pair[0].lower() not in _HOP]
            return Reply(reply.status, [*headers, ("Content-Length", length)], body)
        finally:
            connection.close()

    def answer(self, reply: Reply, *, upto: int | None = None) -> None:
        """Send a reply, or its headers and the first `upto` bytes of its body."""
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[:upto])
        self.wfile.flush()
        self.proxy.replies.append((self.command, self.path, len(reply.body[:upto])))

    def close(self, *, reset: bool) -> None:
        """End the connection, politely or not."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_WR)

    def _handle(self) -> None:
        self.sent_body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.fault_for(self.command, self.path)
        if fault is None:
            self.answer(self.forward())
        else:
            fault(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def log_message(self, format: str, *args: object) -> None:
        pass


Fault = Callable[[Exchange], None]


def refused(status: int, code: str, message: str = "of the fault proxy") -> Fault:
    """The store answers with an error and does nothing."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()

    def fault(exchange: Exchange) -> None:
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        exchange.answer(Reply(status, headers, b"" if exchange.command == "HEAD" else body))

    return fault


def cut(after: int, *, reset: bool) -> Fault:
    """The reply promises its whole length and ends after `after` bytes: reset, or closed as if that were all."""

    def fault(exchange: Exchange) -> None:
        exchange.answer(exchange.forward(), upto=after)
        if reset:
            time.sleep(0.05)  # what was sent would be thrown away with the connection
        exchange.close(reset=reset)

    return fault


def shortened(by: int) -> Fault:
    """The reply lacks its last bytes and says so in its length, as if that had been asked for."""

    def fault(exchange: Exchange) -> None:
        reply = exchange.forward()
        reply.body = reply.body[:-by]
        reply.headers = [(name, str(len(reply.body)) if name == "Content-Length" else value) for name, value in reply.headers]
        exchange.answer(reply)

    return fault


def stalled(after: int | None = None) -> Fault:
    """The reply stops after `after` bytes of its body, or never begins; the connection stays open until the proxy ends."""

    def fault(exchange: Exchange) -> None:
        if after is not None:
            exchange.answer(exchange.forward(), upto=after)
        exchange.proxy.ended.wait()
        exchange.close(reset=True)

    return fault


def lost(*, forwarded: bool) -> Fault:
    """The connection is reset without a reply; the real server has done what was asked, or never heard of it."""

    def fault(exchange: Exchange) -> None:
        if forwarded:
            exchange.forward()
        exchange.close(reset=True)

    return fault


def flipped_upload(exchange: Exchange) -> None:
    """One bit of what the client sends is another one when it arrives."""
    middle = len(exchange.sent_body) // 2
    exchange.sent_body = exchange.sent_body[:middle] + bytes([exchange.sent_body[middle] ^ 1]) + exchange.sent_body[middle + 1 :]
    exchange.answer(exchange.forward())


@dataclass
class _Rule:
    fault: Fault
    method: str
    path: re.Pattern[str]
    skip: int
    times: float
    share: float


@dataclass
class FaultProxy:
    """Forwards every request to `upstream` (host:port) unless a rule says otherwise, and remembers what it was asked."""

    upstream: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path with query of every request, in the order of arrival."""
    replies: list[tuple[str, str, int]] = field(default_factory=list)
    """The same of every reply, and the bytes of its body."""
    faults: int = 0
    """Requests that a rule has met."""
    ended: threading.Event = field(default_factory=threading.Event)
    _rules: list[_Rule] = field(default_factory=list)
    _clients: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _chance: random.Random = field(default_factory=lambda: random.Random(0))
    _up: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        [port] = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)  # a port asked for by number outlives shutdown()
        self._up.set()
        self._handler = type("Handler", (Exchange,), {"proxy": self})

    def rule(self, fault: Fault, *, method: str = "", path: str = "", skip: int = 0, times: float = 1, share: float = 1.0) -> None:
        """Do `fault` to requests of `method` whose path with query contains the regular expression `path`: after `skip`
        of them, `times` times (math.inf: always), to a random `share` of them."""
        self._rules.append(_Rule(fault, method, re.compile(path), skip, times, share))

    def clear(self) -> None:
        """Forget all rules and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self.replies.clear()
            self.faults = 0

    def count(self, method: str, path: str = "") -> int:
        """How many such requests came."""
        return sum(asked == method and bool(re.search(path, where)) for asked, where in list(self.requests))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for rule in self._rules:
                if rule.method not in ("", method) or not rule.path.search(path) or rule.times <= 0:
                    continue
                if rule.skip:
                    rule.skip -= 1
                elif self._chance.random() < rule.share:
                    rule.times -= 1
                    self.faults += 1
                    return rule.fault
            return None

    def vanish(self, seconds: float) -> None:
        """End every connection now and refuse new ones for `seconds`. Returns at once."""
        self._up.clear()
        self._listener.shutdown(socket.SHUT_RDWR)  # the port stays ours, but nobody listens
        self._drop()

        def back() -> None:
            self.ended.wait(seconds)
            self._listener.listen(128)
            self._up.set()

        threading.Thread(target=back, daemon=True).start()

    def _drop(self) -> None:
        with self._lock:
            for client in self._clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        while not self.ended.is_set():
            self._up.wait()
            with suppress(OSError):
                client, address = self._listener.accept()
                threading.Thread(target=self._serve_one, args=(client, address), daemon=True).start()

    def _serve_one(self, client: socket.socket, address: object) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._clients.add(client)
        with client, suppress(OSError, http.client.HTTPException):
            self._handler(client, address, self)
        with self._lock:
            self._clients.discard(client)

    def close(self) -> None:
        self.ended.set()
        self._up.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._drop()
        self._listener.close()


@contextmanager
def fault_proxy(url: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `url`, without rules."""
    proxy = FaultProxy(urlsplit(url).netloc)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(10)
