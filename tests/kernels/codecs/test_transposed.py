"""Matrices that are stored with rows and columns exchanged, against numpy."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import SCALE_BYTES, Transposed
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


def test_a_buffer_of_another_length_is_refused():
    with pytest.raises(ValueError, match="6 elements"):
        decode(Transposed("BF16"), [memoryview(bytes(12))], (2, 3), 0, 6, memoryview(bytearray(10)))
