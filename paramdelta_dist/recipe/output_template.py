"""Output names that change from night to night, such as `s3://models/nightly/{date}-{inputs}`. Pure text.

A template knows two names in braces, and braces mean nothing else: `{date}`, the UTC day (YYYY-MM-DD) on which the merge
was begun, and `{inputs}`, twelve hexadecimal digits of the fingerprint of recipe and inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

from paramdelta_dist.errors import UsageError

INPUTS_DIGITS = 12
"""Of the fingerprint, in a name: two outputs of one folder never share them by chance."""
_FIELD = re.compile(r"\{(date|inputs)\}")
_FIELDS = re.compile(rf"{_FIELD.pattern}(?:[-_.]?{_FIELD.pattern})*")
_BRACED = re.compile(r"\{[^{}/]*\}")
_VALUES = {"date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "inputs": f"[0-9a-f]{{{INPUTS_DIGITS}}}"}
_KNOWN = "{date} (the UTC day the merge is begun) and {inputs} (a short fingerprint of recipe and inputs)"


def is_template(url: str) -> bool:
    """Whether the folder that `url` names is decided when the merge begins."""
    return "{" in url or "}" in url


def check_template(url: str) -> str:
    """`url`, if it is a template or has no braces. Raises UsageError for unknown names, lone braces and templated buckets."""
    rest = _FIELD.sub("/", url)
    unknown = _BRACED.search(rest)
    if unknown:
        raise UsageError(f"{unknown[0]} is not known in an output; known are {_KNOWN}")
    if is_template(rest):
        raise UsageError(f"a brace without its partner; in an output, braces are for {_KNOWN}")
    scheme, _, path = url.rpartition("://")
    if scheme and is_template(path.partition("/")[0]):
        raise UsageError(f"{url}: the bucket or host itself cannot change; put a folder before {{date}} or {{inputs}}")
    return url


def expand(template: str, *, day: date, fingerprint: str) -> str:
    """The URL of the output that is begun on `day` from recipe and inputs with this fingerprint."""
    return template.replace("{date}", day.isoformat()).replace("{inputs}", fingerprint[:INPUTS_DIGITS])


def folder_of(template: str) -> str:
    """The folder in which a template's outputs lie: all before the first part of the path that changes."""
    return template[: _FIELD.search(template).start()].rpartition("/")[0] or "/"  # type: ignore[union-attr]


def series_name(template: str) -> str:
    """What tells this template's outputs from others in the same folder: its changing parts called `latest`, for a file's name.

    `{date}` and `{date}-{inputs}` are `latest`, `llama-{date}` is `llama-latest`, `{date}/llama` is `latest-llama`.
    """
    return _FIELDS.sub("latest", template[len(folder_of(template)) :].lstrip("/").replace("/", "-"))


def fields_of(template: str, name: str) -> Mapping[str, str] | None:
    """What stands for {date} and {inputs} in `name`, a path in the template's folder; None where the template makes no such name."""
    tail = template[len(folder_of(template)) :].lstrip("/")
    literal, *rest = _FIELD.split(tail)  # literal, field, literal, field, ...
    pattern, seen = re.escape(literal), set[str]()
    for field, literal in zip(rest[::2], rest[1::2], strict=True):
        pattern += (f"(?P={field})" if field in seen else f"(?P<{field}>{_VALUES[field]})") + re.escape(literal)
        seen.add(field)
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    found = match.groupdict()
    try:
        date.fromisoformat(found.get("date", "2000-01-01"))
    except ValueError:
        return None
    return found


def depth_of(template: str) -> int:
    """How many folders deep in the template's folder its outputs lie."""
    return template[len(folder_of(template)) :].strip("/").count("/") + 1
