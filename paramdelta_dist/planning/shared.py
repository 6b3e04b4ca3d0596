"""What tensors of a plan have in common, made once for all of them: giants have hundreds of thousands, and few kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramdelta_dist.checkpoint.header import Encoded, StoredArray, Tensor
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.planning.plan import EncodedOutput, WrittenArray
from paramdelta_dist.planning.sources import EncodedPlace, Place

_Arrays = tuple[tuple[int, int], ...]
"""The place of each array, told from that of the first."""


class Shared:
    """Values that are equal are the same object. It lasts no longer than the models whose encodings it tells apart by their addresses."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, tuple[int, ...], _Arrays], EncodedPlace] = {}
        self._outputs: dict[tuple[int, tuple[WrittenArray, ...]], EncodedOutput] = {}

    def place(self, tensor: Tensor, encoded: Encoded, places: Mapping[int, int]) -> EncodedPlace:
        """The arrays of a tensor whose files have these positions among the inputs."""
        _, shape, file, start, *_ = tensor
        encoding, first = encoded.encoding, places[file]
        arrays = tuple([(places[array[2]] - first, array[3] - start) for _, array in encoded.arrays[: encoding.arrays]])
        key = (id(encoding), shape, arrays)
        if (found := self._places.get(key)) is None:
            found = self._places[key] = EncodedPlace(encoding, shape, 0, tuple([Place(*each) for each in arrays]))
        return found

    def output(self, name: str, encoding: Scaled, arrays: Sequence[StoredArray]) -> EncodedOutput:
        """The arrays that a tensor of this name is written as."""
        written = tuple([WrittenArray.of(name, array, tensor.stop - tensor.start) for array, tensor in arrays])
        key = (id(encoding), written)
        if (found := self._outputs.get(key)) is None:
            found = self._outputs[key] = EncodedOutput(encoding, written)
        return found
