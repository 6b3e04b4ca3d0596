"""The id of a job: the same merge has the same name, and each try of it a number."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

_ID = re.compile(r"(pdd-[0-9a-f]{12})-(0|[1-9]\d{0,5})")


@dataclass(frozen=True, order=True)
class JobName:
    stem: str
    """Of one merge into one output."""
    attempt: int = 1
    """0 stands for no job: there was nothing to do, and a script has an id that it can go on with."""

    def __str__(self) -> str:
        return f"{self.stem}-{self.attempt}"


def stem_of(what: str, output: str, location: Mapping[str, str]) -> str:
    """`what` is the plan's fingerprint, or the recipe's text where no plan could be made; `location` what the recipe's storage
    settings say of where the output lives: the same URL is another folder at another endpoint."""
    named = [what, output, *([dict(location)] if location else [])]
    return f"pdd-{blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=6).hexdigest()}"


def parse_job_id(text: str) -> JobName | None:
    """None when `text` is not the id of a job of ours."""
    found = _ID.fullmatch(text)
    return JobName(found[1], int(found[2])) if found else None
