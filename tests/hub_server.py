"""A Hub on loopback, for the real client: repositories with commits, branches and large files that lie on another host.

Written after what huggingface_hub 2.4 asks for and what the Hub answers it. `Hub.repositories` is its whole state, which tests change
as a push of somebody else would; `Hub.requests` is what it was asked.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_owner"
LARGE = 10_000
"""Bytes from which a file is kept by LFS, as weights always are."""


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    disabled: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, str, str]] = field(default_factory=list)
    """Branch, commit and message of every commit that was made, in order."""
    parents: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """By sha256: uploaded, referred to by a commit or not."""

    def push(self, files: dict[str, bytes | None], *, branch: str = "main", message: str = "a push") -> str:
        """Commit files, None to delete one, on top of a branch."""
        tree = dict(self.commits.get(self.branches.get(branch, ""), {}))
        for path, data in files.items():
            if data is None:
                tree.pop(path, None)
            else:
                tree[path] = data
        commit = secrets.token_hex(20)
        self.parents[commit] = self.branches.get(branch, "")
        self.commits[commit], self.branches[branch] = tree, commit
        self.history.append((branch, commit, message))
        return commit

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


def is_large(path: str, data: bytes) -> bool:
    return path.endswith(".safetensors") or len(data) >= LARGE


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, object]:
    if not is_large(path, data):
        return {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    sha = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
    large = {"oid": sha, "size": len(data), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(data), "oid": git_hash(pointer), "lfs": large}


class Hub:
    page_size = 1000
    """Entries of a listing on one page."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.before: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda method, path: None
        """Asked before each request, of the CDN's too; what it returns is the answer."""
        self.expired: set[str] = set()
        """Signatures of locations that the CDN no longer takes."""
        self.lock = threading.RLock()
        self._servers = [self._serve(_HubHandler), self._serve(_CdnHandler)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _serve(self, kind: type[_Handler]) -> http.server.ThreadingHTTPServer:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kind,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, repository: str, folder: Path, **settings: bool) -> Repository:
        """A repository with the files of a folder."""
        made = self.repositories.setdefault(repository, Repository(**settings))
        files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        made.push(dict(files))
        return made

    def asked(self, pattern: str) -> list[str]:
        return [f"{method} {path}" for method, path, _ in self.requests if re.search(pattern, f"{method} {path}")]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def document(self, value: object, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        given = {"X_Error_Code": code, "X_Error_Message": message}
        self.document({"error": message or code}, status, **{name: text for name, text in given.items() if text})

    def ranged(self, data: bytes, **headers: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self.answer(200, data, **headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self.answer(416, Content_Range=f"bytes */{len(data)}")
        return self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
            given = self.hub.before(self.command, self.path)
        if given is not None:
            return self.answer(given[0], **{name.replace("-", "_"): value for name, value in given[1].items()})
        return self.respond(urlsplit(self.path).path, parse_qs(urlsplit(self.path).query), body)

    def respond(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any


class _CdnHandler(_Handler):
    def respond(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if self.headers.get("Authorization"):  # as S3 does of a signed URL
            return self.refuse(400, message="Only one auth mechanism allowed")
        if query.get("signature", [""])[0] in self.hub.expired or "signature" not in query:
            return self.refuse(403, message="Request has expired")
        _, owner, name, sha = path.split("/")
        repository = self.hub.repositories[f"{owner}/{name}"]
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != sha:
                return self.refuse(400, message="XAmzContentSHA256Mismatch")
            repository.large[sha] = body
            return self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        if sha not in repository.large:
            return self.refuse(404)
        return self.ranged(repository.large[sha], ETag=f'"{secrets.token_hex(16)}"', Accept_Ranges="bytes")


class _HubHandler(_Handler):
    def respond(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.headers.get("Authorization") and not owner and "other" not in self.headers["Authorization"]:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":  # of a card
            return self.document({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body), owner)
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git/info/lfs/objects/(batch)|/(.+))", path)
        if not found:
            return self.refuse(404)
        repository = self.hub.repositories.get(found[1])
        if repository is None or (repository.private and not owner):
            return self.refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        if repository.disabled:
            return self.refuse(403, message="Access to this resource is disabled.")
        verb, _, rest = (found[2] or found[3]).partition("/")
        if repository.gated and not owner and verb == "resolve":  # what is in it may be listed
            return self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo", "Access to this model is restricted")
        if self.command in ("POST", "DELETE") and verb != "paths-info" and not owner:
            return self.refuse(403, message="you have no write access")
        revision, _, rest = rest.partition("/")
        handler = getattr(self, f"on_{verb.replace('-', '_')}", None)
        if handler is None:
            return self.refuse(404)
        if verb in ("batch", "branch"):
            return handler(found[1], repository, unquote(revision), body)
        commit = repository.find(unquote(revision))
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        return handler(found[1], repository, commit, unquote(rest), body or b"", query)

    def on_revision(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        self.document({"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": [], "tags": []})

    def on_tree(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        tree, folder = repository.commits[commit], f"{path}/" if path else ""
        entries = [entry(each, data) for each, data in sorted(tree.items()) if each.startswith(folder)]
        if path and not entries:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist")
        folders = sorted({each["path"].rpartition("/")[0] for each in entries if "/" in str(each["path"])})  # type: ignore[union-attr]
        entries = [{"type": "directory", "path": each, "oid": "0" * 40, "size": 0} for each in folders] + entries
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.hub.page_size
        following = f'<https://huggingface.co{urlsplit(self.path).path}?recursive=true&cursor={stop}>; rel="next"'
        return self.document(entries[start:stop], **({"Link": following} if stop < len(entries) else {}))

    def on_paths_info(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        tree = repository.commits[commit]
        self.document([entry(each, tree[each]) for each in parse_qs(body.decode()).get("paths", []) if each in tree])

    def on_resolve(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        data = repository.commits[commit].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        about = {"X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if not is_large(path, data):
            return self.ranged(data, ETag=f'"{git_hash(data)}"', **about)
        sha = hashlib.sha256(data).hexdigest()
        repository.large[sha] = data
        location = f"{self.hub.cdn}/{name}/{sha}?signature={secrets.token_hex(8)}"
        return self.answer(302, Location=location, X_Linked_Etag=f'"{sha}"', X_Linked_Size=str(len(data)), **about)

    # --- what pushes ask for

    def on_commits(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        made = []
        while commit:
            made.append({"id": commit, "title": "", "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"})
            commit = repository.parents[commit]
        self.document(made)

    def create(self, asked: dict[str, object], owner: bool) -> None:
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if not owner:
            return self.refuse(401 if not self.headers.get("Authorization") else 403, message="you may not create this")
        if name in self.hub.repositories:
            return self.refuse(409, message="You already created this model repo")
        made = self.hub.repositories[name] = Repository(private=bool(asked.get("private")) or asked.get("visibility") == "private")
        made.push({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, message="initial commit")
        return self.document({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def on_preupload(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        files = json.loads(body)["files"]
        modes = [(each["path"], "lfs" if is_large(each["path"], bytes(each["size"])) else "regular") for each in files]
        self.document({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def on_batch(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.cdn}/{name}/{each['oid']}?signature={secrets.token_hex(8)}"}
            objects.append({**each, **({} if each["oid"] in repository.large else {"actions": {"upload": upload}})})
        self.document({"transfer": "basic", "objects": objects})

    def on_branch(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        with self.hub.lock:
            if self.command == "DELETE":
                return self.document({}, 200 if repository.branches.pop(branch, None) else 404)
            if branch in repository.branches:
                return self.refuse(409, message=f"Reference already exists: {branch}")
            start = repository.find(json.loads(body or b"{}").get("startingPoint") or "main")
            if start is None:
                return self.refuse(404, "RevisionNotFound")
            repository.branches[branch] = start
        return self.document({})

    def on_commit(self, name: str, repository: Repository, commit: str, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        branch = unquote(urlsplit(self.path).path.rpartition("/")[2])
        lines = [json.loads(line) for line in body.splitlines()]
        files: dict[str, bytes | None] = {}
        with self.hub.lock:
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, repository.branches.get(branch)):
                return self.refuse(412, message="A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in repository.large:
                        return self.refuse(400, message=f"LFS pointer to {value['oid']}, which was not uploaded")
                    files[value["path"]] = repository.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    files[value["path"]] = None
            made = repository.push(files, branch=branch, message=header["summary"])
        return self.document(
            {"success": True, "commitOid": made, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{made}", "hookOutput": ""}
        )


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()
