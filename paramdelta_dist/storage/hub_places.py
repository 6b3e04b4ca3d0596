"""The meaning of `hf://` URLs: a model of the Hugging Face Hub, a version of it, and a folder in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from paramdelta_dist.errors import UsageError

MAIN = "main"
_PLACE = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+))?(?:/(.+))?",
    re.ASCII | re.DOTALL,
)
_OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets")
_SITES = ("huggingface.co", "www.huggingface.co", "hf.co")


@dataclass(frozen=True, slots=True)
class Place:
    repository: str
    """`owner/name`."""
    revision: str
    """A branch, a tag or a commit."""
    folder: str
    """Path in the repository; empty for its root."""

    @property
    def is_whole(self) -> bool:
        """Whether this is a repository as it is, and no other revision or part of it."""
        return self.revision == MAIN and not self.folder

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


def hub_place(url: str) -> Place:
    """The place that an `hf://` URL names. Raises UsageError for what is no model of the Hub, saying how one is written."""
    rest = url.partition("://")[2].removesuffix("/")
    first, _, others = rest.partition("/")
    if first == "models" and others.count("/"):
        raise UsageError(f"{url}: write hf://{others}")
    if first in _OTHER_KINDS:
        raise UsageError(f"{url}: only models of the Hub can be merged, not what lies under {first}/; write hf://OWNER/NAME")
    if first and not others:
        name = first.partition("@")[0]
        raise UsageError(
            f"{url}: an id of the Hub has an owner and a name, as in hf://OWNER/{name}; old ids without owner got one, as gpt2 "
            "became hf://openai-community/gpt2: the model's page shows it"
        )
    found = _PLACE.fullmatch(rest)
    if found is None:
        raise UsageError(f"{url} is no model of the Hub; write hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FOLDER")
    return Place(found[1], unquote(found[2]) if found[2] else MAIN, found[3] or "")


def refuse_web_page(url: str) -> None:
    """Raises UsageError for the address of a model's page, which is no folder of files."""
    host, _, path = url.partition("://")[2].partition("/")
    parts = path.split("/")
    if host.lower() not in _SITES or len(parts) < 2:
        return
    revision = f"@{parts[3]}" if len(parts) > 3 and parts[2] in ("tree", "resolve", "blob") and parts[3] != MAIN else ""
    raise UsageError(f"{url} is a page; write hf://{parts[0]}/{parts[1]}{revision}")
