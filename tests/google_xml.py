"""A server on loopback that speaks the XML API of Google Cloud Storage as Google documents it, which is what obstore speaks.

fake-gcs-server knows only the JSON API. What is here follows https://cloud.google.com/storage/docs/xml-api/overview and the pages below it.
These are all the requests that obstore 0.12 sends, recorded here and held by `test_obstore_sends_what_is_written_down`; every one has
`Authorization: Bearer TOKEN` unless it is anonymous, and the object's whole name as one segment, percent-encoded (`/` as `%2F`):

| request | headers that matter | what we use it for |
| --- | --- | --- |
| `GET /BUCKET?list-type=2&prefix=P/` | | listing; then with `continuation-token`, and `max-keys` where a page is bounded |
| `HEAD /BUCKET/NAME` | | identity: Content-Length, ETag, Last-Modified and x-goog-generation of the reply |
| `GET /BUCKET/NAME` | Range, If-Match | reading; a small document without either |
| `PUT /BUCKET/NAME` | x-goog-if-generation-match: 0 | writing; the header where the name must be free |
| `POST /BUCKET/NAME?uploads=` | | an upload in parts begins |
| `PUT /BUCKET/NAME?partNumber=N&uploadId=ID` | | a part; its ETag goes into the completion |
| `POST /BUCKET/NAME?uploadId=ID` | | its completion |
| `DELETE /BUCKET/NAME?uploadId=ID` | | it is aborted |
| `DELETE /BUCKET/NAME` | | an object is deleted |

`clean` sends two of its own: `GET /BUCKET?uploads=&prefix=P/` and the abort.

Tokens are those that a metadata service and a token endpoint on the same port gave out (for a signed assertion, or in exchange for
the token of another side), and JWTs that a service account has signed for itself: their signatures are checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

PART_BYTES = 5 << 20
"""Least size of every part but the last."""
PAGE = 1000


@dataclass(frozen=True)
class Stored:
    data: bytes
    etag: str
    """With its quotes: the MD5 of what came in one request, and something else where parts were put together."""
    generation: int
    moment: float


@dataclass
class Upload:
    bucket: str
    name: str
    begun: float
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Refusal(Exception):
    status: int
    code: str
    message: str = "of the test server"


@dataclass
class GoogleServer:
    endpoint: str = ""
    buckets: dict[str, dict[str, Stored]] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    """Buckets that anybody may read."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, headers by lower-case name."""
    page: int = PAGE
    lock: threading.RLock = field(default_factory=threading.RLock)
    _generation: int = 1_700_000_000_000_000
    _key: Any = None

    def make_bucket(self, *, public: bool = False) -> str:
        name = f"bucket-{secrets.token_hex(4)}"
        self.buckets[name] = {}
        if public:
            self.public.add(name)
        return name

    @property
    def environ(self) -> dict[str, str]:
        """What a machine of Google's has: a metadata service, whose address is set since it is another one here."""
        host = urlsplit(self.endpoint).netloc
        return {"GOOGLE_BASE_URL": self.endpoint, "GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}

    def service_account(self, folder: Path) -> Path:
        """The file with a service account's key, as the console gives it out."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        if self._key is None:
            self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        content = {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": self._key.private_bytes(*kinds).decode(),
            "client_email": "merger@p.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{self.endpoint}/token",
        }
        path = folder / "service-account.json"
        path.write_text(json.dumps(content))
        return path

    def federation(self, folder: Path) -> Path:
        """The file of a workload outside Google that exchanges a token of its own, as CI systems have it."""
        subject = folder / "subject-token"
        subject.write_text("a token of the other side")
        content = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{self.endpoint}/sts",
            "credential_source": {"file": str(subject)},
        }
        path = folder / "federation.json"
        path.write_text(json.dumps(content))
        return path

    def give_token(self) -> dict[str, object]:
        token = f"ya29.{secrets.token_hex(16)}"
        self.tokens.add(token)
        return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}

    def store(self, bucket: str, name: str, data: bytes, etag: str = "") -> Stored:
        with self.lock:
            self._generation += 1
            stored = Stored(data, etag or f'"{hashlib.md5(data).hexdigest()}"', self._generation, time.time())
            self.buckets[bucket][name] = stored
            return stored

    def knows(self, authorization: str) -> bool:
        token = authorization.removeprefix("Bearer ")
        return token in self.tokens or self._signed(token)

    def _signed(self, token: str) -> bool:
        """Whether this is a JWT with the key that was given out, for storage, and of this hour."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        if self._key is None or token.count(".") != 2:
            return False
        message, _, signature = token.rpartition(".")
        try:
            self._key.public_key().verify(_unpadded(signature), message.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        claims = json.loads(_unpadded(message.partition(".")[2]))
        scoped = claims.get("scope", "").startswith("https://www.googleapis.com/auth/") or claims.get("aud", "").endswith("/token")
        return scoped and claims["iat"] - 60 <= time.time() < claims["exp"]


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class _Xml(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: GoogleServer

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        path = urlsplit(self.path).path
        self.server_of.requests.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        try:
            if path.startswith("/computeMetadata/") or path in ("/token", "/sts") or path.endswith("/oauth2/v2.0/token"):
                self._token(path)
            else:
                bucket, _, name = path.lstrip("/").partition("/")
                self._allowed(unquote(bucket))
                with self.server_of.lock:
                    if name:
                        self._object(unquote(bucket), unquote(name))
                    else:
                        self._bucket(unquote(bucket))
        except Refusal as refusal:
            text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>"
            self._reply(refusal.status, text.encode(), {"Content-Type": "application/xml; charset=UTF-8"})

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _token(self, path: str) -> None:
        if path.startswith("/computeMetadata/"):
            if self.headers.get("Metadata-Flavor") != "Google":
                raise Refusal(403, "Forbidden")
            known = path.endswith("/token")
            reply = self.server_of.give_token() if known else {"email": "default", "scopes": [], "aliases": ["default"]}
        else:
            form = dict(parse_qsl(self.body.decode()))
            if path.endswith("/oauth2/v2.0/token"):  # that of Microsoft, who knows nobody here
                raise Refusal(401, "invalid_client")
            if path == "/token" and not self.server_of._signed(form.get("assertion", "")):
                raise Refusal(400, "invalid_grant")
            if path == "/sts" and form.get("subject_token") != "a token of the other side":
                raise Refusal(400, "invalid_grant")
            reply = self.server_of.give_token() | {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
        self._reply(200, json.dumps(reply).encode(), {"Content-Type": "application/json", "Metadata-Flavor": "Google"})

    def _allowed(self, bucket: str) -> None:
        authorization = self.headers.get("Authorization")
        if authorization:
            if not self.server_of.knows(authorization):
                raise Refusal(401, "AuthenticationRequired", "Authentication required.")
        elif bucket in self.server_of.buckets and not (bucket in self.server_of.public and self.command in ("GET", "HEAD")):
            raise Refusal(403, "AccessDenied", "Access denied.")
        if bucket not in self.server_of.buckets:
            raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist.")

    def _bucket(self, bucket: str) -> None:
        if self.command != "GET":
            raise Refusal(405, "MethodNotAllowed")
        prefix = self.query.get("prefix", "")
        if "uploads" in self.query:
            self._open_uploads(bucket, prefix)
            return
        if self.query.get("list-type") != "2":
            raise Refusal(400, "InvalidArgument", "only version 2 of listing is here")
        after = self.query.get("continuation-token", self.query.get("start-after", ""))
        page = min(int(self.query.get("max-keys", PAGE)), self.server_of.page)
        objects = self.server_of.buckets[bucket]
        names = [name for name in sorted(objects) if name.startswith(prefix) and name > after]
        lines = [f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(names[:page])}</KeyCount>"]
        lines.append(f"<IsTruncated>{str(len(names) > page).lower()}</IsTruncated>")
        if len(names) > page:
            lines.append(f"<NextContinuationToken>{escape(names[page - 1])}</NextContinuationToken>")
        for name in names[:page]:
            found = objects[name]
            lines.append(
                f"<Contents><Key>{escape(name)}</Key><Generation>{found.generation}</Generation><MetaGeneration>1</MetaGeneration>"
                f"<LastModified>{_iso(found.moment)}</LastModified><ETag>{escape(found.etag)}</ETag><Size>{len(found.data)}</Size></Contents>"
            )
        self._xml("ListBucketResult", "".join(lines))

    def _open_uploads(self, bucket: str, prefix: str) -> None:
        markers = (self.query.get("key-marker", ""), self.query.get("upload-id-marker", ""))
        found = sorted((each.name, key, each.begun) for key, each in self.server_of.uploads.items() if each.bucket == bucket)
        found = [each for each in found if each[0].startswith(prefix) and each[:2] > markers]
        page = found[: self.server_of.page]
        lines = [
            f"<Bucket>{bucket}</Bucket><Prefix>{escape(prefix)}</Prefix><IsTruncated>{str(len(found) > len(page)).lower()}</IsTruncated>"
        ]
        if len(found) > len(page):
            lines.append(f"<NextKeyMarker>{escape(page[-1][0])}</NextKeyMarker><NextUploadIdMarker>{page[-1][1]}</NextUploadIdMarker>")
        for name, key, begun in page:
            lines.append(f"<Upload><Key>{escape(name)}</Key><UploadId>{key}</UploadId><Initiated>{_iso(begun)}</Initiated></Upload>")
        self._xml("ListMultipartUploadsResult", "".join(lines))

    def _object(self, bucket: str, name: str) -> None:
        if self.command == "POST":
            return self._begin(bucket, name) if "uploads" in self.query else self._complete(bucket, name)
        if "uploadId" in self.query:
            upload = self._upload(bucket, name)
            if self.command == "DELETE":
                del self.server_of.uploads[self.query["uploadId"]]
                return self._reply(204)
            upload.parts[int(self.query["partNumber"])] = self.body
            return self._reply(200, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
        found = self.server_of.buckets[bucket].get(name)
        if self.command == "PUT":
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (found.generation if found else 0):
                raise Refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
            return self._reply(200, headers=_headers(self.server_of.store(bucket, name, self.body)))
        if found is None:
            raise Refusal(404, "NoSuchKey", "The specified key does not exist.")
        if self.command == "DELETE":
            del self.server_of.buckets[bucket][name]
            return self._reply(204)
        return self._read(found)

    def _read(self, found: Stored) -> None:
        tags = [each.strip() for each in self.headers.get("If-Match", found.etag).split(",")]
        if found.etag not in tags and "*" not in tags:
            raise Refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        headers, size = _headers(found), len(found.data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._reply(200, found.data, headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or size) + 1, size)
        if start >= size:
            raise Refusal(416, "InvalidRange", "The requested range cannot be satisfied.")
        return self._reply(206, found.data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _begin(self, bucket: str, name: str) -> None:
        key = secrets.token_hex(12)
        self.server_of.uploads[key] = Upload(bucket, name, time.time())
        self._xml("InitiateMultipartUploadResult", f"<Bucket>{bucket}</Bucket><Key>{escape(name)}</Key><UploadId>{key}</UploadId>")

    def _upload(self, bucket: str, name: str) -> Upload:
        upload = self.server_of.uploads.get(self.query.get("uploadId", ""))
        if upload is None or (upload.bucket, upload.name) != (bucket, name):
            raise Refusal(404, "NoSuchUpload", "The requested upload was not found.")
        return upload

    def _complete(self, bucket: str, name: str) -> None:
        upload = self._upload(bucket, name)
        listed = [(int(part.findtext("{*}PartNumber", "")), part.findtext("{*}ETag", "")) for part in ElementTree.fromstring(self.body)]
        data, tags = [], []
        for position, (number, tag) in enumerate(listed):
            part = upload.parts.get(number)
            if part is None or tag != f'"{hashlib.md5(part).hexdigest()}"':
                raise Refusal(400, "InvalidPart")
            if position and number <= listed[position - 1][0]:
                raise Refusal(400, "InvalidPartOrder")
            if position + 1 < len(listed) and len(part) < PART_BYTES:
                raise Refusal(400, "EntityTooSmall")
            data.append(part)
            tags.append(hashlib.md5(part).digest())
        if not data:
            raise Refusal(400, "MalformedCompleteMultipartUploadRequest")
        del self.server_of.uploads[self.query["uploadId"]]
        stored = self.server_of.store(bucket, name, b"".join(data), f'"{hashlib.md5(b"".join(tags)).hexdigest()}-{len(data)}"')
        text = f"<Bucket>{bucket}</Bucket><Key>{escape(name)}</Key><ETag>{escape(stored.etag)}</ETag>"
        self._xml("CompleteMultipartUploadResult", text, {"x-goog-generation": str(stored.generation)})

    def _xml(self, kind: str, inside: str, headers: dict[str, str] | None = None) -> None:
        text = f"<?xml version='1.0' encoding='UTF-8'?><{kind} xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>{inside}</{kind}>"
        self._reply(200, text.encode(), {"Content-Type": "application/xml; charset=UTF-8", **(headers or {})})

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _headers(found: Stored) -> dict[str, str]:
    return {
        "ETag": found.etag,
        "x-goog-generation": str(found.generation),
        "x-goog-metageneration": "1",
        "x-goog-stored-content-length": str(len(found.data)),
        "x-goog-hash": f"md5={base64.b64encode(hashlib.md5(found.data).digest()).decode()}",
        "Last-Modified": formatdate(found.moment, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }


def _iso(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


@contextmanager
def google_server() -> Iterator[GoogleServer]:
    """The XML API, with a metadata service and a token endpoint beside it."""
    state = GoogleServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Xml,), {"server_of": state, "disable_nagle_algorithm": True}))
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
