"""URLs: what is local, which scheme, how two places relate, and how to print one without its secrets."""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import suppress
from pathlib import PurePath

from paramdelta_dist.errors import UsageError
from paramdelta_dist.redaction import by_form, is_signed
from paramdelta_dist.storage.hub_places import hub_place, refuse_web_page

_SAME = {"s3a": "s3", "gcs": "gs", "azure": "az"}
"""Other spellings of a scheme, so that one place has one URL."""

_OTHER_NAMES = {
    "local": "the path alone, or file:///PATH",
    "asynclocal": "the path alone, or file:///PATH",
    "s3n": "s3://BUCKET/…",
    "wasb": "az://CONTAINER/… or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…",
    "wasbs": "az://CONTAINER/… or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…",
    "ssh": "sftp://HOST/…",
}
"""Schemes that some library takes for a place that has another name here, and what to write."""
_WRAPPERS = frozenset(
    {"asyncwrapper", "async_wrapper", "blockcache", "cached", "dask", "data", "dir", "filecache", "generic", "libarchive"}
    | {"reference", "simplecache", "tar", "zip"}
)
"""Schemes of fsspec that show some other place, or none."""
_LOWER_CASE = frozenset(["gs", "az", "abfs", "abfss", "http", "https", "sftp"])
"""Schemes whose hosts and buckets are the same in upper case, or cannot have any. S3 has old buckets with it."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")
_HALF_A_SCHEME = re.compile(r"(s3a?|gs|gcs|az|azure|abfss?|https?|hf|memory|local|sftp):", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


def scheme_of(url: str) -> str:
    """Scheme in lower case, or "" for a local path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def normalize(url: str) -> str:
    """One spelling for one place: local paths absolute with `~` expanded, schemes in lower case and by their first name, no
    trailing slash, `file://` removed.

    Raises UsageError on an empty URL, on one that carries a password, which must never end up in a log, and on one that is
    another name of a place that has a canonical one, saying how that is written.
    """
    if not url.strip():
        raise UsageError("an empty string is not a path or URL")
    if "\0" in url:
        raise UsageError(f"{url!r} contains a NUL character")
    if url.lower().startswith("file:"):
        return _absolute(_path_of(url))
    scheme = scheme_of(url)
    if not scheme:
        _refuse_half_a_scheme(url)
        return _absolute(os.path.expanduser(url))
    url = _SAME.get(scheme, scheme) + url[len(scheme) :]
    refuse_secrets(url)
    if "?" in url and scheme_of(url) in ("http", "https"):
        raise UsageError(f"{redact(url)}: a query string cannot be part of a folder's URL")
    _require_canonical(url)
    return url.removesuffix("/") if not url.endswith("://") else url


def _absolute(path: str) -> str:
    """Two slashes at the beginning are a place of its own to POSIX and the root to every system we run on."""
    return re.sub(r"\A//+", "/", os.path.abspath(path))


def _path_of(url: str) -> str:
    """The path that a `file:` URL means: `file:///path` and no other form, of which libraries make different things."""
    path = url[len("file://") :]
    if not url[len("file:") :].startswith("///") or path.startswith("//"):
        rest = url[len("file:") :].lstrip("/")
        raise UsageError(f"{redact(url)}: write file:///PATH, or the path alone, such as /{rest.removeprefix('localhost/')}")
    if _ESCAPE.search(path):
        raise UsageError(f"{redact(url)}: write the path as it is, without percent signs for its characters")
    return path


def _refuse_half_a_scheme(path: str) -> None:
    """Raise UsageError for `s3:/bucket`, which as a path would be a folder called `s3:`."""
    if "://" in path and not os.path.lexists(path):
        raise UsageError(f"{redact(path)}: something stands before the scheme of this URL; write the URL of the place itself")
    found = _HALF_A_SCHEME.match(path)
    if found and not os.path.lexists(path):
        raise UsageError(f"{path}: {found[1]}: is no path; write {found[1].lower()}://…, or ./{path} for a local folder of that name")


def _require_canonical(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if "::" in url[: len(scheme) + 2 + len(rest.partition("/")[0])] or "::" in scheme or scheme in _WRAPPERS:
        raise UsageError(f"{redact(url)}: {scheme}:// shows another place under a second name; write the URL of that place itself")
    if scheme in _OTHER_NAMES:
        raise UsageError(f"{redact(url)}: write {_OTHER_NAMES[scheme]}")
    if scheme in ("http", "https"):
        refuse_web_page(url)
    host, _, path = rest.partition("/")
    user, at, name = host.rpartition("@") if scheme == "sftp" else ("", "", host)  # of a user's name every letter counts
    if scheme in _LOWER_CASE and name != name.lower():
        raise UsageError(f"{redact(url)}: write {redact(f'{scheme}://{user}{at}{name.lower()}/{path}')}, in lower case")
    if scheme == "memory" and not host and path:
        raise UsageError(f"{redact(url)}: write memory://{path.lstrip('/')}")
    segments = path.split("/")
    if segments[-1] == "":
        segments.pop()
    if any(segment in ("", ".", "..") for segment in segments):
        plain = posixpath.normpath("/" + "/".join(segments)).lstrip("/")
        raise UsageError(
            f"{redact(url)} has an empty, `.` or `..` part, and is another name of a place; write {redact(f'{scheme}://{host}/{plain}')}"
        )
    if scheme == "hf":
        hub_place(url)


def refuse_secrets(url: str) -> None:
    """Raises UsageError where a URL, or the beginning of one, carries a password or a signature."""
    user = url.partition("://")[2].partition("/")[0].rpartition("@")[0]  # alone it is harmless, as in sftp:// or abfs://
    if ":" in user or (user and scheme_of(url) in ("s3", "gs", "http", "https")):
        raise UsageError(f"{redact(url)}: credentials do not belong in a URL; put them in the environment or a profile")
    if is_signed(url):
        raise UsageError(f"{redact(url)}: a signature does not belong in a URL; put it in the environment")


def redact(url: str) -> str:
    """`url` without user, password, signature and, of http, query string, for people and documents; the same on every machine.

    What stands before the @ in abfss://container@account is no user.
    """
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        url = url.partition("?")[0]
    head, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    before, _, after = host.rpartition("@")
    if scheme and (":" in before or scheme not in ("abfs", "abfss", "az")):
        url = f"{head}{separator}{after}{slash}{path}"
    return by_form(url)


def inside(url: str, folder: str) -> bool:
    """Whether `url` is `folder` or lies below it; both normalized.

    On disks by what the folders are, not by their names: symbolic links, mounts of the same folder at two places and file
    systems that do not tell upper from lower case have several for one.
    """
    if scheme_of(url) == scheme_of(folder) == "hf":
        return hub_place(url).repository == hub_place(folder).repository  # of whichever revision
    if not scheme_of(url) and not scheme_of(folder):
        url, folder = os.path.realpath(url), os.path.realpath(folder)
        with suppress(OSError):
            there = os.stat(folder)
            if any(_is(ancestor, there) for ancestor in (url, *map(str, PurePath(url).parents))):
                return True
    return url == folder or url.startswith(folder.rstrip("/") + "/")


def _is(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except (OSError, ValueError):
        return False
