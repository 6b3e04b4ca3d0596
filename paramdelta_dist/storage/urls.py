"""URLs: what is local, which scheme, how two places relate, and how to print one without its secrets."""

from __future__ import annotations

import os
import re

from paramdelta_dist.errors import UsageError
from paramdelta_dist.redaction import by_form, is_signed

_SAME = {"s3a": "s3", "gcs": "gs", "azure": "az"}
"""Other spellings of a scheme, so that one place has one URL."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(url: str) -> str:
    """Scheme in lower case, or "" for a local path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def normalize(url: str) -> str:
    """One spelling for one place: local paths absolute with `~` expanded, schemes in lower case and by their first name, no
    trailing slash, `file://` removed.

    Raises UsageError on an empty URL, and on one that carries a password, which must never end up in a log.
    """
    if not url.strip():
        raise UsageError("an empty string is not a path or URL")
    if "\0" in url:
        raise UsageError(f"{url!r} contains a NUL character")
    if url.lower().startswith("file://"):
        url = url[len("file://") :]
    scheme = scheme_of(url)
    if not scheme:
        return os.path.abspath(os.path.expanduser(url))
    url = _SAME.get(scheme, scheme) + url[len(scheme) :]
    refuse_secrets(url)
    if "?" in url and scheme_of(url) in ("http", "https"):
        raise UsageError(f"{redact(url)}: a query string cannot be part of a folder's URL")
    return url.rstrip("/") if not url.endswith("://") else url


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
    if scheme and (":" in before or scheme not in ("abfs", "abfss")):
        url = f"{head}{separator}{after}{slash}{path}"
    return by_form(url)


def inside(url: str, folder: str) -> bool:
    """Whether `url` is `folder` or lies below it; both normalized. Symbolic links of local paths are followed."""
    if not scheme_of(url) and not scheme_of(folder):
        url, folder = os.path.realpath(url), os.path.realpath(folder)
    return url == folder or url.startswith(folder.rstrip("/") + "/")
