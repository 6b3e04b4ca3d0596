"""Notes about what is quantised: in which schemes models are, and what of them is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.families import has_encoded
from paramdelta_dist.checkpoint.header import Encoded, Tensor
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.storage import redact


def schemes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of matrices of a model that are quantised in each scheme, by its title; the most frequent first."""
    if not has_encoded(tensors):
        return {}
    found = Counter(tensor.encoded.encoding for tensor in tensors.values() if isinstance(tensor.encoded, Encoded))
    titles: Counter[str] = Counter()
    for encoding, count in found.items():
        if isinstance(encoding, Scaled):
            titles[encoding.title] += count
    return dict(titles.most_common())


def schemes_noted(base: Checkpoint, others: Sequence[Checkpoint], *, keeps: bool) -> Iterator[str]:
    """Notes for each model with quantised matrices. `keeps` tells that the base's schemes are written."""
    ours = schemes_of(base.tensors)
    if ours:
        written = "written in the same scheme" if keeps else "written as plain numbers"
        yield f"{redact(base.url)}: {_counted(ours)}: {written}"
        if keeps and (along := _of_activations(base.tensors)):
            yield f"{redact(base.url)}: {along:,} scales of activations are the base's: they were measured on its activations"
    for other in {model.url: model for model in others}.values():
        theirs = schemes_of(other.tensors)
        if theirs and theirs.keys() != ours.keys():
            yield f"{redact(other.url)}: {_counted(theirs)}: merged as the numbers that they stand for"


def _counted(schemes: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} matrices are quantised ({title})" for title, count in schemes.items())


def _of_activations(tensors: Mapping[str, Tensor]) -> int:
    return sum(
        array.name.endswith(("input_scale", "activation_scale", "input_global_scale", "qscale_act"))
        for tensor in tensors.values()
        if isinstance(tensor.encoded, Encoded) and isinstance(tensor.encoded.encoding, Scaled)
        for array in tensor.encoded.arrays[tensor.encoded.encoding.arrays :]
    )
