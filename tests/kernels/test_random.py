"""Random numbers: the published Philox, the same however they are drawn, and distributed as they should be."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels import random
from paramdelta_dist.kernels.random import Philox, stream_key

CPU = torch.device("cpu")


def reference(counter, key):
    """Philox 4x32-10 from its definition: four 32-bit words of a counter, two of a key."""
    counter, key = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [right >> 32 ^ counter[1] ^ key[0], right & 0xFFFFFFFF, left >> 32 ^ counter[3] ^ key[1], left & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def number(key, index):
    """Of the element with this index."""
    counter = index // 4
    return reference([counter >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)], [key & 0xFFFFFFFF, key >> 32])[index % 4]


def words(key, first, n):
    out = torch.empty(n, dtype=torch.int64)
    Philox(CPU).words(key, first, out)
    return out.tolist()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_reference_gives_the_published_vectors(counter, key, expected):
    parse = lambda text: [int(word, 16) for word in text.split()]  # noqa: E731
    assert reference(parse(counter), parse(key)) == parse(expected)


def test_the_first_numbers_of_key_zero_are_the_published_ones():
    assert words(0, 0, 4) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**36) | st.integers(2**34 - 50, 2**34 + 50), st.integers(0, 40))
def test_every_element_has_the_number_of_its_place(key, first, n):
    assert words(key, first, n) == [number(key, first + i) for i in range(n)]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_how_a_tensor_is_cut_changes_no_number(data):
    n = 2 * 4 * random._COUNTERS + 1003
    whole = words(77, 5, n)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    generator, pieces = Philox(CPU), []
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        out = torch.empty(stop - start, dtype=torch.int64)
        generator.words(77, 5 + start, out)
        pieces += out.tolist()
    assert pieces == whole


def test_the_key_is_the_first_eight_bytes_of_the_digest_of_what_the_numbers_are_for():
    text = b"42|dare|1|model.layers.0.mlp.up_proj.weight"
    expected = struct.unpack("<Q", hashlib.blake2b(text).digest()[:8])[0]
    assert stream_key(42, "dare", "1", "model.layers.0.mlp.up_proj.weight") == expected


def test_whatever_the_numbers_are_for_changes_them():
    keys = {
        stream_key(seed, purpose, model, tensor) for seed in (0, 1) for purpose in ("dare", "della") for model in "01" for tensor in "ab"
    }
    assert len(keys) == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_element_is_kept_exactly_when_its_uniform_is_below_the_probability(dtype):
    n = 100_000
    uniforms, kept = torch.empty(n, dtype=dtype), torch.empty(n, dtype=torch.bool)
    generator = Philox(CPU)
    generator.uniforms(9, 3, uniforms)
    for probability in (0.0, 2.0**-24, 0.1, 0.5, float(uniforms[7]), 0.999, 1.0):
        generator.keep(9, 3, kept, probability)
        assert torch.equal(kept, uniforms.double() < probability)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert torch.equal(uniforms.double() * 2**24, (uniforms.double() * 2**24).round())


@pytest.mark.parametrize("probability", [0.01, 0.4, 0.9])
def test_the_share_that_is_kept_is_within_five_sigma(probability):
    n = 1 << 20
    kept = torch.empty(n, dtype=torch.bool)
    Philox(CPU).keep(stream_key(1, "dare", "0", "w"), 0, kept, probability)
    sigma = (n * probability * (1 - probability)) ** 0.5
    assert abs(int(kept.sum()) - n * probability) < 5 * sigma


def test_neighbours_models_and_tensors_are_uncorrelated():
    n = 1 << 18
    runs = []
    for model, tensor in (("0", "a"), ("1", "a"), ("0", "b")):
        out = torch.empty(n, dtype=torch.float64)
        Philox(CPU).uniforms(stream_key(0, "dare", model, tensor), 0, out)
        runs.append(out.numpy())
    runs += [np.roll(runs[0], shift) for shift in (1, 2, 3, 4)]
    correlations = np.corrcoef(runs)[np.triu_indices(len(runs), 1)]
    assert np.abs(correlations).max() < 5 / n**0.5
