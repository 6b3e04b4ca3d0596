"""Names that an output could not have: found while planning, and not when all the work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date

from paramdelta_dist.errors import CheckpointError, UsageError
from paramdelta_dist.recipe.output_template import expand, is_template
from paramdelta_dist.storage import hub_place, redact, scheme_of

LONGEST_PART = 255
"""Bytes of a file's or folder's name on nearly every disk."""
LONGEST_SIDE_FILE = 200
"""Bytes of each part of a side file's name: while it is written, it has a longer one."""
LONGEST_PATH = 4096 - 64
LONGEST_KEY = 1024
"""Bytes of an object's name in S3, GCS and Azure."""
LONGEST_OF_OURS = len(".paramdelta/receipts/model-00001-of-00001.safetensors.json") + 16
"""Of what every output holds, with what is written beside a file until it is whole."""

_KEYED = ("s3", "gs", "az", "abfs", "abfss")
_UNSPEAKABLE = re.compile("[\\0-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff\\\\\\\\]")


def require_writable(output: str, side_files: Iterable[tuple[str, str]]) -> None:
    """Raise CheckpointError for a side file, by its model's URL and its name, that could not be written to every kind of output;
    UsageError for an output whose name leaves no room for what it holds, or that lies where nothing can be written."""
    if scheme_of(output) == "hf" and (is_template(output) or not hub_place(output).is_whole):
        raise UsageError(
            f"{redact(output)}: an output on the Hub is a repository, written hf://OWNER/NAME: no folder, no revision, no template and no "
            "sweep"
        )
    longest = LONGEST_OF_OURS
    for url, name in side_files:
        size = max(len(part.encode(errors="surrogateescape")) for part in name.split("/"))
        problem = ""
        if _UNSPEAKABLE.search(name) or any(part in ("", ".", "..") for part in name.split("/")):
            problem = "a name that not every store can hold"
        elif size > LONGEST_SIDE_FILE:
            problem = f"a name of {size} bytes, and {LONGEST_SIDE_FILE} is the most that every store can hold"
        if problem:
            raise CheckpointError(
                f"{redact(url)}: {ascii(name)[:200]} would be copied beside the weights and has {problem}: rename it, or take it out of "
                "the folder"
            )
        longest = max(longest, len(name.encode()) + 1)
    if is_template(output):
        output = expand(output, day=date(2000, 1, 1), fingerprint="0" * 40)
    scheme, path = scheme_of(output), output.partition("://")[2].partition("/")[2] or output
    whole, parts = len(path.encode(errors="surrogateescape")) + longest, path.split("/")
    most = LONGEST_KEY if scheme in _KEYED else LONGEST_PATH
    if whole > most:
        raise UsageError(
            f"{redact(output)[:200]}…: files in it would have names of {whole} bytes, and {most} is the most; choose a shorter one"
        )
    widest = max(parts, key=lambda part: len(part.encode(errors="surrogateescape")))
    size = len(widest.encode(errors="surrogateescape"))
    if not scheme and size > LONGEST_PART:
        raise UsageError(
            f"the output's folder {widest[:60]!r}… has a name of {size} bytes, and a disk takes {LONGEST_PART}: choose a shorter one, or "
            "for a sweep of many parameters, fewer of them at a time"
        )
