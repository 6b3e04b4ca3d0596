"""The one function that takes secrets out of what is printed, written or raised: by their form, and by the value of known variables.

It leaves ordinary text alone. A key of an object may hold `=`, a tensor's name any word: what is taken for a secret by its form has a
name that says so where names of parameters stand, or a shape that nothing else has. Values of variables count from eight characters
on; up to fifteen only as a whole word, so that a password which is a word does not eat others.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
_Patterns = tuple[tuple[str, re.Pattern[str]], ...]
"""Values that are secret, and what finds each."""

SHORTEST = 8
"""Characters that a variable's value must have to be looked for: shorter ones are parts of ordinary words."""
LONG = 16
"""From here on a value is hidden inside a longer word too."""

_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|ACCESS_KEY|ACCOUNT_KEY|STORAGE_KEY|API_KEY|PRIVATE_KEY|_SAS\b|SAS_KEY|CONNECTION_STRING|RAY_JOB_HEADERS",
    re.IGNORECASE,
)
_NO_SECRET_NAME = re.compile(r"(FILE|PATH|DIR|URI|URL|MODE|ENABLED|PARALLELISM|_TTL\w*|_EXPIRATION)$", re.IGNORECASE)
_URL_NAME = re.compile(r"_PROXY$|_URL(_S3)?$|_ENDPOINT$|_HOST$|^RAY_(API_SERVER_)?ADDRESS$", re.IGNORECASE)
"""Variables whose URL may hold a password, or a signature."""

_NAMES = (
    r"sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|awsaccesskeyid|"
    r"access[_-]?token|refresh[_-]?token|session[_-]?token|id[_-]?token|token|password|passwd|pwd|client[_-]?secret|secret|api[_-]?key|"
    r"account[_-]?key|shared[_-]?access[_-]?key|(?:aws_)?secret[_-]?access[_-]?key|x-amz-copy-source-server-side-encryption-customer-key"
)
_SIGNED = re.compile(rf"[?&](?:{_NAMES})=", re.IGNORECASE)
_END = r"\s&;,)'\"<>\\"
"""Where a parameter's value ends."""

_FORMS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # what must be in the text in lower case for the pattern to be worth a try; the pattern; what takes its place
    (("-----begin",), re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=\s:,-]|\\[nr])*"), HIDDEN),
    (("://",), re.compile(r"(?<=://)[^\s/?#'\"<>\\]*:[^\s/?#'\"<>\\]*@"), f"{HIDDEN}@"),
    (("://",), re.compile(r"(?i)(?<![a-z0-9])((?:https?|s3a?|gs)://)[^\s/?#'\"<>\\@]+@(?!/)"), rf"\1{HIDDEN}@"),
    (("authorization",), re.compile(r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*b?['\"]?)[^\r\n'\"\\]+"), rf"\1{HIDDEN}"),
    (("bearer",), re.compile(r"(?i:\b(bearer\s+))(?=[a-z]*[A-Z0-9_~+/=.-])[A-Za-z0-9._~+/=-]{16,}"), rf"\1{HIDDEN}"),
    (("sharedaccesssignature",), re.compile(rf"(?i)\b(sharedaccesssignature=)[^{_END.replace('&', '')}]+"), rf"\1{HIDDEN}"),
    (("=",), re.compile(rf"(?i)(?:(?<![\w/.-])|(?<=--))({_NAMES})=(['\"]?)(?!\*\*\*)[^{_END}]+"), rf"\1=\2{HIDDEN}"),
    (("%3d",), re.compile(rf"(?i)(?:(?<=%26)|(?<=%3F)|(?<=\?)|(?<=&))({_NAMES})%3D(?:(?!%26)[^{_END}])+"), rf"\1%3D{HIDDEN}"),
    (
        ("key", "token", "secret"),
        re.compile(
            r"(?i)\b((?:aws_)?secret_?access_?key|session_?token|access_?token|refresh_?token|client_?secret|private_?key|account_?key|"
            r"api_?key|x-amz-security-token|aws_access_key_id)(['\"]?\s*(?::|=\s)\s*(?:b?['\"])?)(?!\*\*\*)[^\s,;'\"<>\\}]{4,}"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (("passw",), re.compile(r"(?i)\b(passw(?:or)?d['\"]\s*:\s*['\"])[^'\"\\]+"), rf"\1{HIDDEN}"),
    (("signature", "credential"), re.compile(r"(?i)\b(signature|credential)=(?!\*\*\*)[A-Za-z0-9+/=%_.-]{16,}"), rf"\1={HIDDEN}"),
    (("akia", "asia"), re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"), HIDDEN),
    (("hf_",), re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,}"), HIDDEN),
    (("gh",), re.compile(r"(?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36,}"), HIDDEN),
    (("ya29.",), re.compile(r"(?<![\w])ya29\.[\w-]{20,}"), HIDDEN),
    (("eyj",), re.compile(r"(?<![\w])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"), HIDDEN),
)


def redacted(text: str) -> str:
    """`text` with `***` for every secret in it."""
    return _redacted(text, _patterns(_secrets()))


def _redacted(text: str, patterns: _Patterns) -> str:
    for value, pattern in patterns:
        if value in text:
            text = pattern.sub(HIDDEN, text)
    return by_form(text)


def by_form(text: str) -> str:
    """The same whatever the environment: for what must come out alike on every machine."""
    lower = text.lower()
    for needles, pattern, replacement in _FORMS:
        if any(needle in lower for needle in needles):
            text = pattern.sub(replacement, text)
    return text


def redacted_values(value: Any) -> Any:
    """A document, as JSON knows them, with every text in it redacted, names of fields included."""
    patterns = _patterns(_secrets())  # once: a document has a text for each of a hundred thousand tensors

    def within(value: Any) -> Any:
        if isinstance(value, str):
            return _redacted(value, patterns)
        if isinstance(value, dict):
            return {_redacted(key, patterns) if isinstance(key, str) else key: within(each) for key, each in value.items()}
        return [within(each) for each in value] if isinstance(value, (list, tuple)) else value

    return within(value)


def is_signed(url: str) -> bool:
    """Whether a URL carries a signature, a token or a password as a parameter."""
    return bool(_SIGNED.search(url))


def _secrets() -> tuple[str, ...]:
    """The values of the environment that are secret, by the names of their variables."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _URL_NAME.search(name):
            found.update(_of_url(value))
        elif name.upper() == "AWS_ACCESS_KEY_ID":
            found.update([value.strip()] if len(value.strip()) >= LONG else ())  # shorter ones are names that people choose: minioadmin
        elif _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            found.update(_parts(name, value.strip()))
    return tuple(sorted(value for value in found if len(value) >= SHORTEST))


def _parts(name: str, value: str) -> list[str]:
    """What is secret in a variable's value: all of it, or the fields of a connection string or of headers that are."""
    if name.upper() == "RAY_JOB_HEADERS":
        try:
            return [str(each) for each in json.loads(value).values()]
        except (ValueError, AttributeError):
            return [value]
    if "CONNECTION_STRING" in name.upper():
        fields = [field.partition("=") for field in value.split(";")]
        return [given for key, _, given in fields if key.strip().lower() in ("accountkey", "sharedaccesssignature", "sharedaccesskey")]
    if "sig=" in value:  # a shared access signature, which some tools print without its other fields
        return [value, *(field.partition("=")[2] for field in value.split("&") if field.lower().startswith("sig="))]
    return [value]


def _of_url(value: str) -> list[str]:
    try:
        password = urlsplit(value if "://" in value else f"//{value}").password
    except ValueError:
        password = value.rpartition("@")[0].rpartition(":")[2]
    return [password, unquote(password)] if password else []


@lru_cache(maxsize=8)
def _patterns(secrets: tuple[str, ...]) -> _Patterns:
    """Every spelling in which a value may come back, the longest first."""
    spellings: dict[str, bool] = {}
    for secret in secrets:
        for spelling in (secret, quote(secret, safe=""), quote_plus(secret), quote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]):
            spellings[spelling] = len(secret) >= LONG
    ordered = sorted(spellings, key=len, reverse=True)
    return tuple((each, re.compile(re.escape(each) if spellings[each] else rf"(?<![\w-]){re.escape(each)}(?![\w-])")) for each in ordered)


class _Record(logging.LogRecord):
    """A line of a log without secrets, whichever library wrote it and whoever prints it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = redacted("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        return redacted(super().getMessage())


def redact_process() -> None:
    """Take secrets out of what any logger of this process writes from now on, and of the tracebacks of its threads."""
    logging.setLogRecordFactory(_Record)
    threading.excepthook = lambda caught: print_traceback(caught.exc_value) if caught.exc_value is not None else None
    sys.excepthook = lambda _, error, __: print_traceback(error)


def print_traceback(error: BaseException) -> None:
    """What Python prints for an exception that nobody caught, on stderr, without secrets."""
    with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
        sys.stderr.write(redacted("".join(traceback.format_exception(error))))
        sys.stderr.flush()
