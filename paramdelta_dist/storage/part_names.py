"""Names of files that are being written: hidden, beside their target, and of a form that nobody else's files have."""

from __future__ import annotations

import os
import re
import secrets

_ENDING = ".paramdelta-part"
_LONGEST = 255
"""Bytes that a file's name may have on the usual file systems."""
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.paramdelta-part", re.DOTALL)
_EARLIER = re.compile(r"\.(.+\.[0-9a-f]{8}|[0-9a-f]{16})\.part", re.DOTALL)


def part_name(target: str) -> str:
    """A new name for the file that will be renamed to `target` once it is whole; never longer than a name may be."""
    ending = f".{secrets.token_hex(4)}{_ENDING}"
    while len(os.fsencode(target)) + len(ending) + 1 > _LONGEST:
        target = target[:-1]
    return f".{target}{ending}"


def is_part(name: str) -> bool:
    """Whether a file of this name is one that we were, or an earlier version of us was, in the middle of writing."""
    return _PART.fullmatch(name) is not None or is_earlier_part(name)


def is_earlier_part(name: str) -> bool:
    """Whether the name has the form of earlier versions, `.NAME.xxxxxxxx.part`: others may have files of such names too."""
    return _EARLIER.fullmatch(name) is not None


def may_be_part(name: str) -> bool:
    """Whether a file of this name looks unfinished, by whomever."""
    return name.startswith(".") and name.endswith((_ENDING, ".part"))
