"""Decoding: numbers of a tensor from the arrays that they are stored in."""

from __future__ import annotations

from collections.abc import Sequence

from paramdelta_dist.kernels.codecs.low_rank import decode_low_rank
from paramdelta_dist.kernels.codecs.scaled import decode_scaled
from paramdelta_dist.kernels.codecs.transposed import decode_transposed
from paramdelta_dist.kernels.encodings import Encoding, LowRank, Scaled, Transposed


def decode(encoding: Encoding, arrays: Sequence[memoryview], shape: tuple[int, ...], first: int, last: int, out: memoryview) -> None:
    """Write elements [first, last) of a tensor to `out`: last − first numbers of dtype `encoding.numbers`, little-endian and aligned.

    `arrays` hold the byte ranges that `encoding.ranges(shape, first, last)` says, in any alignment, and are only read. A number is the
    same however it is cut out. Codes of four bits begin at an even element. Raises ValueError where lengths do not fit, TypeError for an
    encoding that is not known.
    """
    if isinstance(encoding, Scaled):
        decode_scaled(encoding, arrays, shape, first, last, out)
    elif isinstance(encoding, LowRank):
        decode_low_rank(encoding, arrays, shape, first, last, out)
    elif isinstance(encoding, Transposed):
        decode_transposed(encoding, arrays, shape, first, last, out)
    else:
        raise TypeError(f"{type(encoding).__name__} is no encoding that can be decoded")
