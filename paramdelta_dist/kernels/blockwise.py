"""Running the functions of a method over blocks: scratch that is kept, one rounding at the end, NaN as one NaN. One runner a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from paramdelta_dist.kernels.blocks import Block, Operand, TensorInfo
from paramdelta_dist.kernels.elementwise import overflow_limit, surely_below
from paramdelta_dist.kernels.torch_views import compute_dtype

Inputs = Sequence[tuple[torch.Tensor, torch.Tensor | None]]
"""(post, base) of each term, as stored; base None where models are merged as they are."""


class BlockRunner:
    """Calls `collect` and `apply` functions of one method on blocks in host memory."""

    def __init__(self, scratch: int, device: torch.device, *, wide: bool) -> None:
        """`scratch` blocks are handed to each function; `wide` computes in float64 whatever the dtypes."""
        self._scratch_blocks, self._device, self._wide = scratch, device, wide
        self._memory: dict[torch.dtype, list[torch.Tensor]] = {}

    def collect(
        self, function: Callable[[Block], Any], info: TensorInfo, first: int, out: torch.dtype, base: torch.Tensor | None, terms: Inputs
    ) -> Any:
        """What `function` finds in the block that begins at element `first`, on the CPU; `out` is the dtype of the result to come."""
        n = terms[0][0].numel() if terms else 0
        return _on_cpu(function(self._block(info, first, n, out, base, terms)))

    def apply(
        self, function: Callable[[Block], None], info: TensorInfo, first: int, out: torch.Tensor, base: torch.Tensor | None, terms: Inputs
    ) -> tuple[int, int]:
        """Fill out[n] with what `function` makes of the block. Returns how many elements are not finite, and the place of the first."""
        block = self._block(info, first, out.numel(), out.dtype, base, terms)
        function(block)
        unusual = not surely_below(block.acc, overflow_limit(out.dtype, block.acc.dtype))
        out.copy_(block.acc)
        if not unusual:
            return 0, 0
        out.masked_fill_(out.isnan(), math.nan)
        wrong = torch.nonzero(~torch.isfinite(out))
        return len(wrong), int(wrong[0]) if len(wrong) else 0

    def _block(self, info: TensorInfo, first: int, n: int, out: torch.dtype, base: torch.Tensor | None, terms: Inputs) -> Block:
        tensors = [tensor for pair in ((base, None), *terms) for tensor in pair if tensor is not None]
        dtype = torch.float64 if self._wide else compute_dtype([out, *(tensor.dtype for tensor in tensors)])
        acc, *scratch = (block[:n] for block in self._blocks(dtype, n))
        if base is not None:
            base = base.to(self._device)
            acc.copy_(base)
        operands = tuple(
            Operand(post.to(self._device), None if old is None else old.to(self._device), own, number)
            for (post, old), own, number in zip(terms, info.terms, info.positions, strict=True)
        )
        return Block(info, first, base, operands, acc, scratch)

    def _blocks(self, dtype: torch.dtype, n: int) -> list[torch.Tensor]:
        held = self._memory.get(dtype)
        if held is None or held[0].numel() < n:
            self._memory.pop(dtype, None)
            held = self._memory[dtype] = [torch.empty(n, dtype=dtype, device=self._device) for _ in range(1 + self._scratch_blocks)]
        return held


def _on_cpu(value: Any) -> Any:
    """A partial with its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, (tuple, list)):
        return type(value)(_on_cpu(each) for each in value)
    return {key: _on_cpu(each) for key, each in value.items()} if isinstance(value, dict) else value
