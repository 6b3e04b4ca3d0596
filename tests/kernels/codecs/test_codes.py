"""Every code against the library that defines it for numpy, and rounding at, below and above every tie."""

import ml_dtypes
import numpy as np
import pytest

from paramdelta_dist.kernels.codecs import codes
from paramdelta_dist.kernels.jit import compiled
from tests.kernels.codecs import oracle

LIBRARY = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}


@compiled()
def _all_numbers(kind, out):
    for code in range(len(out)):
        if kind == codes.E4M3:
            out[code] = codes.number_of_e4m3(np.uint8(code))
        elif kind == codes.E2M1:
            out[code] = codes.number_of_e2m1(np.uint8(code))
        else:
            out[code] = codes.number_of_int4(np.uint8(code))


@compiled()
def _all_codes(kind, numbers, out):
    for i in range(len(out)):
        if kind == codes.E4M3:
            out[i] = codes.e4m3_of(numbers[i])
        elif kind == codes.E2M1:
            out[i] = codes.e2m1_of(numbers[i])
        else:
            out[i] = codes.int4_of(numbers[i])


def numbers_of(name):
    out = np.empty(256 if name == "e4m3" else 16, np.float32)
    _all_numbers(codes.KINDS[name], out)
    return out


def codes_of(name, numbers):
    out = np.empty(len(numbers), np.uint8)
    _all_codes(codes.KINDS[name], numbers, out)
    return out


def test_every_number_of_e4m3_is_the_librarys_and_its_two_nan_are_nan():
    found, expected = numbers_of("e4m3"), np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(found[expected == expected].view(np.uint32), expected[expected == expected].view(np.uint32))
    assert np.isnan(found[[0x7F, 0xFF]]).all()


def test_every_number_of_four_bits_is_that_of_the_table():
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert numbers_of("e2m1").tolist() == [*positive, *(-each for each in positive)]
    assert np.signbit(numbers_of("e2m1")).tolist() == [False] * 8 + [True] * 8
    assert numbers_of("int4").tolist() == list(range(-8, 8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["e4m3", "e2m1"])
def test_numbers_round_to_the_nearest_code_and_ties_to_the_even_one(name, dtype):
    values = numbers_of(name)
    values = np.unique(values[values == values].astype(dtype))
    ties = (values[1:] + values[:-1]) / 2
    near = np.concatenate([values, ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf), [dtype(0.0), dtype(-0.0)]]).astype(dtype)
    random = np.random.default_rng(0)
    spread = (random.uniform(-1, 1, 200_000) * values.max() * 2.0 ** random.integers(-18, 1, 200_000)).astype(dtype)
    numbers = np.concatenate([near, spread])
    expected = oracle.numbers_to_codes(name, numbers.astype(np.float64).repeat(1 if name == "e4m3" else 2)) & (
        255 if name == "e4m3" else 15
    )
    assert np.array_equal(codes_of(name, numbers), expected)
    if dtype == np.float32:  # the library rounds float64 twice
        assert np.array_equal(expected, numbers.astype(LIBRARY[name]).view(np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_of_e2m1_go_where_the_format_says(dtype):
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], dtype)
    assert numbers_of("e2m1")[codes_of("e2m1", ties)].tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert codes_of("e2m1", -ties).tolist() == [code + 8 for code in codes_of("e2m1", ties)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_integers_round_to_even_and_end_at_minus_8_and_7(dtype):
    numbers = np.concatenate(
        [np.arange(-11, 11, 0.25), np.nextafter(np.arange(-8.5, 8), -99), np.nextafter(np.arange(-8.5, 8), 99)]
    ).astype(dtype)
    assert np.array_equal(codes_of("int4", numbers), (np.clip(np.rint(numbers), -8, 7) + 8).astype(np.uint8))


@pytest.mark.parametrize(("name", "largest"), [("e4m3", 448), ("e2m1", 6)])
def test_what_is_too_large_becomes_the_largest(name, largest):
    for dtype in (np.float32, np.float64):
        numbers = np.array([largest, largest * 1.01, largest * 2, 1e30, np.inf, -largest * 5], dtype)
        assert numbers_of(name)[codes_of(name, numbers)].tolist() == [largest] * 5 + [-largest]
