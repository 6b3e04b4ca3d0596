"""A weighted sum of deltas in one pass over GPU memory: what `elementwise.add_delta` does for each delta, to the same bytes.

The inputs lie in one arena of device memory, each in its slot of `pitch` bytes, the output in the last slot. Slots are
padded to whole blocks, so that the kernel reads and writes without masks and every access is a wide one; what it
computes in the padding is garbage that nobody reads or counts.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from paramdelta_dist.kernels.sum_torch import DEVICE_PADDING
from paramdelta_dist.kernels.torch_views import compute_dtype

if not hasattr(tl.constexpr, "__getitem__"):
    raise ImportError("the fused kernel needs Triton 3.4 or newer")

_WARPS = 4
_TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}
_OVERFLOW = {torch.bfloat16: 0x7F7F8000, torch.float16: 0x477FF000, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}
"""Bits of the least number that is infinite once rounded: of float64 for float64, else of float32."""
_NAN = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00, torch.float32: 0x7FC00000, torch.float64: 0x7FF8000000000000}
"""Bits of the NaN that torch writes for `math.nan`."""
_launching = threading.Lock()


@dataclass(frozen=True)
class FusedLaunch:
    """What one launch computes, but for the values: slot 0 holds the base, `deltas` names the slots of each post and base."""

    dtypes: tuple[torch.dtype, ...]
    """Of each slot; the last one is the output's."""
    deltas: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]

    @property
    def compute(self) -> torch.dtype:
        return compute_dtype(self.dtypes)

    def magnitudes(self, device: torch.device) -> torch.Tensor:
        """The magnitude of each weight in the compute dtype (a float handed to a kernel would lose half its bits)."""
        return torch.tensor([abs(weight) for weight in self.weights], dtype=self.compute, device=device)

    def constants(self) -> dict[str, object]:
        """What the kernel is compiled for."""
        terms = [
            (old, post, weight == 1) if weight > 0 else (post, old, False)
            for (post, old), weight in zip(self.deltas, self.weights, strict=True)
        ]
        return {
            "DTYPES": tuple(_TRITON[dtype] for dtype in self.dtypes),
            "TERMS": tuple(terms),
            "WIDE": self.compute == torch.float64,
            "OVERFLOW": _OVERFLOW[self.dtypes[-1]],
            "NAN": _NAN[self.dtypes[-1]],
            "BLOCK": DEVICE_PADDING,
        }


def add_deltas(arena: torch.Tensor, pitch: int, n: int, what: FusedLaunch, weights: torch.Tensor, tally: torch.Tensor) -> None:
    """Fill the last slot of arena[slots · pitch bytes] with the merge of n elements, on the current stream.

    Adds to tally[2], int64, how many elements are not finite, and raises its second element to n − the position of the
    first of them. `pitch` is a multiple of 16; `weights` are the magnitudes of `what`.
    """
    with _launching:  # compiling is not made for several threads; launching takes microseconds
        _add_deltas[(triton.cdiv(n, DEVICE_PADDING),)](
            arena, pitch, n, weights, tally, **what.constants(), num_warps=_WARPS, enable_fp_fusion=False
        )


@triton.jit
def _load(arena, pitch, places, SLOT: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    start = arena + SLOT * pitch.to(tl.int64)
    if DTYPE == tl.bfloat16:
        bits = tl.load(start.to(tl.pointer_type(tl.uint16)) + places)
        values = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        values = tl.load(start.to(tl.pointer_type(DTYPE)) + places)
    if WIDE:
        values = values.to(tl.float64)
    else:
        values = values.to(tl.float32)
    return values


@triton.jit
def _round(values, DTYPE: tl.constexpr):
    """The bits of values in DTYPE, rounded to nearest even, 64 bits to 16 by way of 32 as torch does; right but for NaN."""
    if DTYPE == tl.bfloat16:
        wide = values.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).to(tl.uint16)
    elif DTYPE == tl.float16:
        bits = values.to(tl.float32).to(tl.float16).to(tl.uint16, bitcast=True)
    elif DTYPE == tl.float32:
        bits = values.to(tl.float32).to(tl.uint32, bitcast=True)
    else:
        bits = values.to(tl.uint64, bitcast=True)
    return bits


@triton.jit(do_not_specialize=["n"])
def _add_deltas(
    arena,
    pitch,
    n,
    weights,
    tally,
    DTYPES: tl.constexpr,
    TERMS: tl.constexpr,
    WIDE: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    INTEGER: tl.constexpr = tl.int64 if WIDE else tl.int32
    acc = _load(arena, pitch, places, 0, DTYPES[0], WIDE)
    for term in tl.static_range(len(TERMS)):
        minuend = _load(arena, pitch, places, TERMS[term][0], DTYPES[TERMS[term][0]], WIDE)
        subtrahend = _load(arena, pitch, places, TERMS[term][1], DTYPES[TERMS[term][1]], WIDE)
        difference = minuend - subtrahend
        if TERMS[term][2]:
            moved = acc - difference
            if not WIDE:
                moved = moved - ((minuend - difference) - subtrahend)
            same = (acc == minuend) & (acc.to(INTEGER, bitcast=True) == minuend.to(INTEGER, bitcast=True))
            acc = tl.where(same, subtrahend, moved)
        else:
            acc = acc - difference * tl.load(weights + term)
    bits = _round(acc, DTYPES[len(DTYPES) - 1])
    out = (arena + (len(DTYPES) - 1) * pitch.to(tl.int64)).to(tl.pointer_type(bits.dtype)) + places
    tl.store(out, bits)
    if DTYPES[len(DTYPES) - 1] == tl.float64:
        magnitudes = acc.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        magnitudes = acc.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if tl.max(magnitudes) >= OVERFLOW:
        tl.store(out, tl.where(acc != acc, NAN, bits).to(bits.dtype))
        wrong = (magnitudes >= OVERFLOW) & (places < n)
        tl.atomic_add(tally, tl.sum(wrong.to(tl.int64)))
        tl.atomic_max(tally + 1, tl.max(tl.where(wrong, n - places, 0)).to(tl.int64))
