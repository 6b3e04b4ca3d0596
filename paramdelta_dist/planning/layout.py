"""The output's layout, to the last byte, before a weight is read: which tensor in which shard at which offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paramdelta_dist.checkpoint.checkpoint import Companion
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.header import render_header
from paramdelta_dist.checkpoint.index import SINGLE_NAME


class OutputTensor(NamedTuple):
    """A tensor as it will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


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

    Inside a shard wider elements come first, so that every tensor is aligned to its element size.
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
    width = {dtype: DTYPES[dtype].bits for dtype in {tensor.dtype for tensor in group}}
    ordered = tuple(sorted(group, key=lambda tensor: -width[tensor.dtype]))
    named = [each._replace(name=companions[each.name].name) for each in ordered] if companions else ordered
    header = render_header(named)
    return ShardLayout(file, header, ordered, len(header) + sum(tensor.nbytes for tensor in ordered))
