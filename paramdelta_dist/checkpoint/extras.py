"""Tensors that not all models have, or that none has to have: what follows from the config, what counts steps, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from paramdelta_dist.checkpoint.dtypes import DTYPES, Kind
from paramdelta_dist.checkpoint.families import names_that
from paramdelta_dist.checkpoint.header import Tensor, shown

_DERIVED = (
    ".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias", ".rope.freqs", ".rotary_pos_emb.inv_freq",
    ".rotary_emb.cos_cached", ".rotary_emb.sin_cached",
)  # fmt: skip
"""Ends of names, whatever is in them."""
_MASKS = ("attn.bias", "attention.bias", "attn.attention.bias", "attn_mask", "causal_mask")
"""Of tensors that are masks where they have the shape of one or hold no floating-point numbers; else they are biases."""
_POSITIONS = ("position_ids", "token_type_ids", "relative_position_index", "relative_coords_table")
_COUNTERS = ("num_batches_tracked", "global_step", "num_updates", "num_steps", "n_steps", "step", "steps", "iteration", "iterations")
"""Of tensors that count steps where they are one integer."""


_VARIANCES = ("running_var", "moving_variance")
"""Of tensors that batch normalisation has measured, and takes the root of."""


def _dotted(endings: Sequence[str]) -> tuple[str, ...]:
    return tuple(f".{ending}" for ending in endings)


_MASK_ENDS, _COUNTER_ENDS = _dotted(_MASKS), _dotted(_COUNTERS)
_ENDS = (*_MASK_ENDS, *_COUNTER_ENDS, *_dotted(_POSITIONS))
"""Endings of names, with a dot before them: one test in C, since it is asked of every tensor of every model."""


_VARIANCE_ENDS = _dotted(_VARIANCES)


def is_variance(name: str) -> bool:
    """Whether a tensor holds variances: numbers of which none is below zero."""
    return f".{name}".endswith(_VARIANCE_ENDS)


def without_variances(names: Iterable[str]) -> str:
    """The way on without merging these, nor the means that go with them."""
    globs = sorted({f"'*{name.rpartition('.')[2].partition('_')[0]}_[mv]*'" for name in names})
    return f"`exclude: [{', '.join(globs)}]` takes the base's means and variances"


def variances_noted(tensors: Mapping[str, Tensor], left_out: Callable[[str], bool]) -> Iterator[str]:
    """Notes about variances that are merged."""
    found = [name for name in tensors if is_variance(name) and not left_out(name)]
    if found:
        yield (
            f"{_some(found)} of variances that batch normalisation measured: merged as weights are; one that comes out below zero, which "
            f"no model can use, is refused when it is computed; {without_variances(found)}"
        )


def is_the_bases(name: str, tensor: Tensor | None) -> bool:
    """Whether a tensor follows from the config (positions, masks, frequencies) or counts the steps of a training: it is never
    merged, and the base's, if it has one, whatever the others hold."""
    if name.endswith(_DERIVED) or (tensor is not None and "relative_coords_table" in name):
        return True
    dotted = f".{name}"
    if tensor is None or not dotted.endswith(_ENDS):
        return False
    if DTYPES[tensor.dtype].kind is not Kind.FLOAT:
        return tensor.parameters == 1 or not dotted.endswith(_COUNTER_ENDS)
    return dotted.endswith(_MASK_ENDS) and len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]


def the_bases(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors of which `is_the_bases` is true."""
    return [name for name in names_that(_may_be, tensors) if is_the_bases(name, tensors[name])]


def _may_be(name: str) -> bool:
    return name.endswith(_DERIVED) or "relative_coords_table" in name or f".{name}".endswith(_ENDS)


def not_in_all(models: Sequence[Mapping[str, Tensor]]) -> frozenset[str]:
    """Names of the tensors that some of the models have and others lack."""
    names = [tensors.keys() for tensors in {id(tensors): tensors for tensors in models}.values()]
    return frozenset().union(*names).difference(frozenset(names[0]).intersection(*names[1:]))


def differences_noted(
    base: Mapping[str, Tensor],
    others: Sequence[tuple[str, Mapping[str, Tensor], Collection[str]]],
    left_out: Callable[[str], bool],
    missing: str,
) -> Iterator[str]:
    """Notes about tensors that not all models have and nobody has to be asked about; `others` by what they are called, each with the
    names of those that were spoken of already."""
    for url, tensors, told in others:
        if tensors is base:
            continue
        lacking = [name for name in base if name not in tensors and name not in told and not left_out(name)]
        beyond = [name for name in tensors if name not in base and name not in told and not left_out(name)]
        derived = [name for name in lacking if is_the_bases(name, base[name])]
        surplus = [name for name in beyond if is_the_bases(name, tensors[name])]
        if derived:
            yield f"{url} lacks {_some(derived)}, which follow from the config or count steps: copied from the base, as `exclude` would"
        if surplus:
            yield f"{url} has {_some(surplus)}, which follow from the config or count steps: not in the base, left out, as `exclude` would"
        if missing == "copy":
            if copied := [name for name in lacking if name not in set(derived)]:
                yield f"{url} lacks {_some(copied)}: copied from the base, as `missing: copy` says"
            if dropped := [name for name in beyond if name not in set(surplus)]:
                yield f"{url} has {_some(dropped)}, not in the base: left out, as `missing: copy` says"


def _some(names: Sequence[str]) -> str:
    count = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    return f"{count} ({', '.join(map(shown, names[:3]))}{', …' if len(names) > 3 else ''})"
