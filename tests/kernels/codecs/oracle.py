"""Schemes of codes and scales in numpy and float64, on whole tensors: decoding, encoding and checkpoints at random to try them on.

The codes are those of ml_dtypes and not ours.
"""

from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np

from paramdelta_dist.kernels.codecs.encode import Stored
from paramdelta_dist.kernels.encodings import SCALE_BYTES, Scaled, matrix

SCALES = {
    "F32": "<f4",
    "F64": "<f8",
    "BF16": ml_dtypes.bfloat16,
    "F16": "<f2",
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "E8M0": ml_dtypes.float8_e8m0fnu,
}
HIGHEST = {"e4m3": 448.0, "e2m1": 6.0, "int4": 7.0}
ABOVE = {"e4m3": 448.0, "e2m1": 6.0, "int4": 7.5}
BELOW = {"e4m3": 448.0, "e2m1": 6.0, "int4": 8.5}
NUMBERS = {"F32": np.float32, "F64": np.float64}


@dataclass(frozen=True)
class Checkpoint:
    """A tensor as it is stored."""

    encoding: Scaled
    shape: tuple[int, ...]
    arrays: tuple[np.ndarray, ...]
    """Bytes of codes, of scales, and of the number for all of the tensor."""

    def of(self, first, last, *, shifted=0):
        """The bytes that decoding elements [first, last) needs, read-only and as far off alignment as is asked for."""
        return [
            read_only(array[slice(*part)], shifted)
            for array, part in zip(self.arrays, self.encoding.ranges(self.shape, first, last), strict=True)
        ]


def read_only(array, shifted=0):
    return memoryview(bytes(shifted) + array.tobytes())[shifted:]


def stored(checkpoint, first, last):
    numbers = decoded(checkpoint)[first:last]
    return Stored(checkpoint.of(first, last), memoryview(numbers.tobytes()))


def codes_to_numbers(code, data):
    """float64 of all codes of bytes."""
    if code == "e4m3":
        return data.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(-1)
    if code == "int4":
        return nibbles.astype(np.float64) - 8
    return nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)


def numbers_to_codes(code, numbers):
    """Bytes of all codes for float64 that need no clipping but at the ends of integers.

    ml_dtypes would round float64 twice. What lies between two of its numbers is compared with their middle, which is exact.
    """
    if code == "int4":
        nibbles = np.clip(np.rint(numbers), -8, 7).astype(np.int64) + 8
    else:
        values = codes_to_numbers(code, np.arange(127 if code == "e4m3" else 8, dtype=np.uint8))[:: 1 if code == "e4m3" else 2]
        below = np.clip(np.searchsorted(values, np.abs(numbers), side="right") - 1, 0, len(values) - 2)
        middle = (values[below] + values[below + 1]) / 2
        up = (np.abs(numbers) > middle) | ((np.abs(numbers) == middle) & (below % 2 == 1))
        nibbles = below + up + np.signbit(numbers) * (128 if code == "e4m3" else 8)
    return (nibbles if code == "e4m3" else nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8)


def block_numbers(encoding, shape):
    """For each element the number of its scale."""
    height, width = matrix(shape)
    if not encoding.rows:
        return np.zeros(prod(shape), np.int64)
    down, across = encoding.blocks(shape)
    columns = encoding.columns or width
    one = np.arange(height)[:, None] // encoding.rows * across + np.arange(width)[None, :] // columns
    matrices = prod(shape) // (height * width)
    return (np.arange(matrices)[:, None, None] * down * across + one).reshape(-1)


def effective_scales(checkpoint):
    """float64 of every scale, with the number for the tensor."""
    scales = checkpoint.arrays[1].view(SCALES[checkpoint.encoding.scale]).astype(np.float64)
    if not checkpoint.encoding.whole:
        return scales
    whole = float(checkpoint.arrays[2].view("<f4")[0])
    return scales * whole if checkpoint.encoding.whole == "multiplies" else scales / whole


def decoded(checkpoint):
    encoding = checkpoint.encoding
    codes = codes_to_numbers(encoding.code, checkpoint.arrays[0])[: prod(checkpoint.shape)]
    with np.errstate(all="ignore"):
        return (codes * effective_scales(checkpoint)[block_numbers(encoding, checkpoint.shape)]).astype(NUMBERS[encoding.numbers])


def least_scale(encoding, largest, whole):
    """The first of all scales there are, from below, that does not clip; of 32 bits those around the quotient."""
    limit = HIGHEST[encoding.code]
    if encoding.scale == "E8M0":
        every = 2.0 ** np.arange(-127, 128)
    elif encoding.powers_of_two:
        every = 2.0 ** np.arange(-126, 128)
    elif encoding.scale == "F32":
        near = np.float32(largest / limit)
        every = np.array([np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(np.inf))], np.float64)
    elif encoding.scale == "F64":
        near = largest / limit
        every = np.array([np.nextafter(near, 0), near, np.nextafter(near, np.inf)])
    else:
        top = {"BF16": 0x7F7F, "F16": 0x7BFF, "F8_E4M3": 0x7E}[encoding.scale]
        every = np.arange(1, top + 1).astype("u1" if encoding.scale == "F8_E4M3" else "<u2").view(SCALES[encoding.scale]).astype(np.float64)
    joined = every * whole if encoding.whole == "multiplies" else every / whole if encoding.whole == "divides" else every
    return every[np.argmax(limit * joined >= largest)] if (limit * joined >= largest).any() else every[-1]


def encoded(base, others, numbers):
    """Bytes of codes and scales for a whole tensor of finite numbers, by the rules one after the other."""
    encoding = base.encoding
    block = block_numbers(encoding, base.shape)
    codes, scales = np.zeros(prod(base.shape)), np.frombuffer(base.arrays[1].tobytes(), SCALES[encoding.scale]).copy()
    whole = float(base.arrays[2].view("<f4")[0]) if encoding.whole else 1.0
    from_stored = np.zeros(len(numbers), np.int64)
    models, before = [base, *others], effective_scales(base)
    equal = [decoded(each) == numbers for each in models]
    order, places = np.argsort(block, kind="stable"), np.searchsorted(np.sort(block), np.arange(len(scales) + 1))
    for number in range(len(scales)):
        mine = order[places[number] : places[number + 1]]
        part = numbers[mine].astype(np.float64)
        same = [k for k in range(len(models)) if equal[k][mine].all()]
        if same:
            from_stored[mine] = same[0] + 1
            scales[number] = models[same[0]].arrays[1].view(SCALES[encoding.scale])[number]
            continue
        scale = before[number]
        if (
            not (0 < scale < np.inf and part.max() <= ABOVE[encoding.code] * scale and -part.min() <= BELOW[encoding.code] * scale)
            and encoding.rows
        ):
            fresh = least_scale(encoding, np.abs(part).max(), whole)
            scales[number] = fresh
            scale = fresh * whole if encoding.whole == "multiplies" else fresh / whole if encoding.whole == "divides" else fresh
        codes[mine] = part / scale
    found = nibbles_of(encoding, numbers_to_codes(encoding.code, codes))
    for k, each in enumerate(models):
        found = np.where(from_stored == k + 1, nibbles_of(encoding, each.arrays[0]), found)
    data = found if encoding.bits == 8 else found[0::2] | found[1::2] << 4
    return data.astype(np.uint8).tobytes(), scales.tobytes()


def nibbles_of(encoding, data):
    """A code for each element."""
    return data if encoding.bits == 8 else np.stack([data & 15, data >> 4], axis=-1).reshape(-1)


def random_checkpoint(encoding, shape, seed, *, whole=None):
    """Codes of all values but NaN, and scales over some magnitudes."""
    random = np.random.default_rng(seed)
    (_, codes), (_, scales), *_ = encoding.ranges(shape, 0, prod(shape))
    data = random.integers(0, 256, codes, np.uint8)
    if encoding.code == "e4m3":
        data[data & 0x7F == 0x7F] ^= 1
    count = scales // SCALE_BYTES[encoding.scale]
    numbers = 2.0 ** random.integers(-12, -4, count)
    if encoding.scale != "E8M0" and not encoding.powers_of_two:
        numbers *= random.uniform(1, 2, count) * (2.0**8 if encoding.scale == "F8_E4M3" else 1)
    wholes = [np.array([random.uniform(0.5, 900) if whole is None else whole], "<f4").view(np.uint8)] if encoding.whole else []
    return Checkpoint(encoding, shape, (data, numbers.astype(SCALES[encoding.scale]).view(np.uint8), *wholes))
