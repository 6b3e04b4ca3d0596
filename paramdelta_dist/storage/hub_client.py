"""Requests to the Hugging Face Hub, by the client of its own library: who asks, and what each refusal means.

The library's client brings the token, the endpoint, the proxies and the connections that are kept. Tries again are ours alone
(`retry.py`), and so is following a redirect: the token goes to the Hub and to nobody else.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from paramdelta_dist import stopping
from paramdelta_dist.errors import (
    CredentialsError,
    InputChanged,
    InputError,
    NotFound,
    ParamDeltaError,
    StorageError,
    TransientStorageError,
    UsageError,
)
from paramdelta_dist.storage import network, trust
from paramdelta_dist.storage.hub_places import Place
from paramdelta_dist.storage.settings import StoreSettings
from paramdelta_dist.storage.store import Identity

_REDIRECTS = 5
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "ssl", "socket")
"""Libraries whose own exceptions are about a connection."""


class HubClient:
    """Requests about one place on the Hub. Safe to use from many threads."""

    def __init__(self, place: Place, settings: StoreSettings) -> None:
        self.place = place
        self.endpoint = (settings.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        times = settings.retries
        self._times = (times.connect, times.stall, times.stall, times.stall)
        """Seconds to connect, to read, to write and to wait for one of the client's connections."""
        self._token: bool | None = False if settings.anonymous else None
        if path := trust.bundle():
            os.environ["SSL_CERT_FILE"] = str(path)  # which the library's client reads when it is made

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.place.repository}"

    def api(self, path: str) -> str:
        return f"{self.endpoint}/api/models/{self.place.repository}/{path}"

    def resolve(self, commit: str, path: str) -> str:
        return f"{self.page}/resolve/{quote(commit, safe='')}/{quote(path)}"

    def signed_headers(self) -> dict[str, str]:
        return dict(build_hf_headers(token=self._token, library_name="paramdelta-dist"))

    @property
    def is_logged_in(self) -> bool:
        return "authorization" in self.signed_headers()

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit is now."""
        found, _ = self.asked("GET", self.api(f"revision/{quote(revision, safe='')}"))
        return str(found["sha"])

    def tree(self, commit: str, folder: str = "") -> dict[str, Identity]:
        """The files of a commit below a folder, by their paths in the repository. Empty where there is no such folder."""
        page: str | None = self.api(f"tree/{commit}{'/' + quote(folder, safe='') if folder else ''}?recursive=true")
        found: dict[str, Identity] = {}
        while page:
            try:
                entries, page = self.asked("GET", page)
            except errors.HfHubHTTPError as error:
                if folder and error.response.headers.get("X-Error-Code") == "EntryNotFound":
                    return {}
                raise
            found |= {entry["path"]: _identity(entry, commit) for entry in entries if entry["type"] == "file"}
            stopping.alive()
        return found

    def file(self, commit: str, path: str) -> Identity | None:
        """One file of a commit; None where there is none."""
        found, _ = self.asked("POST", self.api(f"paths-info/{commit}"), data={"paths": [path], "expand": False})
        return next((_identity(each, commit) for each in found if each["path"] == path and each["type"] == "file"), None)

    @contextmanager
    def answer(self, method: str, url: str, *, signed: bool = True, **arguments: Any) -> Iterator[Any]:
        """The answer to a request, its body unread. Redirects are followed on the Hub itself; one that leads elsewhere is the answer.

        Raises what the library does; `meaning` says what that means.
        """
        headers = {"Accept-Encoding": "identity", **(self.signed_headers() if signed else {}), **arguments.pop("headers", {})}
        for _ in range(_REDIRECTS):
            with get_session().stream(method, url, headers=headers, timeout=self._times, follow_redirects=False, **arguments) as response:
                target = elsewhere(response, url)
                if target:
                    response.read()  # else the connection could not be used again
                if not (signed and target and _origin(target) == _origin(self.endpoint)):
                    if response.status_code >= 400:
                        response.read()
                        hf_raise_for_status(response)
                    yield response
                    return
            url = target
        raise StorageError(f"{url}: the Hub redirects more than {_REDIRECTS} times")

    def asked(self, method: str, url: str, **arguments: Any) -> tuple[Any, str | None]:
        """The document that answers a request, and the URL of its next page."""
        with self.answer(method, url, **arguments) as response:
            if response.status_code >= 300:
                raise StorageError(f"{self.page}: the Hub answers with a redirect to {urlsplit(elsewhere(response, url)).netloc}")
            text = response.read()
            following = response.links.get("next", {}).get("url")
        if following:  # by whichever name the Hub calls itself: a mirror's pages may bear the first one's
            parts, here = urlsplit(urljoin(url, following)), urlsplit(self.endpoint)
            following = parts._replace(scheme=here.scheme, netloc=here.netloc).geturl()
        try:
            return (json.loads(text) if text else None), following
        except ValueError as error:
            raise TransientStorageError(f"{self.page}: what the Hub answered is no JSON") from error

    def meaning(self, error: BaseException, where: str) -> ParamDeltaError:
        """The error of our tree that an exception of the library means."""
        if isinstance(error, errors.OfflineModeIsEnabled):
            return UsageError(
                f"{where}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or name the folder of a model that is on this machine"
            )
        if type(error) is RuntimeError and error.__cause__ is not None:  # of an upload
            return self.meaning(error.__cause__, where)
        response = getattr(error, "response", None)
        if response is not None:
            return self._refusal(error, response, where)
        if told_by_network := network.explained(error, where, self.endpoint):
            return told_by_network
        kind, text = type(error).__name__, str(error).partition("\n")[0][:400]
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS:
            return TransientStorageError(f"{where}: {text or kind}{network.by_proxy(error, self.endpoint)}")
        return StorageError(f"{where}: the library of the Hub failed ({kind}: {text})")

    def _refusal(self, error: BaseException, response: Any, where: str) -> ParamDeltaError:
        status, place = response.status_code, self.place
        log_in = "log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(error, errors.GatedRepoError):
            return CredentialsError(
                f"{where}: whoever wants this model has to ask for it on {self.page}, logged in; then {log_in}, here too"
            )
        if isinstance(error, errors.DisabledRepoError):
            return InputError(f"{where}: the Hub has disabled {place.repository}; {self.page} may say why")
        if status == 401 and self.is_logged_in:
            return CredentialsError(f"{where}: the Hub does not take the token that is used here; {log_in} to one that is valid")
        if status == 401:
            return CredentialsError(
                f"{where}: no public model of the Hub has this name, and nobody is logged in. If {self.page} shows it to you, {log_in}; "
                "else look at how its name is spelt"
            )
        if status == 403:
            return CredentialsError(
                f"{where}: the token that is used here does not allow this; look at {self.page} for who may, and {log_in} to one of theirs"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return NotFound(
                f"{where}: {place.repository} has no branch, tag or commit {place.revision!r}; those that it has are listed on "
                f"{self.page}/tree/main"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return NotFound(
                f"{where}: the Hub has no model {place.repository}, or none that this account may see; its page would be {self.page}"
            )
        if status == 404:
            return NotFound(f"{where}: no such object")
        if status in (409, 412, 416):
            return InputChanged(f"{where} changed since the plan was made; run again to plan with the new version")
        text = str(error).strip().replace("\n", " ")[:400]
        if status in (408, 425, 429) or status >= 500:
            busy = TransientStorageError(f"{where}: {text or status}")
            busy.wait_seconds = named_wait(response.headers) if status in (429, 503) else 0.0
            return busy
        return StorageError(f"{where}: {text or status}")


def _identity(entry: dict[str, Any], commit: str) -> Identity:
    """Of an entry of a listing: the hash that LFS has of a large file, git's of a small one."""
    large = entry.get("lfs") or {}
    return Identity(int(large.get("size") or entry["size"]), str(large.get("oid") or entry["oid"]), commit)


def elsewhere(response: Any, url: str) -> str:
    """The URL that a redirect leads to; empty for any other answer."""
    location = response.headers.get("Location")
    return urljoin(url, location) if location and 300 <= response.status_code < 400 else ""


def named_wait(headers: Any) -> float:
    """Seconds after which an answer says to ask again; 0 where it says nothing."""
    text = (headers.get("Retry-After") or "").strip()
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit") or "")
    if text.isdigit():
        return float(text)
    if limit:
        return float(limit[1])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else 0.0
    except ValueError:
        return 0.0


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
