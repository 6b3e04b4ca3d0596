"""The models of a recipe: what they hold, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint, HomologyReport, compare, find_side_files, open_checkpoint, open_checkpoints
from paramdelta_dist.checkpoint.checkpoint import dtype_counts
from paramdelta_dist.checkpoint.rules import Selection
from paramdelta_dist.checkpoint.tokenizer import Vocabulary, read_vocabulary, vocabulary_at
from paramdelta_dist.checkpoint.vocabulary import is_vocabulary_tensor
from paramdelta_dist.errors import UsageError
from paramdelta_dist.planning.vocabulary import VOCABULARY_MODES, vocabulary_outcomes
from paramdelta_dist.recipe import Recipe
from paramdelta_dist.storage import StorageConfig, normalize, redact


def inspect(url: str, storage: StorageConfig | None = None) -> dict[str, Any]:
    """What a checkpoint holds, from its headers alone."""
    checkpoint = open_checkpoint(normalize(url), storage or StorageConfig())
    return {
        "url": redact(checkpoint.url),
        "architecture": checkpoint.architecture,
        "model_type": (checkpoint.config or {}).get("model_type"),
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": dtype_counts(checkpoint),
        "tied_embeddings": checkpoint.tied_embeddings,
        "files": [
            {
                "name": file.name,
                "size": file.identity.size,
                "tag": file.identity.tag,
                "tensors": sum(tensor.file == position for tensor in checkpoint.tensors.values()),
            }
            for position, file in enumerate(checkpoint.files)
        ],
        "side_files": list(checkpoint.side_files),
        "orphans": list(checkpoint.orphans),
        "unlisted": list(checkpoint.closed),
        "tensor_list": [
            {"name": name, "dtype": t.dtype, "shape": list(t.shape), "file": checkpoint.files[t.file].name}
            for name, t in checkpoint.tensors.items()
        ],
    }


def open_models(recipe: Recipe) -> dict[str, Checkpoint]:
    """Every model of a recipe, opened concurrently, by URL."""
    return open_checkpoints(recipe.models, recipe.storage_config)


def check(recipe: Recipe, models: Mapping[str, Checkpoint] | None = None) -> HomologyReport:
    """Whether the models of a recipe fit together. Reads headers, configs and tokenizers."""
    opened = models or open_models(recipe)
    base, selection = opened[recipe.base], Selection(recipe.include, recipe.exclude)

    def left_out(name: str) -> bool:
        return not selection.has(name)

    def compared(vocab: str) -> HomologyReport:
        others = [opened[url] for url in recipe.models[1:]]
        return compare(base, others, recipe.storage_config, vocab=vocab, copied=left_out)

    if any(is_vocabulary_tensor(name) and left_out(name) for name in base.tensors):
        _require_the_bases_tokenizer(recipe, base)
    report = compared(recipe.vocab)
    if recipe.vocab == "strict" and not any(found.subject in ("tokenizer", "shapes") for found in report.mismatches):
        return report
    modes = [mode for mode in VOCABULARY_MODES if not (report if mode == recipe.vocab else compared(mode)).mismatches]
    return replace(report, vocabulary=vocabulary_outcomes(recipe, opened, read_vocabularies(recipe, opened), modes))


def _require_the_bases_tokenizer(recipe: Recipe, base: Checkpoint) -> None:
    """Raise UsageError where rows of the base would be written with a tokenizer that gives their numbers to other tokens."""
    storage, source = recipe.storage_config, recipe.tokenizer_url
    if source == recipe.base:
        return
    ours, theirs = read_vocabulary(base, storage), vocabulary_at(source, find_side_files(source, storage), storage)
    if ours is None or theirs is None or ours.digest == theirs.digest or (ours.tokens and ours.tokens == theirs.tokens):
        return
    raise UsageError(
        f"embeddings or output head are left out and so the base's, but {redact(source)}, whose tokenizer is written, has other tokens "
        "than the base: set `tokenizer_from: base`"
    )


def read_vocabularies(recipe: Recipe, models: Mapping[str, Checkpoint]) -> dict[str, Vocabulary | None]:
    """The vocabulary of each model, and of the folder whose tokenizer is written, by URL."""
    storage, source = recipe.storage_config, recipe.tokenizer_url
    found = {url: read_vocabulary(model, storage) for url, model in models.items()}
    if source not in found:
        found[source] = vocabulary_at(source, find_side_files(source, storage), storage)
    return found
