"""The layout in which a model lies as plain numbers, where that is another than its codes have.

Experts of gpt-oss are stored as blocks of codes with the input last, [experts, out, in], and as plain numbers the other way round. Where
plain numbers are written they have to lie as every loader of the plain model reads them.
"""

from __future__ import annotations

from dataclasses import replace

from paramdelta_dist.checkpoint.checkpoint import Checkpoint
from paramdelta_dist.checkpoint.families import Tensors, has_encoded
from paramdelta_dist.checkpoint.header import Encoded, StoredArray, Tensor
from paramdelta_dist.checkpoint.pieces import turned
from paramdelta_dist.kernels.encodings import Scaled

_BLOCKS = "_blocks"
"""End of the names of such codes."""


def with_plain_layout(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, whose tensors have the shapes that they have as plain numbers; the very same where all have."""
    if not has_encoded(checkpoint.tensors) or not any(map(_is_turned, checkpoint.tensors.values())):
        return checkpoint
    tensors = {name: turned(StoredArray(name, tensor)) if _is_turned(tensor) else tensor for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=Tensors(tensors))


def _is_turned(tensor: Tensor) -> bool:
    encoded = tensor.encoded
    return isinstance(encoded, Encoded) and isinstance(encoded.encoding, Scaled) and encoded.arrays[0].name.endswith(_BLOCKS)
