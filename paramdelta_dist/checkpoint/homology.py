"""Whether models fit together: same architecture, tensors, shapes and vocabulary. All that does not fit, in one report."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.config import flat_config
from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.extras import differences_noted, is_the_bases, variances_noted
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.meanings import Named, compare_meanings, unreadable
from paramdelta_dist.checkpoint.one_head import ties_noted
from paramdelta_dist.checkpoint.quantised import Quantised, find_quantised, left_over
from paramdelta_dist.checkpoint.refusals import way_out
from paramdelta_dist.checkpoint.special import follows_tokenizer
from paramdelta_dist.checkpoint.tokenizer import Tokenizers
from paramdelta_dist.checkpoint.vocabulary import NO_ANSWERS, Answers, Entries, differ_in_one, find_entries, input_embeddings
from paramdelta_dist.checkpoint.wrappers import same_class, same_language_model
from paramdelta_dist.errors import HomologyError
from paramdelta_dist.storage import StorageConfig, redact

MUST_AGREE = (
    "architectures", "model_type", "tie_word_embeddings", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "attention_bias", "mlp_bias", "num_experts",
    "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_intermediate_size",
    "shared_expert_intermediate_size", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
    "first_k_dense_replace", "layer_types", "n_embd", "n_layer", "n_head", "d_model", "d_ff", "num_layers", "num_heads",
    "state_size", "conv_kernel", "type_vocab_size",
)  # fmt: skip
"""Config fields that decide which tensors there are, their shapes, or what a row or column of one means."""

IGNORED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures_version", "auto_map")
"""Config fields that say nothing about the weights."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing in which a model differs from the base so that a merge would be wrong."""

    model: str
    """URL of the model that differs, without secrets."""
    subject: str
    """config, tensors, shapes, tokenizer, …"""
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class HomologyReport:
    """The result of comparing models with the base of the merge."""

    base: str
    models: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    notes: tuple[str, ...]
    """Differences that are allowed, and how each is settled."""
    vocabulary: tuple[tuple[str, str], ...] = ()
    """(mode, what it would do) for each mode of the recipe's `vocab`, where the vocabularies are not the same."""

    def require(self) -> None:
        """Raise HomologyError, with the first mismatches in its message, unless there are none."""
        if not self.mismatches:
            return
        lines = [f"{m.model}: {m.subject}: {m.problem}\n      → {m.remedy}" for m in self.mismatches[:20]]
        more = f"\n  … and {len(self.mismatches) - 20} more" if len(self.mismatches) > 20 else ""
        more += "".join(f"\n  with vocab: {mode}: {what}" for mode, what in self.vocabulary)
        count = "one difference" if len(self.mismatches) == 1 else f"{len(self.mismatches)} differences"
        raise HomologyError(f"the models are not homologous with the base {self.base}: {count}\n  - " + "\n  - ".join(lines) + more)


def _nothing(_: str) -> bool:
    return False


def compare(
    base: Checkpoint,
    others: Sequence[Checkpoint],
    storage: StorageConfig,
    *,
    vocab: str = "strict",
    copied: Callable[[str], bool] = _nothing,
    missing: str = "error",
    accept: Collection[str] = (),
    tokenizers: Tokenizers | None = None,
    written: Named | None = None,
    answers: Answers = NO_ANSWERS,
    follows: bool = False,
) -> HomologyReport:
    """Compare every model with the base. Reads tokenizer files, no weights; those that `tokenizers` knows are not read again.

    Shapes, names and the meaning of rows must agree; dtypes and file layout need not. With `vocab` "pad" only the rows that
    all models have must mean the same; with "by-token" every tokenizer must be readable, and say what the rows mean. Tensors that
    are `copied` from the base, by name, need not be alike, and where all that have a row for each token are, vocabularies need not either.
    Neither need those be there that follow from the config or are of a part that a model goes without, or with `missing` "copy" any. An
    adapter has the config and the tokenizer of the model it grew from, and of that any tensors. Fields of config.json that are named
    in `accept` may differ. `written` is the folder whose tokenizer is written where that is no model, `answers` what
    the recipe says of tensors that may have an entry for each token, and `follows` whether ids of special tokens follow another
    tokenizer than the base's.
    """
    tokenizers = tokenizers or Tokenizers(storage)
    adapters = [other for other in others if other.adapter]
    every, others = others, [other for other in others if not other.adapter]
    entries = entries_of((base, *others), answers, vocab, tokenizers)
    rowed = [*entries.known, *entries.asked]
    vocab = "ignored" if rowed and all(map(copied, rowed)) else vocab
    quantised = {model.url: _quantised(model, copied) for model in (base, *others)}
    mismatches = [mismatch for model in (base, *others) for mismatch in _quantised_mismatches(model, quantised[model.url])]
    for other in others:
        mismatches += _config_mismatches(base, other, vocab, accept)
        told = {name for url in (base.url, other.url) for found in quantised[url] for name in found.tensors}
        told |= other.pairing.told | other.pairing.absent | other.pairing.surplus
        mismatches += [Mismatch(redact(other.url), "layout", *problem) for problem in other.pairing.problems]
        mismatches += _tensor_mismatches(base, other, vocab, _or_in(told, copied), missing, entries)
    for adapter in adapters:
        mismatches += _adapter_mismatches(base, adapter, vocab, copied, missing, entries)
    if vocab in ("pad", "by-token"):
        mismatches += _entries_asked_about((base, *others), entries, copied)
    differences, notes = _vocabulary_differences(base, others, written, vocab, tokenizers, rowed)
    mismatches += differences
    if over := left_over(base.tensors, base.config):
        names = ", ".join(map(shown, over))
        notes.append(
            f"{redact(base.url)}: {names} of config.json speaks of a quantisation, and all tensors are plain numbers: it is left out"
        )
    notes += ties_noted(base, others, [redact(model.url) for model in (base, *others)])
    notes += [f"{redact(other.url)}: {note}" for other in others for note in other.pairing.notes]
    settled = [other.pairing.absent | other.pairing.told | other.pairing.surplus for other in others]
    named = [(redact(other.url), other.tensors, names) for other, names in zip(others, settled, strict=True)]
    notes += differences_noted(base.tensors, named, copied, missing)
    notes += variances_noted(base.tensors, copied) if others else []
    notes += _config_notes(base, others, follows or vocab == "by-token", accept)
    notes += [
        f"{redact(model.url)}: the folder {shown(folder)} may not be listed; no file of the model is looked for in it"
        for model in {model.url: model for model in (base, *others)}.values()
        for folder in model.closed
    ]
    notes += [f"{redact(other.url)}: {note}" for other in adapters if other.adapter for note in other.adapter.notes]
    return HomologyReport(redact(base.url), tuple(redact(other.url) for other in every), tuple(mismatches), tuple(notes))


def _quantised(model: Checkpoint, copied: Callable[[str], bool]) -> list[Quantised]:
    """The quantised matrices of a model that would be merged, if only in part."""
    return [found for found in find_quantised(model.tensors, model.config) if not all(map(copied, found.tensors))]


def _or_in(names: Collection[str], copied: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: name in names or copied(name)


def _quantised_mismatches(model: Checkpoint, quantised: Sequence[Quantised]) -> Iterator[Mismatch]:
    """One for each scheme."""
    for scheme in dict.fromkeys(found.scheme for found in quantised):
        names = [name for found in quantised if found.scheme == scheme for name in found.tensors]
        examples = ", ".join(map(shown, names[:4])) + (", …" if len(names) > 4 else "")
        yield Mismatch(
            redact(model.url),
            "quantised",
            f"{len(names)} tensors are quantised ({scheme}), such as {examples}: codes and scales cannot be merged as numbers",
            way_out(scheme),
        )


def _differing_fields(base: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = flat_config(base.config), flat_config(other.config)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and key.rpartition(".")[2] not in IGNORED:
            yield key, ours.get(key), theirs.get(key)


def _config_mismatches(base: Checkpoint, other: Checkpoint, vocab: str, accept: Collection[str]) -> list[Mismatch]:
    url = redact(other.url)
    if other.config is None or base.config is None:
        return []
    found = []
    for key, ours, theirs in _differing_fields(base, other):
        leaf = key.rpartition(".")[2]
        if is_accepted(key, accept) or _is_wrapped(leaf, ours, theirs, base.config, other.config):
            continue
        if leaf == "tie_word_embeddings":
            if base.tied_embeddings == other.tied_embeddings:
                continue
            remedy = (
                "write lm_head.weight out in the tied model and set its `tie_word_embeddings: false` (or tie the other), so that both "
                "store the same tensors"
            )
        elif leaf == "vocab_size" and vocab != "strict":
            continue
        elif ours is None or theirs is None:
            continue  # a field left at its default; shapes and names decide
        elif leaf in ("architectures", "model_type"):
            remedy = "only models of one architecture share a delta; check the path"
        elif leaf == "vocab_size":
            remedy = "choose `vocab: pad` or `vocab: by-token` in the recipe, or pick a post-trained model with the base's vocabulary"
        elif leaf in MUST_AGREE:
            remedy = "pick the post-trained model that grew from this architecture and size"
        else:
            continue
        remedy += f"; if you know that this difference means nothing here, write `accept: [{key}]` into the recipe"
        found.append(Mismatch(url, "config", f"{shown(key)} is {shown(theirs)}, the base has {shown(ours)}", remedy))
    return found


def is_accepted(key: str, accept: Collection[str]) -> bool:
    """Whether a recipe's `accept` names a field of the config, by its dotted name or the last part of it."""
    return key in accept or key.rpartition(".")[2] in accept


def _is_wrapped(leaf: str, ours: Any, theirs: Any, base: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a difference is only in what is around a model; its tensors say the rest."""
    if leaf == "architectures":
        return same_class(ours, theirs) or (base.get("model_type") != other.get("model_type") and same_language_model(base, other))
    return leaf == "model_type" and same_language_model(base, other)


def _config_notes(base: Checkpoint, others: Sequence[Checkpoint], follows: bool, accept: Collection[str]) -> list[str]:
    if base.config is None:
        return []
    differing: dict[str, Any] = {}
    for other in others:
        if other.config is not None:
            differing |= {
                key: ours
                for key, ours, theirs in _differing_fields(base, other)
                if (leaf := key.rpartition(".")[2]) not in MUST_AGREE
                or is_accepted(key, accept)
                or _is_wrapped(leaf, ours, theirs, base.config, other.config)
            }
    if follows:  # they follow the tokenizer that is written
        differing = {key: ours for key, ours in differing.items() if is_accepted(key, accept) or not follows_tokenizer(key)}
    items = sorted(differing.items())
    return [
        f"config field {shown(key)} differs between the models"
        + (", as `accept` allows" if is_accepted(key, accept) else "")
        + f"; taken from the base: {shown(value)}"
        for key, value in items
    ]


def _tensor_mismatches(
    base: Checkpoint, other: Checkpoint, vocab: str, copied: Callable[[str], bool], missing: str, entries: Entries
) -> list[Mismatch]:
    if other.tensors is base.tensors:
        return []
    url = redact(other.url)
    found = []
    held = [other.tensors.get(name) for name in base.tensors]
    for (name, tensor), theirs in zip(base.tensors.items(), held, strict=True):
        if (theirs is not None and theirs.shape == tensor.shape) or copied(name) or is_the_bases(name, tensor):
            continue
        if theirs is None:
            if missing == "error":
                found.append(Mismatch(url, "tensors", f"{shown(name)} is missing", _missing_remedy(name, base, other)))
        elif vocab != "strict" and differ_in_one(tensor.shape, theirs.shape, entries.known.get(name, entries.asked.get(name))):
            continue
        else:
            found.append(
                Mismatch(
                    url,
                    "shapes",
                    f"{shown(name)} is {list(theirs.shape)}, the base has {list(tensor.shape)}",
                    _shape_remedy(tensor.shape, theirs.shape, entries.known.get(name, entries.asked.get(name))),
                )
            )
    if missing == "copy" and not any(map(base.tensors.keys().__contains__, other.tensors)):
        remedy = "there is nothing to merge: use checkpoints of the same model saved the same way"
        found.append(Mismatch(url, "tensors", "no tensor of it has the name of one in the base", remedy))
    if missing == "copy" or len(other.tensors) == len(held) - held.count(None):
        return found
    extra = [
        name for name, tensor in other.tensors.items() if name not in base.tensors and not is_the_bases(name, tensor) and not copied(name)
    ]
    found += [Mismatch(url, "tensors", f"{shown(name)} is not in the base", _missing_remedy(name, other, base)) for name in extra]
    return found


def _adapter_mismatches(
    base: Checkpoint, adapter: Checkpoint, vocab: str, copied: Callable[[str], bool], missing: str, entries: Entries
) -> Iterator[Mismatch]:
    """Tensors of an adapter that the base has not, or in another shape."""
    url = redact(adapter.url)
    for name, theirs in adapter.tensors.items():
        tensor = base.tensors.get(name)
        if copied(name) or (tensor is not None and tensor.shape == theirs.shape):
            continue
        if tensor is not None:
            dimension = entries.known.get(name, entries.asked.get(name))
            if vocab != "strict" and differ_in_one(tensor.shape, theirs.shape, dimension):
                continue
            problem = f"{shown(name)} is {list(theirs.shape)}, the base has {list(tensor.shape)}"
            yield Mismatch(url, "shapes", problem, _shape_remedy(tensor.shape, theirs.shape, dimension))
        elif missing == "error":
            yield Mismatch(url, "tensors", f"{shown(name)} is not in the base", _missing_remedy(name, adapter, base))


def _missing_remedy(name: str, owner: Checkpoint, lacking: Checkpoint) -> str:
    if name.endswith("lm_head.weight") and lacking.tied_embeddings and not owner.tied_embeddings:
        return (
            "one model ties its output to its input embeddings and the other does not; store lm_head.weight in both, "
            "and set `tie_word_embeddings: false` in both"
        )
    if ".lora_" in name or "base_model.model." in name:
        return (
            "this is a LoRA adapter; merge it into its base first (peft: merge_and_unload), or name the folder that peft saved it to as "
            "the `adapter` of a delta"
        )
    if name.endswith(("_scale_inv", ".weight_scale", ".qweight", ".scales", ".absmax")):
        return "one model is quantised; use the unquantised checkpoint, or dequantise it first"
    return (
        "use checkpoints of the same model saved the same way (one may be fused, split or renamed by the library that saved it), or leave "
        "it out: `exclude` with a glob on its name, or `missing: copy` for all that not every model has, which takes the base's"
    )


def _shape_remedy(ours: tuple[int, ...], theirs: tuple[int, ...], dimension: int | None) -> str:
    if differ_in_one(ours, theirs, dimension):
        return (
            "the vocabularies have different sizes; choose `vocab: pad` or `vocab: by-token` in the recipe, or resize the embeddings of "
            "one so that the same row is the same token"
        )
    return "this is a model of another size or architecture; check the path"


def entries_of(models: Sequence[Checkpoint], answers: Answers, vocab: str, tokenizers: Tokenizers) -> Entries:
    """The tensors of the first model that have an entry for each token."""
    found = [tokenizers.of(model.url, model.side_files) for model in models]
    moved = vocab != "pad" and len({None if each is None else each.key for each in found}) > 1
    plain = tokenizers.vocabulary(found[0]).ids if vocab == "by-token" and moved and found[0] else None
    return find_entries([(model.config, model.tensors) for model in models], answers, tokens=len(plain or ()), moved=moved)


def _entries_asked_about(models: Sequence[Checkpoint], entries: Entries, copied: Callable[[str], bool]) -> Iterator[Mismatch]:
    """Tensors of which only a person knows whether their rows belong to tokens, and those that are known and cannot be put together."""
    base = models[0]
    if asked := [name for name in entries.asked if not copied(name)]:
        examples = ", ".join(f"{shown(name)} {list(base.tensors[name].shape)}" for name in asked[:3])
        named = ", ".join(json.dumps(glob.escape(name)) for name in asked[:3])
        more = f" and {len(asked) - 3} more" if len(asked) > 3 else ""
        yield Mismatch(
            redact(base.url),
            "vocabulary",
            f"of {len(asked)} tensors with a dimension of the size of a vocabulary, or a little more, nobody knows whether it is one of "
            f"tokens: {examples}{more}",
            f"say in the recipe which have an entry for each token, `vocabulary: {{tensors: [{named}]}}`, and which have not, "
            "`vocabulary: {others: […]}`, with globs on their names; or take the base's with `exclude`",
        )
    moved = {name for name in entries.known if DTYPES[base.tensors[name].dtype].kind is not Kind.FLOAT and not copied(name)}
    for name in sorted(moved):
        yield Mismatch(
            redact(base.url),
            "vocabulary",
            f"{shown(name)} holds integers with an entry for each token, which are not put together from several models",
            "leave it out with embeddings and output head (`exclude`) and set `tokenizer_from: base`",
        )


def _vocabulary_differences(
    base: Checkpoint, others: Sequence[Checkpoint], written: Named | None, vocab: str, tokenizers: Tokenizers, rowed: Sequence[str]
) -> tuple[list[Mismatch], list[str]]:
    """Differences of the vocabularies, that of a folder that is no model and whose tokenizer is written among them."""
    if vocab == "ignored":
        return [], []
    first, *rest = [Named(redact(model.url), tokenizers.of(model.url, model.side_files)) for model in (base, *others)]
    rest += [written] if written else []
    if vocab == "by-token":
        return [Mismatch(lacking.url, "tokenizer", *lacking[1:]) for lacking in unreadable([first, *rest], tokenizers)], []
    heights = _heights((base, *others))
    least, most = (min(heights), max(heights)) if heights else (None, None)
    differences, notes = compare_meanings(first, rest, tokenizers, rows=least if vocab == "pad" else None, all_rows=most, rowed=rowed)
    return [Mismatch(url, "tokenizer", problem, remedy) for url, problem, remedy in differences], notes


def _heights(models: Sequence[Checkpoint]) -> list[int]:
    """Rows that the input embeddings of each have; none where no tensor is known to be them."""
    name = input_embeddings(models[0].tensors)
    shapes = [model.tensors[name].shape for model in models if name in model.tensors] if name else []
    return [shape[0] for shape in shapes] if all(shapes) else []
