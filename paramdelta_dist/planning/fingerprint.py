"""The fingerprint of a merge: a digest of all that decides the bytes of its output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from paramdelta_dist.methods import find_method
from paramdelta_dist.planning.plan import FORMAT, SideFile
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.row_map import RowMap
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import redact


def located(fingerprint: str, locations: Mapping[str, Mapping[str, str]]) -> str:
    """The fingerprint of a merge whose inputs live where `locations` say, by redacted URL; `fingerprint` itself where they say nothing.

    Two stores may hold other bytes under the same names, sizes and tags: not every store makes tags of bytes.
    """
    if not locations:
        return fingerprint
    text = json.dumps([fingerprint, locations], sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=20).hexdigest()


def fingerprint(
    recipe: Recipe,
    models: Sequence[str],
    calls: Sequence[MethodCall],
    call_of: Mapping[str, int],
    inputs: Mapping[str, Any],
    side_files: Sequence[SideFile],
    maps: Mapping[str, RowMap],
    changes: Mapping[str, Any],
    twins: Mapping[str, str],
    without: Sequence[str],
    encodings: Sequence[Sequence[tuple[str, int]]] = (),
) -> str:
    document: dict[str, Any] = {
        "format": FORMAT,
        "method": [recipe.method, find_method(recipe.method).version],
        "settings": [[call.based, call.parameters, [list(term) for term in call.terms]] for call in calls],
        "ways": list(call_of.values()) if len(calls) > 1 else [],
        **({"selection": [list(recipe.include), list(recipe.exclude)]} if recipe.include or recipe.exclude else {}),
        **({"missing": recipe.missing} if recipe.missing != "error" else {}),
        **({"accept": sorted(set(recipe.accept))} if recipe.accept else {}),
        **({"vocabulary": [sorted(set(globs)) for globs in recipe.answers]} if any(recipe.answers) else {}),
        "dtype": recipe.dtype,
        "shard_size": recipe.shard_size,
        "allow_nonfinite": recipe.allow_nonfinite,
        "inputs": [[redact(url), inputs[url]] for url in models],
        "side_files": [[redact(file.model), file.name, file.identity.size, file.identity.tag] for file in side_files],
    }
    if any(encodings):
        document["encodings"] = [recipe.quantization, [list(map(list, each)) for each in encodings]]
    if without:
        document["config_without"] = list(without)
    if twins and find_method(recipe.method).weights is None:  # a plain sum is the same under any name
        document["twins"] = sorted(twins.items())
    if maps:
        digests = {rows: blake2b(_ways(rows).encode() + rows.table, digest_size=20).hexdigest() for rows in set(maps.values())}
        document["rows"] = [[name, rows.rows, digests[rows]] for name, rows in sorted(maps.items())]
    if maps or changes:
        document["config"] = dict(changes)
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return blake2b(text, digest_size=20).hexdigest()


def _ways(rows: RowMap) -> str:
    """How the rows of a map are made, in the words in which fingerprints have always had it."""
    ways = [f"Way(merged={source.merged}, models={source.models})" for source in rows.sources]
    return f"({', '.join(ways)}{',' if len(ways) == 1 else ''})"
