"""Whose the unfinished files and uploads in a folder are: what lies below an output of ours and has a name of ours, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from paramdelta_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME
from paramdelta_dist.errors import InputError
from paramdelta_dist.output.names import FOLDER, PLAN
from paramdelta_dist.output.sealed_json import MAX_DOCUMENT, parse_document
from paramdelta_dist.storage import Leftover, Store, is_earlier_part, is_part
from paramdelta_dist.threads import Threads

_SHARD = re.compile(rf"{re.escape(SINGLE_NAME)}|model-\d{{5}}-of-\d{{5,}}\.safetensors")
NOT_OURS = "its name is not one of ours"
ELSEWHERE = f"no output of ours is there ({PLAN} is missing)"


@dataclass(frozen=True)
class LeftAlone:
    """A leftover that nobody may clear away, and the reason."""

    leftover: Leftover
    reason: str


def sort_leftovers(store: Store, found: Sequence[Leftover]) -> tuple[list[Leftover], list[LeftAlone]]:
    """Those of our own runs, and those that are somebody else's or cannot be told to be ours. Reads plans, and changes nothing."""
    outputs = _outputs(store, found)
    ours, others = [], []
    for leftover in found:
        reason = _whose_file(leftover, outputs) if leftover.kind == "file" else _whose_upload(leftover, outputs)
        if reason is None:
            ours.append(leftover)
        else:
            others.append(LeftAlone(leftover, reason))
    return ours, others


def _whose_file(leftover: Leftover, outputs: Mapping[str, frozenset[str]]) -> str | None:
    """Why a hidden file is left alone; None for one of ours.

    The form that we give our files now tells them everywhere in and above an output, such as beside the pointer to the latest one;
    that of earlier versions, which others may use as well, only in an output.
    """
    folder, _, name = leftover.name.rpartition("/")
    if not is_part(name):
        return NOT_OURS
    if FOLDER in folder.split("/") or any(above in outputs for above in _folders(leftover.name)):
        return None
    if not is_earlier_part(name) and any(_lies_in(output, folder) for output in outputs):
        return None
    return ELSEWHERE


def _whose_upload(leftover: Leftover, outputs: Mapping[str, frozenset[str]]) -> str | None:
    """The same of an upload, which has no name but that of the object it was to become."""
    reason = ELSEWHERE
    for folder in _folders(leftover.name):
        name = leftover.name[len(folder) :].lstrip("/")
        if name.startswith(f"{FOLDER}/"):
            return None
        if folder in outputs:
            if name in outputs[folder] or _SHARD.fullmatch(name):
                return None
            reason = NOT_OURS
    return reason


def _outputs(store: Store, found: Iterable[Leftover]) -> dict[str, frozenset[str]]:
    """The outputs of ours that leftovers may belong to, and the names that the plan of each lists."""
    if store.remote:
        folders = {folder for leftover in found for folder in _folders(leftover.name)}
    else:
        folders = {name[: -len(PLAN)].rstrip("/") for name in store.list() or {} if name == PLAN or name.endswith(f"/{PLAN}")}

    def names(folder: str) -> tuple[str, frozenset[str]] | None:
        try:
            data = store.read(f"{folder}/{PLAN}".lstrip("/"), limit=MAX_DOCUMENT)
        except InputError:  # none is there, or something else of its name
            return None
        plan = parse_document(data) or {}
        listed = [shard["file"] for shard in plan.get("shards", ())] + [entry[1] for entry in plan.get("side_files", ())]
        return folder, frozenset([*listed, INDEX_NAME])

    with Threads(16) as pool:
        return dict(known for known in pool.map(names, sorted(folders)) if known is not None)


def _folders(name: str) -> Iterator[str]:
    """Every folder that a name lies in, the whole one ("") last."""
    while name:
        name = name.rpartition("/")[0]
        yield name


def _lies_in(output: str, folder: str) -> bool:
    return not folder or output == folder or output.startswith(f"{folder}/")
