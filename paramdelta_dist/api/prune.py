"""Old outputs of a template, which every night would otherwise pay for: found, and on request removed."""

from __future__ import annotations

from typing import Any

from paramdelta_dist.errors import UsageError
from paramdelta_dist.output.prune import Output, choose
from paramdelta_dist.output.prune import prune as prune_output
from paramdelta_dist.output.series import Series
from paramdelta_dist.recipe.output_template import check_template, folder_of, is_template
from paramdelta_dist.storage import StorageConfig, normalize, open_store, redact


def prune(template: str, *, keep: int, remove: bool = False, storage: StorageConfig | None = None) -> dict[str, Any]:
    """Which outputs of a template are not among the `keep` newest; with `remove` they are removed.

    Never removed are an output that a pointer beside it names, one that may still be at work, a folder in which no merge of
    ours into this place left its plan, and in an output of ours the files that are not its own. A removal that is killed at any
    moment leaves nothing that looks like a model; the next one ends it. Raises UsageError where `template` is none, or `keep` is
    less than one, OutputOccupied where what the pointers say cannot be known.
    """
    template = normalize(check_template(template))
    if not is_template(template):
        raise UsageError(f"{redact(template)} is one output; prune takes what a recipe's `output` says, with {{date}} or {{inputs}} in it")
    if keep < 1:
        raise UsageError(f"--keep {keep}: at least one output has to stay")
    return prune_series(Series(template, storage or StorageConfig()), keep=keep, remove=remove)


def prune_series(series: Series, *, keep: int, remove: bool) -> dict[str, Any]:
    """The same of a series, by its clock."""
    store = open_store(folder_of(series.template), series.storage)
    choice = choose(series, store, keep=keep)
    kept = [{**_described(store.url, output), "why": why} for output, why in choice.keep.items()]
    pruned = []
    for output in choice.prune:
        if remove and not prune_output(series, store, output, choice.pointers):
            kept.append({**_described(store.url, output), "why": "a pointer names it since a moment ago"})
        else:
            pruned.append(output)
    return {
        "output": redact(series.template),
        "removed": remove,
        "pruned": [_described(store.url, output) for output in pruned],
        "kept": kept,
        "left": [
            *({"output": f"{store.url}/{name}", "why": "no merge into this place made it"} for name in choice.foreign),
            *(
                {"output": f"{store.url}/{each.name}", "why": "files of others", "files": list(each.strangers)}
                for each in pruned
                if each.strangers
            ),
        ],
    }


def _described(folder: str, output: Output) -> dict[str, Any]:
    return {
        "output": f"{folder}/{output.name}",
        "state": output.state,
        "date": output.day and output.day.isoformat(),
        "committed": output.committed or None,
        "fingerprint": output.fingerprint,
        "bytes": output.size,
    }
