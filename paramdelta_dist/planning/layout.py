"""The output's layout, to the last byte, before a weight is read: which tensor in which shard at which offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paramdelta_dist.checkpoint.checkpoint import Companion
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.header import StoredArray, render_header, shown
from paramdelta_dist.checkpoint.index import SINGLE_NAME
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.kernels.encodings import Scaled


class OutputTensor(NamedTuple):
    """A tensor as it will be written."""

    name: str
    dtype: str
    """Of an encoded one, that of its numbers."""
    shape: tuple[int, ...]
    nbytes: int
    """Of all that is written of it."""
    encoding: Scaled | None = None
    arrays: tuple[StoredArray, ...] = ()
    """Those that it is written as, where it is encoded: codes and scales, as the base has them."""
    array_of: str = ""
    """The tensor that this is one of the arrays of, where it is copied as such."""
    counted: int | None = None
    """Parameters that it counts as, where these are not its elements."""

    @property
    def alignment(self) -> int:
        """Bits that the place of each of its arrays has to be a multiple of."""
        if self.encoding is None:
            return DTYPES[self.dtype].bits
        return max([DTYPES[held.dtype].bits for _, held in self.arrays])


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """One output file: its header, ready to write, and its tensors in the order of their bytes."""

    file: str
    header: bytes
    """Length field and JSON; the first tensor starts right behind it."""
    tensors: tuple[OutputTensor, ...]
    size: int
    """Bytes of the whole file."""


def lay_out(
    tensors: Iterable[OutputTensor], *, shard_size: int, companions: Mapping[str, Companion] | None = None
) -> tuple[ShardLayout, ...]:
    """Fill shards with tensors in the order given, each with at most `shard_size` bytes of data unless it holds a
    single larger tensor. After them come the files beside the model, which hold the tensors that are `companions`, by name.

    Inside a shard wider elements come first, so that every tensor is aligned to its element size. Raises CheckpointError where
    it cannot be.
    """
    groups: list[list[OutputTensor]] = [[]]
    apart: dict[str, list[OutputTensor]] = {}
    filled = 0
    for tensor in tensors:
        if companions and tensor.name in companions:
            apart.setdefault(companions[tensor.name].file, []).append(tensor)
            continue
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    numbered = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    names = numbered if len(groups) > 1 else [SINGLE_NAME]
    own = [_shard(group, name, {}) for group, name in zip(groups, names, strict=True)]
    return (*own, *(_shard(group, file, companions or {}) for file, group in apart.items()))


def _shard(group: list[OutputTensor], file: str, companions: Mapping[str, Companion]) -> ShardLayout:
    ordered = tuple(sorted(group, key=_order))
    named = [each._replace(name=companions[each.name].name) for each in ordered] if companions else ordered
    entries = _entries(named)
    header = render_header(entries)
    _require_aligned(entries, len(header))
    return ShardLayout(file, header, ordered, len(header) + sum(tensor.nbytes for tensor in ordered))


def _entries(tensors: Iterable[OutputTensor]) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, dtype, shape, bytes) of everything that a header has of some tensors."""
    entries = []
    for tensor in tensors:
        if tensor.encoding is None:
            entries.append(tensor[:4])
        for name, (dtype, shape, _, start, stop, _) in tensor.arrays:
            entries.append((name, dtype, shape, stop - start))
    return entries


def _order(tensor: OutputTensor) -> tuple[int, bool]:
    """Wider ones first; of those that are encoded, which end anywhere, the ones that leave what follows unaligned last."""
    alignment = tensor.alignment
    return -alignment, tensor.encoding is not None and tensor.nbytes * 8 % alignment != 0


def _require_aligned(entries: Iterable[tuple[str, str, tuple[int, ...], int]], start: int) -> None:
    """Raise CheckpointError where codes have a number of bytes behind which nothing can lie as it should."""
    bits = {dtype: form.bits for dtype, form in DTYPES.items()}
    for name, dtype, _, nbytes in entries:
        if nbytes and start * 8 % bits[dtype]:
            raise CheckpointError(
                f"tensor {shown(name)} ({dtype}) would lie at a byte that no loader can read it from, because of the odd size of quantised "
                "tensors before it: `quantization: none` writes plain numbers"
            )
        start += nbytes
