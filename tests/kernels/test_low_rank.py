"""The product of two factors: which bytes of them elements need, of a matrix or of one among many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import LowRank

WIDTH = 8


def product(encoding, shape, a, b):
    """The numbers of the tensor, from factors in float64, by the formula alone."""
    height, across = shape[-2:]
    rows, columns = (across, height) if encoding.transposed else (height, across)
    count = shape[0] if len(shape) == 3 else 1
    a, b = a.reshape(count * encoding.rank, columns), b.reshape(rows, encoding.rank * encoding.matrices)
    out = np.empty((count, height, across))
    for m in range(count):
        of_b = [k * encoding.matrices + encoding.matrix + m for k in range(encoding.rank)]
        one = encoding.scaling * b[:, of_b] @ a[m * encoding.rank :][: encoding.rank]
        out[m] = one.T if encoding.transposed else one
    return out.ravel()


@st.composite
def cases(draw):
    count, height, across, rank = (draw(st.integers(1, 4)) for _ in range(4))
    before, behind = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    encoding = LowRank(rank, 0.5, "F64", draw(st.booleans()), count + before + behind, before)
    shape = (count, height, across) if count > 1 or draw(st.booleans()) else (height, across)
    first = draw(st.integers(0, count * height * across - 1))
    return encoding, shape, first, draw(st.integers(first + 1, count * height * across))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_bytes_that_are_named_are_all_that_elements_need(case):
    encoding, shape, first, last = case
    height, across = shape[-2:]
    rows, columns = (across, height) if encoding.transposed else (height, across)
    count = shape[0] if len(shape) == 3 else 1
    random = np.random.default_rng(1)
    factors = [random.normal(size=count * encoding.rank * columns), random.normal(size=rows * encoding.rank * encoding.matrices)]
    ranges = encoding.ranges(shape, first, last)
    seen = [np.full_like(factor, np.nan) for factor in factors]
    for factor, part, (start, stop) in zip(factors, seen, ranges, strict=True):
        assert 0 <= start < stop <= factor.nbytes
        part[start // WIDTH : stop // WIDTH] = factor[start // WIDTH : stop // WIDTH]
    np.testing.assert_array_equal(product(encoding, shape, *seen)[first:last], product(encoding, shape, *factors)[first:last])
    assert sum(stop - start for start, stop in ranges) <= encoding.room(shape, last - first)


def in_order(encoding, shape, a, b):
    """The numbers of the tensor, each added up from the first product to the last and rounded every time."""
    height, across = shape[-2:]
    rows, columns = (across, height) if encoding.transposed else (height, across)
    count = shape[0] if len(shape) == 3 else 1
    a, b = a.reshape(count, encoding.rank, columns), b.reshape(rows, encoding.rank, encoding.matrices)
    out = np.zeros((count, rows, columns))
    for k in range(encoding.rank):
        out = out + b[:, k, encoding.matrix :][:, :count].T[:, :, None] * a[:, k][:, None, :]
    out = encoding.scaling * out
    return (out.transpose(0, 2, 1) if encoding.transposed else out).ravel()


@settings(max_examples=300, deadline=None)
@given(cases())
def test_decoded_elements_are_sums_in_the_order_of_the_rank_to_the_last_bit_however_they_are_cut_out(case):
    encoding, shape, first, last = case
    height, across = shape[-2:]
    rows, columns = (across, height) if encoding.transposed else (height, across)
    count = shape[0] if len(shape) == 3 else 1
    random = np.random.default_rng(2)
    factors = [random.normal(size=count * encoding.rank * columns), random.normal(size=rows * encoding.rank * encoding.matrices)]
    arrays = [memoryview(each.tobytes()[slice(*part)]) for each, part in zip(factors, encoding.ranges(shape, first, last), strict=True)]
    out = np.empty(last - first)
    decode(encoding, arrays, shape, first, last, memoryview(out).cast("B"))
    np.testing.assert_array_equal(out, in_order(encoding, shape, *factors)[first:last])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_rank_zero_is_read_from_nowhere(transposed):
    encoding = LowRank(0, 1.0, "BF16", transposed)
    assert encoding.ranges((8, 4), 3, 17) == ((0, 0), (0, 0))
    assert encoding.room((8, 4), 14) == 0
    out = np.ones(14)
    decode(encoding, [memoryview(b""), memoryview(b"")], (8, 4), 3, 17, memoryview(out).cast("B"))
    assert not out.any()
