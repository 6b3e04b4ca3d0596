"""Torch tensors over memory that stores have filled, and how torch is used: one thread, a compute dtype."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch

from paramdelta_dist.kernels.raw import RawElements

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}

# Stores hand out read-only memory; nothing here writes to an input, so torch need not warn that it could.
warnings.filterwarnings("ignore", message="The given buffer is not writable")


def compute_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """float32 where inputs and output have 16 bits, float64 where one of them is wider: arithmetic at least twice as
    wide as what is read and written, so that the one rounding at the end is the only one that shows."""
    return torch.float64 if any(dtype.itemsize > 2 for dtype in dtypes) else torch.float32


def one_thread() -> None:
    """Compute in the calling thread alone: parallelism is threads that make tiles, and more inside each operation would
    fight over the same cores."""
    torch.set_num_threads(1)


def values_of(tensor: torch.Tensor) -> RawElements:
    """A contiguous tensor in host memory as the compiled kernels see it; no copy."""
    return RawElements(tensor.view(torch.uint8).numpy().data, _NAMES[tensor.dtype])


def view(buffer: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """A 1-D tensor over the memory of `buffer`, whose length is a multiple of the item size; copied only if unaligned."""
    if len(buffer) == 0:
        return torch.empty(0, dtype=dtype)
    tensor = torch.frombuffer(buffer, dtype=torch.uint8)
    if tensor.data_ptr() % dtype.itemsize:
        tensor = tensor.clone()
    return tensor.view(dtype)
