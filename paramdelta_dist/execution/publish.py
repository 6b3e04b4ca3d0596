"""From shards to a model: side files, index, card, report, then config.json, then the commit, in this order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cache
from typing import Any

import yaml
from blake3 import blake3

from paramdelta_dist._version import __version__
from paramdelta_dist.checkpoint.checkpoint import CONFIG_NAME
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.index import INDEX_NAME, render_index
from paramdelta_dist.checkpoint.sidefiles import MAX_SIDE_FILE
from paramdelta_dist.execution.documents import render_document
from paramdelta_dist.execution.output import CARD, REPORT, commit
from paramdelta_dist.execution.receipts import Receipt
from paramdelta_dist.methods import find_method
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.redaction import redacted
from paramdelta_dist.storage import StorageConfig, Store, open_store, redact

SideFiles = Callable[[str, str], bytes]
"""The content of a model's side file, by the model's URL and the file's name."""


def side_files(storage: StorageConfig) -> SideFiles:
    """Reads each side file once, however many outputs it is copied to."""
    return cache(lambda url, name: open_store(url, storage).read(name, limit=MAX_SIDE_FILE))


def publish(store: Store, plan: MergePlan, receipts: Mapping[str, Receipt], report: Mapping[str, Any], copies: SideFiles) -> None:
    """Make the output a model. Every shard of the plan has its receipt; `copies` are what is copied beside the weights.

    Until config.json, the last but one write, no loader opens the folder; until the commit, a run may start over.
    """
    files: dict[str, dict[str, Any]] = {
        file: {"size": receipt.size, "tag": receipt.tag, "digest": receipt.digest} for file, receipt in sorted(receipts.items())
    }

    def write(name: str, data: bytes, source: str | None = None) -> None:
        identity = store.write(name, data)
        origin = {"from": source} if source else {}
        files[name] = {"size": identity.size, "tag": identity.tag, "digest": blake3(data).hexdigest(), **origin}

    config = b""
    for url, name in plan.side_files:
        data = copies(url, name)
        if name == CONFIG_NAME:
            config = _config(data, plan.recipe.dtype, plan.config_changes)
        else:
            write(name, data, redact(url))
    if len(plan.shards) > 1:
        weight_map = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        write(INDEX_NAME, render_index(weight_map, total_size=plan.total_size, total_parameters=plan.total_parameters))
    write(CARD, redacted(_card(plan)).encode(errors="backslashreplace"))
    store.write(REPORT, render_document(report))
    write(CONFIG_NAME, config, redact(plan.recipe.base))
    document = {
        "fingerprint": plan.fingerprint,
        "version": __version__,
        "committed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "recipe": plan.recipe.as_document(),
        "files": files,
    }
    commit(store, document)


def _config(data: bytes, dtype: str | None, changes: Mapping[str, Any]) -> bytes:
    """The base's config.json, with the dtype corrected when the recipe chose another one and what a changed vocabulary
    changes; else byte for byte."""
    if dtype is None and not changes:
        return data
    config = json.loads(data)
    if dtype is not None:
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = DTYPES[dtype].torch
    for name, value in changes.items():
        *sections, leaf = name.split(".")
        table = config
        for section in sections:
            table = table.setdefault(section, {})
        table[leaf] = value
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _card(plan: MergePlan) -> str:
    """The model card: recipe and provenance, in the form the Hugging Face hub reads."""
    recipe = plan.recipe
    method = find_method(recipe.method)
    front = {
        "base_model": [redact(url) for url in recipe.models],
        "library_name": "transformers",
        "tags": ["merge", "paramdelta-dist", method.name],
    }
    rows = [
        f"| {redact(url)} | {_roles(plan, url)} | {len(files)} | {sum(size for size, _ in files.values()):,} |"
        for url, files in plan.inputs.items()
    ]
    copied = [f"- `{name}` from {redact(url)}" for url, name in plan.side_files]
    document = yaml.safe_dump(recipe.as_document(), sort_keys=False, allow_unicode=True)
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


def _roles(plan: MergePlan, url: str) -> str:
    position = plan.models.index(url)
    based = any(settings.based for settings in plan.settings) or not plan.settings
    roles = (["base"] if based else ["structure"]) if position == 0 else []
    for number, term in enumerate(plan.terms):
        own = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in term.values.items())
        own = f" ({own})" if own else ""
        noun = f"model {number}" if term.base is None else f"post of delta {number}"
        roles += [noun + own] if term.post == position else []
        roles += [f"base of delta {number}"] if term.base == position and position != 0 else []
    return ", ".join(roles)
