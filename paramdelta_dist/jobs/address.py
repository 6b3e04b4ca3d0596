"""The address of the cluster that is meant: the one given, else the one that the environment names, else the one on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramdelta_dist.errors import UsageError
from paramdelta_dist.storage import redact

VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""In the order in which Ray itself looks at them. Ray lets them win over an address that is given; here they do not."""


@dataclass(frozen=True)
class Address:
    text: str | None
    """A dashboard's URL or a cluster's host:port; None is whatever cluster runs on this machine."""
    source: str
    """Its origin (an option, a variable or this machine), for messages."""

    def __str__(self) -> str:
        return f"{redact(self.text)} ({self.source})" if self.text else self.source

    @property
    def is_url(self) -> bool:
        return self.text is not None and "://" in self.text


def choose_address(given: str | None, environ: Mapping[str, str]) -> Address:
    """An empty variable is one that is not set, as it is to Ray; an empty address that was given is a mistake, such as a
    variable that a script left unset, and no reason to go to whatever cluster runs here.

    Raises UsageError for that, and for addresses of another kind, such as Ray Client's ray://.
    """
    if given is not None and not given.strip():
        raise UsageError("--address is empty: give the dashboard's address, http://HEAD:8265, or leave the option out")
    named = [(given, "--address"), *((environ.get(name), name) for name in VARIABLES)]
    text, source = next(((text.strip(), source) for text, source in named if text and text.strip()), ("auto", ""))
    if text in ("auto", "local"):
        return Address(None, "the cluster on this machine")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Address(text if ":" in text else f"http://{text}:8265", source)
    if scheme.lower() not in ("http", "https") or not rest.strip("/"):
        host = rest.rpartition("@")[2].partition("/")[0].partition(":")[0] or "HEAD"
        raise UsageError(
            f"{source}: {redact(text)} is not where jobs are submitted; give the dashboard's address, such as http://{host}:8265"
        )
    return Address(text.rstrip("/"), source)
