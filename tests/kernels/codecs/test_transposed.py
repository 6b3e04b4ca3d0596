"""Matrices that are stored with rows and columns exchanged, against numpy."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import SCALE_BYTES, Scaled, Transposed
from tests.kernels.codecs.oracle import read_only

SHAPES = [(70, 45), (3, 40, 33), (2, 2, 5, 7), (1, 9), (9, 1), (6,)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_elements_are_those_of_the_transpose_however_they_are_cut_out(data):
    encoding = Transposed(data.draw(st.sampled_from(["BF16", "F16", "F32", "F64"])))
    shape = data.draw(st.sampled_from(SHAPES))
    width, size = SCALE_BYTES[encoding.stored], prod(shape)
    logical = np.random.default_rng(size).integers(0, 256, (size, width), np.uint8)
    matrices = logical.reshape(-1, shape[-2] if len(shape) > 1 else 1, shape[-1], width)
    bytes_ = matrices.swapaxes(1, 2).reshape(-1)
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first + 1, size))
    [part] = encoding.ranges(shape, first, last)
    out = bytearray((last - first) * width)
    decode(encoding, [read_only(bytes_[slice(*part)], data.draw(st.integers(0, 1)))], shape, first, last, memoryview(out))
    assert bytes(out) == logical[first:last].tobytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_some_rows_of_matrices_that_are_stored_whole_are_a_tensor(data):
    number, rows, columns = (data.draw(st.integers(1, most)) for most in (3, 70, 40))
    height = data.draw(st.integers(1, rows))
    encoding = Transposed("F32", rows, data.draw(st.integers(0, rows - height)))
    stored = np.random.default_rng(rows).random((number, columns, rows), np.float32)
    logical = stored.swapaxes(1, 2)[:, encoding.top : encoding.top + height].reshape(-1)
    first = data.draw(st.integers(0, len(logical) - 1))
    last = data.draw(st.integers(first + 1, len(logical)))
    shape = (number, height, columns)
    [part] = encoding.ranges(shape, first, last)
    if first % encoding.together(shape) == 0:
        assert part[1] - part[0] <= encoding.room(shape, last - first)
    out = bytearray((last - first) * 4)
    decode(encoding, [read_only(stored.view(np.uint8).reshape(-1)[slice(*part)], 0)], shape, first, last, memoryview(out))
    assert bytes(out) == logical[first:last].tobytes()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_scaled_numbers_are_decoded_before_rows_and_columns_are_exchanged(data):
    """The microscaled experts of gpt-oss, [experts, out, in], where the base has [experts, in, out]."""
    scaled = Scaled("e2m1", 1, 32, "E8M0")
    stored, encoding = (2, 12, 64), Transposed(scaled.numbers, scaled=scaled)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = random.integers(0, 256, 2 * 12 * 32, np.uint8), random.integers(120, 135, 2 * 12 * 2, np.uint8)
    whole = bytearray(4 * prod(stored))
    decode(scaled, [read_only(array, 0) for array in arrays], stored, 0, prod(stored), memoryview(whole))
    logical = np.frombuffer(whole, np.float32).reshape(stored).swapaxes(1, 2).reshape(-1)
    shape = (2, 64, 12)
    first = data.draw(st.integers(0, prod(shape) - 1))
    last = data.draw(st.integers(first + 1, prod(shape)))
    ranges = encoding.ranges(shape, first, last)
    if first % encoding.together(shape) == 0:
        assert sum(stop - start for start, stop in ranges) <= encoding.room(shape, last - first)
    out = bytearray((last - first) * 4)
    parts = [read_only(array[slice(*part)], 0) for array, part in zip(arrays, ranges, strict=True)]
    decode(encoding, parts, shape, first, last, memoryview(out))
    assert bytes(out) == logical[first:last].tobytes()


def test_a_buffer_of_another_length_is_refused():
    with pytest.raises(ValueError, match="6 elements"):
        decode(Transposed("BF16"), [memoryview(bytes(12))], (2, 3), 0, 6, memoryview(bytearray(10)))
