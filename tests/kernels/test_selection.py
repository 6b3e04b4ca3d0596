"""Selecting by magnitude against sorting: exact, with many equal elements among them, and the same however a tensor is cut."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.selection import RankSearch, everything, magnitude, magnitude_keys, nothing

FLOATS = (torch.float32, torch.float64)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, 5e-324, 1e-45, -1e-45, 3.4e38, 1.0, -1.0)


def values(seed, n, dtype, kind):
    rng = np.random.default_rng(seed)
    made = {
        "distinct": lambda: rng.standard_normal(n) * np.exp2(rng.integers(-40, 40, n)),
        "few": lambda: rng.choice([0.0, -0.0, 0.25, -0.25, 1.0], n),
        "special": lambda: rng.choice(SPECIAL, n),
        "neighbours": lambda: 1 + rng.integers(0, 50, n) * 2.0**-23,
        "equal": lambda: np.full(n, -0.5),
        "rounded": lambda: torch.from_numpy(rng.standard_normal(n) * 1e-3).bfloat16().double().numpy(),
    }
    return torch.from_numpy(made[kind]()).to(dtype)


KINDS = ("distinct", "few", "special", "neighbours", "equal", "rounded")


def order(x):
    """Indices of x in the order of selection: by magnitude downwards, then by index; by sorting."""
    return torch.sort(x.abs(), descending=True, stable=True).indices


def blocks(n, size):
    return [(first, min(first + size, n)) for first in range(0, n, size)]


def search(x, rank, size):
    """The cut behind the `rank`-th element of x, looked for in blocks; and how many reductions that took."""
    keys, found, reductions = magnitude_keys(x), RankSearch.of(x.dtype, rank), 0
    while not found.found:
        found = found.narrowed(sum(found.histogram(keys[a:b]) for a, b in blocks(len(x), size)))
        reductions += 1
    assert torch.equal(
        torch.tensor(magnitude(found.prefix, x.dtype), dtype=x.dtype).nan_to_num(-1), x.abs()[order(x)[rank - 1]].nan_to_num(-1)
    )
    cut = found.cut
    if cut is None:
        cut = found.cut_among([(a, found.count_equal(keys[a:b])) for a, b in blocks(len(x), size)])
    return cut, reductions


def selected(x, cut, size):
    out = torch.empty(len(x), dtype=torch.bool)
    keys = magnitude_keys(x)
    for a, b in blocks(len(x), size):
        cut.mask(keys[a:b], a, out[a:b])
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(KINDS),
    st.sampled_from(FLOATS),
    st.integers(1, 20_000),
    st.floats(0, 1),
    st.integers(1000, 20_000),
)
def test_what_is_selected_is_what_sorting_selects(seed, kind, dtype, n, share, size):
    x = values(seed, n, dtype, kind)
    rank = max(1, math.ceil(share * n))
    cut, reductions = search(x, rank, size)
    expected = torch.zeros(n, dtype=torch.bool)
    expected[order(x)[:rank]] = True
    assert torch.equal(selected(x, cut, size), expected)
    assert reductions == (2 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_how_a_tensor_is_cut_does_not_change_what_is_selected(kind, dtype):
    n = 28_123
    x = values(3, n, dtype, kind)
    for rank in (1, 2, 5000, n // 2, n - 1, n):
        masks = [selected(x, search(x, rank, size)[0], size) for size in (4000, n)]
        masks += [
            selected(x, search(x, rank, 4000)[0], size) for size in (8000, n)
        ]  # ties counted in smaller pieces than masks are made of
        assert all(torch.equal(masks[0], mask) for mask in masks)
        assert int(masks[0].sum()) == rank


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_of_any_kind_is_larger_than_infinity_and_its_kinds_are_equal(dtype):
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    payloads = torch.tensor([math.nan, math.inf, math.nan, 1.0], dtype=dtype)
    payloads.view(integer)[2] += 5
    payloads.view(integer)[2] |= torch.iinfo(integer).min
    keys = magnitude_keys(payloads)
    assert keys[0] == keys[2] > keys[1] > keys[3]
    assert selected(payloads, search(payloads, 1, 4096)[0], 4096).tolist() == [True, False, False, False]
    assert selected(payloads, search(payloads, 3, 4096)[0], 4096).tolist() == [True, True, True, False]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_and_everything_are_cuts_too(dtype):
    x = values(1, 9000, dtype, "special")
    x[7] = math.nan
    assert not selected(x, nothing(dtype), 4096).any()
    assert selected(x, everything(), 4096).all()


def test_a_rank_beyond_the_elements_is_refused():
    keys = magnitude_keys(torch.ones(5))
    found = RankSearch.of(torch.float32, 6)
    with pytest.raises(ValueError, match="element 6 was looked for among 5"):
        found.narrowed(found.histogram(keys))


def test_keys_can_take_the_place_of_the_values():
    x = values(1, 1000, torch.float32, "special")
    expected = magnitude_keys(x)
    assert torch.equal(magnitude_keys(x, out=x.view(torch.int32)), expected)
    assert torch.equal(x.view(torch.int32), expected)
