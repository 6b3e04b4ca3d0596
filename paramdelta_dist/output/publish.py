"""From shards to a model: side files, index, card, report, then config.json, then the commit, in this order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from typing import Any

import yaml
from blake3 import blake3

from paramdelta_dist._version import __version__
from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.config import render_config
from paramdelta_dist.checkpoint.index import INDEX_NAME, render_index
from paramdelta_dist.checkpoint.sidefiles import MAX_SIDE_FILE
from paramdelta_dist.methods import find_method
from paramdelta_dist.output.commit import commit
from paramdelta_dist.output.hold import Hold, require_hold, settle, write_held
from paramdelta_dist.output.names import CARD, REPORT
from paramdelta_dist.output.receipts import Receipt
from paramdelta_dist.output.sealed_json import render_document
from paramdelta_dist.planning.plan import MergePlan, SideFile
from paramdelta_dist.redaction import redacted
from paramdelta_dist.storage import PIECE, Identity, StorageConfig, Store, open_store, read_whole, redact, scheme_of, stream_object

_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@|$)")
"""The URL of a whole repository of models."""
_CACHED = re.compile(r"models--([^/]+)/snapshots/([^/]+)/?$")
KEPT = 16 << 20
"""Bytes of small side files that are kept for the next output of a sweep."""


class SideFiles:
    """Copies side files, in the versions that were planned with and in bounded memory."""

    def __init__(self, storage: StorageConfig) -> None:
        self._storage = storage
        self._kept: dict[SideFile, bytes] = {}

    def read(self, file: SideFile) -> bytes:
        """A small file, which is read once, however many outputs it is copied to.

        Raises InputChanged when it is another by now, NotFound when it is gone.
        """
        if file in self._kept:
            return self._kept[file]
        data = bytes(read_whole(open_store(file.model, self._storage), file.name, file.identity, limit=MAX_SIDE_FILE))
        if len(data) + sum(map(len, self._kept.values())) <= KEPT:
            self._kept[file] = data
        return data

    def copy(self, file: SideFile, target: Store, hold: Hold) -> tuple[Identity, str]:
        """Write a file to an output that this run holds; a large one as it comes. Returns what it is there, and its BLAKE3 in hex.
        Raises what `read` does, and OutputTaken."""
        if file.identity.size <= PIECE:
            data = self.read(file)
            return write_held(target, hold, file.name, data), blake3(data).hexdigest()
        require_hold(target, hold)
        retries = self._storage.for_url(target.url).retries
        identity, digest = retries.persisting(lambda: self._stream(file, target, hold), what=f"copying {file.name} to {target.url}")
        settle(target, hold, file.name, identity)
        return identity, digest

    def _stream(self, file: SideFile, target: Store, hold: Hold) -> tuple[Identity, str]:
        digest = blake3()

        def pieces() -> Iterator[memoryview]:
            for piece in stream_object(open_store(file.model, self._storage), file.name, file.identity):
                digest.update(piece)
                yield piece
            with ThreadPoolExecutor(1) as pool:  # a store may ask for chunks where no other request can be made
                pool.submit(require_hold, target, hold).result()

        return target.put(file.name, pieces(), size=file.identity.size), digest.hexdigest()


def publish(
    store: Store, hold: Hold, plan: MergePlan, receipts: Mapping[str, Receipt], report: Mapping[str, Any], copies: SideFiles
) -> None:
    """Make the output a model. Every shard of the plan has its receipt; `copies` are what is copied beside the weights.
    Raises OutputTaken as soon as another run has taken the output, and leaves nothing of this one in it then.

    Until config.json, the last but one write, no loader opens the folder; until the commit, a run may start over. Raises
    InputChanged when a side file is no longer the one that was planned with.
    """
    files: dict[str, dict[str, Any]] = {
        file: {"size": receipt.size, "tag": receipt.tag, "digest": receipt.digest} for file, receipt in sorted(receipts.items())
    }

    def write(name: str, data: bytes, source: str | None = None) -> None:
        wrote(name, write_held(store, hold, name, data), blake3(data).hexdigest(), source)

    def wrote(name: str, identity: Identity, digest: str, source: str | None) -> None:
        origin = {"from": source} if source else {}
        files[name] = {"size": identity.size, "tag": identity.tag, "digest": digest, **origin}

    config = b""
    for file in plan.side_files:
        if file.name == CONFIG_NAME:
            config = render_config(copies.read(file), plan.config_dtype, plan.config_changes, plan.config_without)
        else:
            wrote(file.name, *copies.copy(file, store, hold), redact(file.model))
    if len(plan.own_shards) > 1:
        weight_map = {name: shard.file for shard in plan.own_shards for tensor in shard.tensors for name, _, _ in tensor.arrays}
        write(INDEX_NAME, render_index(weight_map, total_size=plan.total_size, total_parameters=plan.total_parameters))
    write(CARD, redacted(_card(plan)).encode(errors="backslashreplace"))
    write_held(store, hold, REPORT, render_document(report))
    write(CONFIG_NAME, config, redact(plan.recipe.base))
    document = {
        "fingerprint": plan.fingerprint,
        "version": __version__,
        "committed": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": plan.recipe.as_document(),
        "files": files,
    }
    commit(store, hold, document)


def _card(plan: MergePlan) -> str:
    """The model card: recipe and provenance, in the form the Hugging Face hub reads."""
    recipe = plan.recipe
    method = find_method(recipe.method)
    labels = _labels(plan)
    front = {
        "base_model": [found[1] for url in recipe.models if (found := _HUB.match(url))],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "paramdelta-dist", method.name],
    }
    rows = [
        f"| {labels[redact(url)]} | {_roles(plan, url)} | {len(files)} | {sum(size for size, _ in files.values()):,} |"
        for url, files in plan.inputs.items()
    ]
    copied = [f"- `{file.name}` from {labels[redact(file.model)]}" for file in plan.side_files]
    document = yaml.safe_dump(_relabelled(recipe.as_document(), labels), sort_keys=False, allow_unicode=True)
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {recipe.output.rstrip('/').rpartition('/')[2]}",
            "",
            f"Merged with paramdelta-dist {__version__} by [{method.title}]({method.paper}): {method.formula}",
            "",
            "```yaml",
            document.rstrip(),
            "```",
            "",
            f"{plan.merged} tensors were merged, {plan.copied} copied from the base; {plan.total_parameters:,} parameters in all.",
            "",
            *([*(f"- {_unplaced(note, labels)}" for note in plan.notes), ""]),
            "| model | role | files | bytes |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "Copied beside the weights:",
            "",
            *copied,
            "",
            f"Fingerprint of recipe and inputs: `{plan.fingerprint}`. The versions of all inputs are in `.paramdelta/plan.json`,",
            "the digest of every file in `.paramdelta/commit.json`.",
            "",
        ]
    )


def _labels(plan: MergePlan) -> dict[str, str]:
    """What each model, and the output, is called on the card: its URL, or the name of its folder, for a path says nothing elsewhere
    and much about this machine."""
    labels: dict[str, str] = {}
    for url in map(redact, (*plan.recipe.models, plan.recipe.tokenizer_url, *plan.inputs, plan.recipe.output)):
        if url in labels:
            continue
        name = url if scheme_of(url) not in ("", "file") else _folder(url)
        taken = list(labels.values())
        labels[url] = name if name not in taken else next(f"{name} ({n})" for n in count(2) if f"{name} ({n})" not in taken)
    return labels


def _folder(path: str) -> str:
    cached = _CACHED.search(path)
    return f"{cached[1].replace('--', '/')} at {cached[2][:12]}" if cached else path.rstrip("/").rpartition("/")[2] or "model"


def _unplaced(note: str, labels: Mapping[str, str]) -> str:
    """A note with models by what they are called."""
    for url in sorted(labels, key=len, reverse=True):
        note = note.replace(url, labels[url])
    return note


def _relabelled(value: Any, labels: Mapping[str, str]) -> Any:
    """A recipe with models by what they are called."""
    if isinstance(value, dict):
        return {key: _relabelled(part, labels) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relabelled(part, labels) for part in value]
    return labels.get(value, value) if isinstance(value, str) else value


def _roles(plan: MergePlan, url: str) -> str:
    position = plan.models.index(url)
    based = any(call.based for call in plan.calls) or not plan.calls
    roles = (["base"] if based else ["structure"]) if position == 0 else []
    for number, term in enumerate(plan.terms):
        own = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in term.values.items())
        own = f" ({own})" if own else ""
        noun = f"model {number}" if term.base is None else f"post of delta {number}"
        roles += [noun + own] if term.post == position else []
        roles += [f"base of delta {number}"] if term.base == position and position != 0 else []
    return ", ".join(roles)
