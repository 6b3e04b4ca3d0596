"""The output's layout, to the last byte, before a weight is read: which tensor in which shard at which offset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

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


def lay_out(tensors: Iterable[OutputTensor], *, shard_size: int) -> tuple[ShardLayout, ...]:
    """Fill shards with tensors in the order given, each with at most `shard_size` bytes of data unless it holds a
    single larger tensor.

    Inside a shard wider elements come first, so that every tensor is aligned to its element size.
    """
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return tuple(_shard(group, number, len(groups)) for number, group in enumerate(groups, start=1))


def _shard(group: list[OutputTensor], number: int, count: int) -> ShardLayout:
    width = {dtype: DTYPES[dtype].bits for dtype in {tensor.dtype for tensor in group}}
    ordered = tuple(sorted(group, key=lambda tensor: -width[tensor.dtype]))
    header = render_header(ordered)
    file = SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    return ShardLayout(file, header, ordered, len(header) + sum(tensor.nbytes for tensor in ordered))
