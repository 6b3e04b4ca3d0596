"""The merge in one pass is decoding, adding and encoding one after the other, to the last byte."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs import merge
from paramdelta_dist.kernels.codecs.encode import encode
from paramdelta_dist.kernels.codecs.merge import merge_scaled, strip_columns
from paramdelta_dist.kernels.raw import RawElements
from paramdelta_dist.kernels.sum_cpu import add_deltas
from tests.kernels.codecs import oracle
from tests.kernels.codecs.test_decode import SCHEMES

SHAPES = [(150, 192), (3, 130, 96), (5, 130), (64,), (2, 3, 4, 38)]


def buffers(base, first, last):
    return [bytearray(stop - start) for start, stop in base.encoding.ranges(base.shape, first, last)[:2]]


def fused(base, deltas, weights, first, last):
    codes, scales = buffers(base, first, last)
    pairs = [tuple(each.of(first, last) for each in pair) for pair in deltas]
    return (
        codes,
        scales,
        merge_scaled(base.encoding, base.shape, first, last, base.of(first, last), pairs, weights, memoryview(codes), memoryview(scales)),
    )


def one_after_the_other(base, deltas, weights, first, last):
    codes, scales = buffers(base, first, last)
    kept, stored = oracle.stored(base, first, last), [[oracle.stored(each, first, last) for each in pair] for pair in deltas]
    total = np.empty(last - first, oracle.NUMBERS[base.encoding.numbers])
    raw = lambda data: RawElements(memoryview(data).cast("B"), base.encoding.numbers)  # noqa: E731
    nonfinite = add_deltas(raw(total), raw(kept.numbers), [(raw(post.numbers), raw(old.numbers)) for post, old in stored], weights)
    posts = [post for post, _ in stored]
    outcome = encode(
        base.encoding, memoryview(total).cast("B"), base.shape, first, last, kept, posts, memoryview(codes), memoryview(scales)
    )
    return codes, scales, (outcome, *nonfinite)


def relative(checkpoint, seed, part):
    """A checkpoint that differs from another in a part of its codes and in some scales."""
    random = np.random.default_rng(seed)
    codes, scales = (array.copy() for array in checkpoint.arrays[:2])
    changed = random.random(len(codes)) < part
    codes[changed] ^= random.integers(0, 4, changed.sum(), np.uint8)
    if checkpoint.encoding.code == "e4m3":
        codes[codes & 0x7F == 0x7F] ^= 1
    other = oracle.random_checkpoint(checkpoint.encoding, checkpoint.shape, seed).arrays[1]
    width = len(scales) // (len(scales) // oracle.SCALE_BYTES[checkpoint.encoding.scale])
    swap = (random.random(len(scales) // width) < part / 3).repeat(width)
    return oracle.Checkpoint(checkpoint.encoding, checkpoint.shape, (codes, np.where(swap, other, scales), *checkpoint.arrays[2:]))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_it_gives_the_bytes_and_the_outcome_of_decoding_adding_and_encoding(data):
    encoding = SCHEMES[data.draw(st.sampled_from([name for name in sorted(SCHEMES) if SCHEMES[name].rows]))]  # one scale is decided before
    shape = data.draw(st.sampled_from(SHAPES))
    seed = data.draw(st.integers(0, 5))
    base = oracle.random_checkpoint(encoding, shape, seed)
    part = data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    count = data.draw(st.integers(0, 3))
    own = data.draw(st.booleans())
    deltas = [(relative(base, 10 + k, part), base if own else relative(base, 20 + k, part / 2)) for k in range(count)]
    weights = [data.draw(st.sampled_from([1.0, 0.5, -1.0, 0.3, 2.0])) for _ in deltas]
    grain, size = encoding.grain(shape), prod(shape)
    first = data.draw(st.integers(0, (size - 1) // grain)) * grain
    last = min(size, first + data.draw(st.integers(1, size // grain + 1)) * grain)
    assert fused(base, deltas, weights, first, last) == one_after_the_other(base, deltas, weights, first, last)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].rows])
def test_numbers_that_are_not_finite_are_counted_and_found(scheme):
    base = oracle.random_checkpoint(SCHEMES[scheme], (64, 96), 1)
    post = oracle.random_checkpoint(SCHEMES[scheme], (64, 96), 2)
    codes, scales = (array.copy() for array in post.arrays[:2])
    if base.encoding.code == "e4m3":
        codes[[70, 4000]] = 0x7F, 0xFF
    else:
        scales[-oracle.SCALE_BYTES[base.encoding.scale] :] = np.array([np.nan], oracle.SCALES[base.encoding.scale]).view(np.uint8)
    bad = oracle.Checkpoint(post.encoding, post.shape, (codes, scales, *post.arrays[2:]))
    found, expected = (work(base, [(bad, post)], [1.0], 0, 64 * 96) for work in (fused, one_after_the_other))
    assert found == expected
    assert found[2].nonfinite > 0


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].rows])
def test_the_width_of_a_strip_does_not_show(scheme, monkeypatch):
    base = oracle.random_checkpoint(SCHEMES[scheme], (40, 320), 1)
    deltas = [(relative(base, 2, 0.5), relative(base, 3, 0.1))]
    whole = fused(base, deltas, [1.0], 0, 40 * 320)
    monkeypatch.setattr(merge, "STRIP", 1)
    assert strip_columns(base.encoding, base.shape) == (base.encoding.columns or 320 if base.encoding.rows else 320)
    assert fused(base, deltas, [1.0], 0, 40 * 320) == whole


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].rows])
def test_a_delta_over_its_own_base_gives_every_byte_of_the_post(scheme):
    base, post = (
        oracle.random_checkpoint(SCHEMES[scheme], (64, 192), 1, whole=3.0),
        oracle.random_checkpoint(SCHEMES[scheme], (64, 192), 2, whole=3.0),
    )
    codes, scales, merged = fused(base, [(post, base)], [1.0], 0, 64 * 192)
    assert (bytes(codes), bytes(scales)) == tuple(array.tobytes() for array in post.arrays[:2])
    assert merged.outcome[1:4] == (0, 0, 0)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].rows and SCHEMES[name].code != "int4"])
@pytest.mark.parametrize("width", [320, 96])
def test_zeros_of_the_other_sign_make_a_block_another(scheme, width):
    """A post that differs from its base in signs of zeros alone gives its own bytes, in one pass as in several."""
    encoding = SCHEMES[scheme]
    base = oracle.random_checkpoint(encoding, (64, width), 1)
    codes = base.arrays[0].copy()
    zeros = codes & (0x7F if encoding.code == "e4m3" else 0x77) == 0
    codes[::5] = 0
    zeros[::5] = True
    old = oracle.Checkpoint(encoding, base.shape, (codes, *base.arrays[1:]))
    signed = codes.copy()
    signed[zeros] ^= 0x80 if encoding.code == "e4m3" else 0x88
    post = oracle.Checkpoint(encoding, base.shape, (signed, *base.arrays[1:]))
    found, expected = (work(old, [(post, old)], [1.0], 0, 64 * width) for work in (fused, one_after_the_other))
    assert found == expected
    assert bytes(found[0]) == signed.tobytes()
