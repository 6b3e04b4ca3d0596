"""Products of factors against float64, in one order of additions, the same however rows and elements are cut out."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs import low_rank
from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.encodings import LowRank
from tests.kernels.codecs.oracle import read_only

FACTORS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


def factors(encoding, shape, seed=0):
    rows, columns = shape[::-1] if encoding.transposed else shape
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(encoding.rank, columns)), random.normal(size=(rows, encoding.rank))
    return [each.astype(FACTORS[encoding.stored]) for each in (a, b)]


def product(encoding, a, b):
    """In the order that is promised."""
    total = np.zeros((len(b), a.shape[1]))
    for k in range(encoding.rank):
        total = total + b[:, k : k + 1].astype(np.float64) * a[k].astype(np.float64)
    total = encoding.scaling * total
    return total.T if encoding.transposed else total


def numbers(encoding, arrays, shape, first, last, shifted=0):
    parts = [
        read_only(np.frombuffer(each.tobytes(), np.uint8)[slice(*part)], shifted)
        for each, part in zip(arrays, encoding.ranges(shape, first, last), strict=True)
    ]
    out = np.empty(last - first)
    decode(encoding, parts, shape, first, last, memoryview(out).cast("B"))
    return out


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stored", FACTORS)
@pytest.mark.parametrize("rank", [1, 3, 8, 17])
def test_an_element_is_the_sum_of_its_products_in_order(rank, stored, transposed):
    encoding, shape = LowRank(rank, 2.0 / rank, stored, transposed), (37, 2100)
    a, b = factors(encoding, shape)
    assert numbers(encoding, (a, b), shape, 0, 37 * 2100, shifted=1).tobytes() == np.ascontiguousarray(product(encoding, a, b)).tobytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_element_is_the_same_however_it_is_cut_out(data):
    encoding, shape = LowRank(5, 0.3, "BF16", data.draw(st.booleans())), data.draw(st.sampled_from([(7, 1500), (300, 3), (1, 40), (40, 1)]))
    a, b = factors(encoding, shape)
    first = data.draw(st.integers(0, shape[0] * shape[1] - 1))
    last = data.draw(st.integers(first + 1, shape[0] * shape[1]))
    assert numbers(encoding, (a, b), shape, first, last).tobytes() == product(encoding, a, b).reshape(-1)[first:last].tobytes()


def test_the_columns_that_are_summed_at_a_time_do_not_show(monkeypatch):
    encoding, shape = LowRank(6, 1.5, "F32"), (9, 100)
    a, b = factors(encoding, shape)
    whole = numbers(encoding, (a, b), shape, 0, 900)
    monkeypatch.setattr(low_rank, "CHUNK", 7)
    assert numbers(encoding, (a, b), shape, 150, 720).tobytes() == whole[150:720].tobytes()
