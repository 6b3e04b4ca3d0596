"""Decoding against numpy in float64, however elements are cut out of however many matrices."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import Scaled
from tests.kernels.codecs import oracle

SCHEMES = {
    "block fp8": Scaled("e4m3", 128, 128, "F32"),
    "block fp8, powers of two": Scaled("e4m3", 128, 128, "F32", powers_of_two=True),
    "block fp8, E8M0": Scaled("e4m3", 128, 128, "E8M0"),
    "small blocks": Scaled("e4m3", 4, 6, "F32"),
    "rows": Scaled("e4m3", 1, 0, "F32"),
    "rows, bfloat16": Scaled("e4m3", 1, 0, "BF16"),
    "columns": Scaled("e4m3", 1 << 20, 1, "F32"),
    "one scale": Scaled("e4m3", 0, 0, "F32"),
    "mxfp8": Scaled("e4m3", 1, 32, "E8M0"),
    "mxfp4": Scaled("e2m1", 1, 32, "E8M0"),
    "nvfp4, divides": Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"),
    "nvfp4, multiplies": Scaled("e2m1", 1, 16, "F8_E4M3", whole="multiplies"),
    "int4": Scaled("int4", 1, 32, "BF16"),
    "int4, float16": Scaled("int4", 1, 32, "F16"),
    "int4, float32": Scaled("int4", 1, 128, "F32"),
    "float64": Scaled("e4m3", 2, 16, "F64"),
}
SHAPES = [(576, 192), (3, 200, 96), (5, 130), (64,), (2, 3, 4, 38), (1, 2)]


def numbers(encoding, arrays, shape, first, last):
    out = np.empty(last - first, oracle.NUMBERS[encoding.numbers])
    decode(encoding, arrays, shape, first, last, memoryview(out).cast("B"))
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_number_is_its_code_times_its_scale(scheme, shape):
    checkpoint = oracle.random_checkpoint(SCHEMES[scheme], shape, 1)
    found = numbers(checkpoint.encoding, checkpoint.of(0, prod(shape), shifted=1), shape, 0, prod(shape))
    expected = oracle.decoded(checkpoint)
    assert found.tobytes() == expected.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_numbers_are_the_same_however_they_are_cut_out(data):
    encoding = SCHEMES[data.draw(st.sampled_from(sorted(SCHEMES)))]
    shape = data.draw(st.sampled_from(SHAPES))
    checkpoint = oracle.random_checkpoint(encoding, shape, data.draw(st.integers(0, 3)))
    first = data.draw(st.integers(0, prod(shape) - 1)) // 2 * 2
    last = data.draw(st.integers(first + 1, prod(shape)))
    found = numbers(encoding, checkpoint.of(first, last, shifted=data.draw(st.integers(0, 3))), shape, first, last)
    assert found.tobytes() == oracle.decoded(checkpoint)[first:last].tobytes()


def test_scales_of_E8M0_are_powers_of_two_from_the_least_to_nan():
    encoding = Scaled("e4m3", 1, 1, "E8M0")
    scales = np.array([0, 1, 127, 254, 255], np.uint8)
    ones = np.full(5, 0x38, np.uint8)
    found = numbers(encoding, [memoryview(ones), memoryview(scales)], (1, 5), 0, 5)
    assert found[:4].tolist() == [2.0**-127, 2.0**-126, 1.0, 2.0**127]
    assert np.isnan(found[4])


def test_nan_codes_are_nan():
    encoding = Scaled("e4m3", 1, 0, "F32")
    found = numbers(encoding, [memoryview(b"\x7f\xff\x7e\x80"), memoryview(np.ones(1, "<f4").view(np.uint8))], (1, 4), 0, 4)
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [448, 0]
    assert np.signbit(found[3])


def test_the_number_for_a_tensor_that_divides_and_one_that_multiplies_give_the_same_weights():
    shape = (8, 64)
    one = oracle.random_checkpoint(Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"), shape, 1, whole=512.0)
    other = Scaled("e2m1", 1, 16, "F8_E4M3", whole="multiplies")
    arrays = [*one.of(0, 512)[:2], memoryview(np.array([1 / 512], "<f4").view(np.uint8))]
    assert np.array_equal(numbers(one.encoding, one.of(0, 512), shape, 0, 512), numbers(other, arrays, shape, 0, 512))


@pytest.mark.parametrize(
    ("encoding", "shape", "first", "problem"),
    [
        (Scaled("int4", 1, 32, "BF16"), (4, 33), 0, "even"),
        (Scaled("e2m1", 1, 5, "E8M0"), (4, 10), 0, "even"),
        (Scaled("e2m1", 1, 32, "E8M0"), (4, 32), 3, "within a byte"),
    ],
)
def test_codes_that_would_begin_within_a_byte_are_refused(encoding, shape, first, problem):
    with pytest.raises(ValueError, match=problem):
        decode(encoding, [memoryview(bytes(99))] * 2, shape, first, first + 1, memoryview(bytearray(4)))


def test_a_buffer_of_another_length_is_refused():
    with pytest.raises(ValueError, match="5 elements"):
        decode(SCHEMES["rows"], [memoryview(bytes(99))] * 2, (1, 5), 0, 5, memoryview(bytearray(16)))


def test_where_matrices_end_with_part_of_a_block_they_are_not_cut_apart():
    encoding = Scaled("e4m3", 128, 128, "F32")
    assert encoding.grain((3, 576, 192)) == 576 * 192
    assert encoding.grain((576, 192)) == encoding.grain((1, 576, 192)) == encoding.grain((3, 256, 192)) == 128 * 192
    assert encoding.grain((3, 64, 192)) == 64 * 192
