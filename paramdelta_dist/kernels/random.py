"""Random numbers that depend on the place of an element and on nothing else: Philox 4x32-10, counter-based.

A number belongs to (seed, purpose, model, tensor name, index of the element in the whole tensor). So it is the same on every
device and however the tensor is cut, and nothing need be drawn before it. Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3".
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator

import torch

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_LANES = 4
"""Numbers that one counter gives: element i has lane i % 4 of counter i // 4."""
_COUNTERS = 1 << 14
"""Counters of a block on a CPU: the words of a block stay near the core."""
_DEVICE_COUNTERS = 1 << 20
_RESOLUTION = 24
"""Bits of a number that count: as many as float32 holds of a number below 1."""


def stream_key(seed: int, purpose: str, model: str, tensor: str) -> int:
    """The 64-bit key of the numbers drawn for one purpose, for one tensor of one model."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{purpose}|{model}|{tensor}".encode()).digest()[:8], "little")


_made = threading.local()


def philox(device: torch.device) -> Philox:
    """The calling thread's, for this device."""
    found: Philox | None = _made.__dict__.get(str(device))
    if found is None:
        found = _made.__dict__[str(device)] = Philox(device)
    return found


class Philox:
    """Draws numbers for runs of elements, in reused memory (about 0.7 MiB on a CPU). One per thread.

    Elements [first, first + n) of a tensor get the same numbers whichever runs they are drawn in.
    """

    def __init__(self, device: torch.device) -> None:
        size = _COUNTERS if device.type == "cpu" else _DEVICE_COUNTERS
        self._steps = torch.arange(size, dtype=torch.int64, device=device)
        self._scratch = [torch.empty_like(self._steps) for _ in range(4)]
        self._spare = torch.empty_like(self._steps)

    def keep(self, key: int, first: int, out: torch.Tensor, probability: float) -> None:
        """Make each of bool out[n] true with `probability`, which counts to 2^-24: true iff the element's uniform is below it."""
        limit = math.ceil(probability * (1 << _RESOLUTION)) << (32 - _RESOLUTION)
        for lane, words in self._lanes(key, first, out):
            torch.lt(words, limit, out=lane)

    def uniforms(self, key: int, first: int, out: torch.Tensor) -> None:
        """Fill out[n], float32 or float64, with multiples of 2^-24 that are uniform in [0, 1)."""
        for lane, words in self._lanes(key, first, out):
            lane.copy_(words.bitwise_right_shift_(32 - _RESOLUTION))
        out.mul_(2.0**-_RESOLUTION)

    def words(self, key: int, first: int, out: torch.Tensor) -> None:
        """Fill int64 out[n] with the 32-bit numbers themselves."""
        for lane, words in self._lanes(key, first, out):
            lane.copy_(words)

    def _lanes(self, key: int, first: int, out: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of out[n], every fourth element of a block, that together are all of it; and each with its numbers, which
        the next pair overwrites."""
        last = first + out.numel()
        size = self._steps.numel()
        for start in range(first // _LANES, -(-last // _LANES), size):
            count = min(size, -(-last // _LANES) - start)
            for lane, words in enumerate(self._block(key, start, count)):
                skipped = max(0, -(-(first - lane) // _LANES) - start)  # counters whose element in this lane is before the first
                words = words[skipped : max(skipped, -(-(last - lane) // _LANES) - start)]
                place = (start + skipped) * _LANES + lane - first
                yield out[place : place + _LANES * len(words) : _LANES], words

    def _block(self, key: int, start: int, count: int) -> tuple[torch.Tensor, ...]:
        """The four words, int64[count] each in [0, 2^32), of counters [start, start + count)."""
        a, b, c, d = (words[:count] for words in self._scratch)
        keys = [tuple((word + turn * step) & _LOW for word, step in zip((key, key >> 32), _WEYL, strict=True)) for turn in range(_ROUNDS)]
        # Products of 32-bit words fill 64 bits, so a right shift may drag the sign in: what is multiplied next is masked,
        # what is only added to another word without carry stays as it is until then.
        torch.add(self._steps[:count], start, out=a)
        torch.bitwise_right_shift(a, 32, out=b)
        a.bitwise_and_(_LOW)
        c.zero_()
        d.zero_()
        for left, right in keys:
            # (a, b, c, d) = (high(c · M1) ^ b ^ left, low(c · M1), high(a · M0) ^ d ^ right, low(a · M0))
            c.mul_(_MULTIPLIERS[1])
            a.mul_(_MULTIPLIERS[0])
            b.bitwise_xor_(torch.bitwise_right_shift(c, 32, out=self._spare[:count])).bitwise_xor_(left).bitwise_and_(_LOW)
            d.bitwise_xor_(torch.bitwise_right_shift(a, 32, out=self._spare[:count])).bitwise_xor_(right).bitwise_and_(_LOW)
            a, b, c, d = b, c, d, a
        b.bitwise_and_(_LOW)
        d.bitwise_and_(_LOW)
        return a, b, c, d
