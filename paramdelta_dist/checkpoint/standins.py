"""Stand-ins, which lie in a file's place while its content is elsewhere: pointers of Git LFS and git-annex, and pages saved by mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping

from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import Buffer, Identity, Store
from paramdelta_dist.threads import Threads

FIRST_BYTES = 1024
"""Read of a file to know; a pointer of Git LFS is shorter than that."""
REQUESTS_IN_FLIGHT = 32

_LFS = re.compile(rb"version https?://(git-lfs|hawser)\.github\.com/spec/")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE)
_NEVER_A_PAGE = (".json", ".safetensors", ".model", ".model.v3", ".tiktoken", "vocab.txt", "merges.txt")


def refuse_stand_in(first: Buffer, *, where: str) -> None:
    """Raise CheckpointError if a file that begins with these bytes only stands for what its name, the end of `where`, says."""
    begin = bytes(first[:FIRST_BYTES])
    if _LFS.match(begin):
        raise CheckpointError(f"{where}: a pointer of Git LFS and not the file itself; fetch what it stands for (git lfs pull)")
    if begin.startswith(b"/annex/objects/"):
        raise CheckpointError(f"{where}: a pointer of git-annex and not the file itself; fetch what it stands for (git annex get)")
    if _PAGE.match(begin) and where.endswith(_NEVER_A_PAGE):
        raise CheckpointError(f"{where}: a web page (HTML) and not the file itself; download the file once more, from its own address")


def require_own_files(store: Store, files: Mapping[str, Identity]) -> None:
    """Raise unless these small files of a folder can be read and are what they are called: CheckpointError for a stand-in, and
    what the store raises for a link out of the folder and what may not be read.

    Of a remote file that is longer than a pointer nothing is read.
    """

    def look(item: tuple[str, Identity]) -> None:
        name, identity = item
        if store.remote and identity.size >= FIRST_BYTES:
            return
        first = store.read_range(name, 0, min(identity.size, FIRST_BYTES), identity=identity)
        refuse_stand_in(first, where=f"{store.url}/{name}")

    if files:
        with Threads(min(REQUESTS_IN_FLIGHT, len(files))) as pool:
            list(pool.map(look, files.items()))
