"""The loops of measuring, compiled: differences of models, their sums and counts, and sketches, a block at a time.

numba compiles them when they are first met and keeps that on disk. Sums may be made in the order that suits the processor,
which is always the same on machines of one kind, since it depends on how many elements there are and nothing else.
"""

from __future__ import annotations

import numba
import numpy as np

from paramdelta_dist.kernels.jit import compiled

L1_BLOCK = 1024
"""Elements of every vector that are looked at while they are in a core's first cache."""
EXPONENTS = 1 << 11
"""Of a float64."""

_MAGNITUDE = np.int64((1 << 63) - 1)
"""All bits but the sign: magnitudes are in the order of these bits as integers, NaN above all."""
_FRACTION = np.int64(52)


_FREE = {"fastmath": {"reassoc"}}


@compiled(**_FREE)
def widen_bfloat16(out, stored):
    """stored[n], as uint16, to float64 out[n]."""
    for i in range(len(out)):
        out[i] = np.uint32(np.uint32(stored[i]) << np.uint32(16)).view(np.float32)


@compiled(**_FREE)
def measure(n, models, pairs, dots, bases, couples, full, differences, sums, peaks, zeros, exponents, signs):
    """The first n elements of models[·, n], pair by pair: differences[vectors, n] and `sums` (see `Vectors.sums`) are replaced;
    peaks[deltas] (as bits), zeros[deltas], exponents[deltas, EXPONENTS] (of what is not zero) and signs[couples, 2] are added to."""
    sums[:] = 0
    first_of_deltas = len(dots) + len(bases)
    for start in range(0, n, L1_BLOCK):
        stop = min(n, start + L1_BLOCK)
        for vector in range(len(pairs)):
            minuend, subtrahend = models[pairs[vector, 0], start:stop], models[pairs[vector, 1], start:stop]
            difference = differences[vector, start:stop]
            for i in range(stop - start):
                difference[i] = minuend[i] - subtrahend[i]
        for place in range(len(dots)):
            sums[place] += _dot(differences[dots[place, 0], start:stop], differences[dots[place, 1], start:stop])
        for place in range(len(bases)):
            base = models[bases[place], start:stop]
            sums[len(dots) + place] += _dot(base, base)
        for delta in range(len(peaks)):
            difference = differences[delta, start:stop]
            total = magnitude = 0.0
            for i in range(stop - start):
                total += difference[i]
                magnitude += abs(difference[i])
            sums[first_of_deltas + 2 * delta] += total
            sums[first_of_deltas + 2 * delta + 1] += magnitude
            bits = difference.view(np.int64)
            peak, zero = np.int64(0), np.int64(0)
            for i in range(stop - start):
                peak = max(peak, bits[i] & _MAGNITUDE)
                zero += (bits[i] & _MAGNITUDE) == 0
            peaks[delta] = max(peaks[delta], peak)
            zeros[delta] += zero
            if full:
                counts = exponents[delta]
                for i in range(stop - start):
                    counts[(bits[i] & _MAGNITUDE) >> _FRACTION] += 1
                counts[0] -= zero
        for place in range(len(couples) if full else 0):
            one, other = differences[couples[place, 0], start:stop], differences[couples[place, 1], start:stop]
            same = both = np.int64(0)
            for i in range(stop - start):
                same += ((one[i] > 0) & (other[i] > 0)) | ((one[i] < 0) & (other[i] < 0))
                both += (one[i] != 0) & (other[i] != 0)
            signs[place, 0] += same
            signs[place, 1] += both


@numba.njit(**_FREE)
def _dot(one, other):
    total = 0.0
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@compiled(**_FREE)
def add_rows(sketch, elements, first, signs, turns, factors):
    """Add elements[n], which begin at `first` of the first of several rows, each as long as the sketch, to it: row r with
    the sign of each place, times factors[r], and turned by turns[r]."""
    length = len(sketch)
    done = 0
    for row in range(len(turns)):
        at = first if row == 0 else 0
        count = min(length - at, len(elements) - done)
        place = (at + turns[row]) % length
        fits = min(count, length - place)
        factor = factors[row]
        for i in range(fits):
            sketch[place + i] += factor * signs[at + i] * elements[done + i]
        for i in range(fits, count):
            sketch[i - fits] += factor * signs[at + i] * elements[done + i]
        done += count
