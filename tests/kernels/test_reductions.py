"""Sums that are the same however a tensor is cut, and right."""

import functools
import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels import reductions
from paramdelta_dist.kernels.reductions import SUM_CHUNK, ExactSum, Reducer, add_halves

CPU = torch.device("cpu")
FLOATS = (torch.float32, torch.float64)
SIZES = (0, 1, 63, SUM_CHUNK - 1, SUM_CHUNK, SUM_CHUNK + 1, 5 * SUM_CHUNK + 77, reductions._BLOCK + 3)
QUANTITIES = {
    "total": (lambda reducer, x, y: reducer.total(x), lambda x, y: x),
    "absolute": (lambda reducer, x, y: reducer.absolute(x), lambda x, y: abs(x)),
    "squares": (lambda reducer, x, y: reducer.dot(x, x), lambda x, y: x * x),
    "dot": (lambda reducer, x, y: reducer.dot(x, y), lambda x, y: x * y),
}


def values(seed, n, dtype=torch.float32):
    """Over many magnitudes, so that the order of adding shows."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, generator=generator, dtype=torch.float64) * torch.exp2(15 * torch.randn(n, generator=generator))).to(dtype)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_sum_is_the_exact_one_within_what_adding_a_chunk_can_lose(quantity, dtype, n):
    measure, term = QUANTITIES[quantity]
    x, y = values(1, n, dtype), values(2, n, dtype)
    terms = term(x.double().numpy(), y.double().numpy()).tolist()
    exact = math.fsum(terms)
    assert abs(measure(Reducer(CPU), x, y).value - exact) <= 12 * 2**-53 * math.fsum(map(abs, terms))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(QUANTITIES)), st.sampled_from(FLOATS), st.integers(0, 12 * SUM_CHUNK), st.data())
def test_however_a_tensor_is_cut_and_in_whichever_order_parts_are_added_a_sum_is_the_same(quantity, dtype, n, data):
    measure, _ = QUANTITIES[quantity]
    x, y = values(1, n, dtype), values(2, n, dtype)
    whole = measure(Reducer(CPU), x, y)
    cuts = sorted(data.draw(st.sets(st.integers(0, n // SUM_CHUNK), max_size=6)))
    bounds = [0, *(cut * SUM_CHUNK for cut in cuts), n]
    parts = [measure(Reducer(CPU), x[a:b], y[a:b]) for a, b in itertools.pairwise(bounds)]
    random.Random(n).shuffle(parts)
    assert functools.reduce(ExactSum.plus, parts) == whole


def test_the_number_of_threads_does_not_change_a_bit():
    x, y = values(1, 3_000_000), values(2, 3_000_000)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append((Reducer(CPU).dot(x, y), Reducer(CPU).absolute(x)))
    torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_the_order_within_a_chunk_is_the_documented_tree_of_halves():
    def tree(numbers):
        if len(numbers) <= 1:
            return sum(numbers)
        half = (len(numbers) + 1) // 2
        upper = numbers[half:] + [0.0] * (2 * half - len(numbers))
        return tree([low + high for low, high in zip(numbers[:half], upper, strict=True)])

    for width in (1, 2, 3, 7, 64, 1000, SUM_CHUNK):
        rows = values(width, 3 * width, torch.float64).view(3, width)
        assert [tree(row) for row in rows.tolist()] == add_halves(rows.clone()).tolist()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=30))
def test_sums_of_any_numbers_are_exact_and_rounded_once(numbers):
    try:
        expected = math.fsum(numbers)
    except OverflowError:
        return
    assert ExactSum.of(numbers).value == expected
    half = len(numbers) // 2
    assert ExactSum.of(numbers[:half]).plus(ExactSum.of(numbers[half:])) == ExactSum.of(numbers)


def test_a_sum_beyond_float64_is_infinite_and_comes_back_when_what_was_too_much_is_taken_away():
    large = ExactSum.of([1.7e308, 1.7e308])
    assert large.value == math.inf
    assert large.plus(ExactSum.of([-1.7e308])).value == 1.7e308


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_lost(bad):
    x = torch.ones(3 * SUM_CHUNK)
    x[SUM_CHUNK + 5] = bad
    value = Reducer(CPU).total(x).value
    assert value == bad or (math.isnan(bad) and math.isnan(value))
    assert Reducer(CPU).absolute(x).value == abs(bad) or math.isnan(bad)
    x[0] = -bad
    assert math.isnan(Reducer(CPU).total(x).value)


def test_a_gram_matrix_is_that_of_numpy():
    vectors = [torch.randn(10_000, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    expected = np.stack([v.double().numpy() for v in vectors])
    expected = expected @ expected.T
    for (i, j), found in Reducer(CPU).gram(vectors).items():
        assert found.value == pytest.approx(expected[i, j], rel=1e-12, abs=1e-9)
