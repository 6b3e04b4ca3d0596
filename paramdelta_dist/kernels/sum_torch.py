"""Adding weighted deltas in plain torch: what a GPU does where Triton is missing, to the bytes of sum_cpu. Memory is made once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from paramdelta_dist.kernels.blocks import METHOD_BLOCK
from paramdelta_dist.kernels.elementwise import SCRATCH, add_delta
from paramdelta_dist.kernels.torch_views import compute_dtype

DEVICE_BLOCK = 1 << 22
"""Elements of a block on a GPU: copies long enough to hide what starting one costs."""

DEVICE_PADDING = 1 << 11
"""On a GPU a block has room for a multiple of this many elements, what one program of the fused kernel computes."""


@dataclass
class Merger:
    """base + Σ weight · (post − base of the post), over runs of elements. Keeps its scratch between them; one per worker thread."""

    weights: Sequence[float]
    """Of each delta; may be changed between runs."""
    device: torch.device
    _blocks: dict[torch.dtype, list[torch.Tensor]] = field(default_factory=dict)

    def merge(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        deltas: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[int, int]:
        """Write the merge of base[n] and the (post[n], base[n]) pairs to out[n].

        Returns how many elements are not finite in `out`'s dtype and the position of the first (0 if there is none).
        All elements are written either way; every NaN is written as the positive quiet one without payload, because
        its bits would otherwise be those of the instructions that happened to make it.
        """
        dtype = compute_dtype([out.dtype, base.dtype, *(tensor.dtype for pair in deltas for tensor in pair)])
        size = self._scratch(dtype)[0].numel()
        posts, olds = ([torch.split(tensor, size) for tensor in tensors] for tensors in zip(*deltas, strict=True)) if deltas else ((), ())
        count = first = 0
        for number, (written, start) in enumerate(zip(torch.split(out, size), torch.split(base, size), strict=True)):
            acc, *scratch = (block[: start.numel()] for block in self._scratch(dtype))
            acc.copy_(start)
            for post, old, weight in zip(posts, olds, self.weights, strict=True):
                add_delta(acc, post[number], old[number], weight, scratch)
            written.copy_(acc)
            written.masked_fill_(written.isnan(), math.nan)
            wrong = torch.nonzero(~torch.isfinite(written))
            first = number * size + int(wrong[0]) if count == 0 and len(wrong) else first
            count += len(wrong)
        return count, first

    def _scratch(self, dtype: torch.dtype) -> list[torch.Tensor]:
        if dtype not in self._blocks:
            size = METHOD_BLOCK if self.device.type == "cpu" else DEVICE_BLOCK
            self._blocks[dtype] = [torch.empty(size, dtype=dtype, device=self.device) for _ in range(1 + SCRATCH)]
        return self._blocks[dtype]
