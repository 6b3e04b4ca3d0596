"""Encoding against the rules in numpy and float64, one after the other, and what they promise: bytes come back, cuts do not show."""

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels.codecs.encode import encode
from paramdelta_dist.kernels.encodings import SCALE_BYTES, Scaled
from tests.kernels.codecs import oracle
from tests.kernels.codecs.test_decode import SCHEMES

SHAPES = [(150, 192), (3, 130, 96), (5, 130), (64,), (2, 3, 4, 38)]
ALL = [(scheme, shape) for scheme in SCHEMES for shape in SHAPES]


def run(base, others, numbers, first=0, last=None):
    """Bytes of codes and scales, and the outcome."""
    last = prod(base.shape) if last is None else last
    codes, scales = (bytearray(stop - start) for start, stop in base.encoding.ranges(base.shape, first, last)[:2])
    outcome = encode(
        base.encoding,
        oracle.read_only(numbers),
        base.shape,
        first,
        last,
        oracle.stored(base, first, last),
        [oracle.stored(each, first, last) for each in others],
        memoryview(codes),
        memoryview(scales),
    )
    return bytes(codes), bytes(scales), outcome


def arrays_of(checkpoint):
    return tuple(array.tobytes() for array in checkpoint.arrays[:2])


def near(checkpoint, seed, by):
    """The numbers of a checkpoint, most of them changed: in some blocks none, in others so much that scales clip."""
    random = np.random.default_rng(seed)
    numbers = oracle.decoded(checkpoint)
    block = oracle.block_numbers(checkpoint.encoding, checkpoint.shape)
    size = random.choice([0.0, by, 1.0], block.max() + 1)[block]
    return (numbers * (1 + size * random.normal(size=len(numbers)))).astype(numbers.dtype)


def with_whole(checkpoint, other):
    """Another checkpoint's codes and scales with the first's number for the tensor."""
    return oracle.Checkpoint(other.encoding, other.shape, other.arrays[:2] + checkpoint.arrays[2:])


@pytest.mark.parametrize(("scheme", "shape"), ALL, ids=str)
def test_what_is_decoded_and_not_changed_comes_back_byte_for_byte(scheme, shape):
    base = oracle.random_checkpoint(SCHEMES[scheme], shape, 1)
    codes, scales, outcome = run(base, [], oracle.decoded(base))
    assert (codes, scales) == arrays_of(base)
    assert outcome.passed == len(scales) // SCALE_BYTES[base.encoding.scale]
    assert outcome[1:] == (0, 0, 0, None, 1.0)


@pytest.mark.parametrize(("scheme", "shape"), ALL, ids=str)
def test_the_numbers_of_a_post_become_its_bytes(scheme, shape):
    base, other, post = (oracle.random_checkpoint(SCHEMES[scheme], shape, seed) for seed in (1, 2, 3))
    codes, scales, _ = run(base, [with_whole(base, other), with_whole(base, post)], oracle.decoded(with_whole(base, post)))
    assert (codes, scales) == arrays_of(post)


@pytest.mark.parametrize(("scheme", "shape"), ALL, ids=str)
def test_numbers_that_changed_are_encoded_by_the_rules(scheme, shape):
    base, post = (oracle.random_checkpoint(SCHEMES[scheme], shape, seed) for seed in (1, 2))
    post = with_whole(base, post)
    numbers = near(base, 3, 0.02)
    block = oracle.block_numbers(base.encoding, shape)
    numbers = np.where(block % 5 == 4, oracle.decoded(post), numbers)
    codes, scales, outcome = run(base, [post], numbers)
    expected_codes, expected_scales = oracle.encoded(base, [post], numbers)
    assert np.array_equal(np.frombuffer(scales, np.uint8), np.frombuffer(expected_scales, np.uint8))
    assert np.array_equal(np.frombuffer(codes, np.uint8), np.frombuffer(expected_codes, np.uint8))
    assert sum(outcome[:3]) == block.max() + 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_bytes_are_the_same_however_the_tensor_is_cut(data):
    encoding = SCHEMES[data.draw(st.sampled_from(sorted(SCHEMES)))]
    shape = data.draw(st.sampled_from(SHAPES))
    seed = data.draw(st.integers(0, 3))
    base, post = (oracle.random_checkpoint(encoding, shape, seed + k) for k in (0, 10))
    numbers = near(base, seed, 0.1)
    whole = run(base, [post], numbers)
    grain, size = encoding.grain(shape) if encoding.rows else prod(shape), prod(shape)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, size // grain)), max_size=4)) - {0})
    edges = [0, *(cut * grain for cut in cuts if cut * grain < size), size]
    pieces = [run(base, [post], numbers[one:other], one, other) for one, other in pairwise(edges)]
    assert b"".join(piece[0] for piece in pieces) == whole[0]
    assert (b"".join(piece[1] for piece in pieces) if encoding.rows else pieces[0][1]) == whole[1]
    if not encoding.rows:  # one scale, and so one block for each piece
        return
    assert [sum(each) for each in zip(*(piece[2][:4] for piece in pieces), strict=True)] == list(whole[2][:4])
    worst = max((piece[2] for piece in pieces), key=lambda outcome: outcome.factor)
    assert (worst.factor, worst.misfit) == (whole[2].factor, whole[2].misfit)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_stored_is_the_nearest_that_can_be_stored(data):
    """Half a step away at most, where a step is the distance of two codes; the largest number of a block never grows smaller by more."""
    encoding = SCHEMES[data.draw(st.sampled_from([name for name in sorted(SCHEMES) if SCHEMES[name].rows]))]
    shape = data.draw(st.sampled_from(SHAPES))
    base = oracle.random_checkpoint(encoding, shape, data.draw(st.integers(0, 5)))
    numbers = near(base, data.draw(st.integers(0, 5)), data.draw(st.sampled_from([1e-3, 0.05, 0.7])))
    codes, scales, outcome = run(base, [], numbers)
    if outcome.misfit is not None:
        return
    made = oracle.Checkpoint(encoding, shape, (np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8), *base.arrays[2:]))
    scale = oracle.effective_scales(made)[oracle.block_numbers(encoding, shape)]
    exponent = np.floor(np.log2(np.maximum(np.abs(numbers / scale), 1e-30)))
    step = scale * {"e4m3": 2.0 ** (np.maximum(exponent, -6) - 3), "e2m1": 2.0 ** (np.maximum(exponent, 0) - 1), "int4": 1.0}[encoding.code]
    assert (np.abs(oracle.decoded(made).astype(np.float64) - numbers) <= step / 2 * (1 + 1e-12)).all()


def test_a_new_scale_is_the_least_that_does_not_clip():
    for name, encoding in SCHEMES.items():
        if not encoding.rows:
            continue
        shape = (64, 128)
        base = oracle.random_checkpoint(encoding, shape, 4, whole=1.0)
        numbers = (oracle.decoded(base) * 1.9).astype(oracle.NUMBERS[encoding.numbers])
        codes, scales, outcome = run(base, [], numbers)
        made = oracle.Checkpoint(encoding, shape, (np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8), *base.arrays[2:]))
        now, before = oracle.effective_scales(made), oracle.effective_scales(base)
        block = oracle.block_numbers(encoding, shape)
        largest = np.array([np.abs(numbers[block == number]).max() for number in range(block.max() + 1)])
        changed = now != before
        assert changed.any(), name
        assert outcome.rescaled == changed.sum()
        assert (oracle.HIGHEST[encoding.code] * now[changed] >= largest[changed]).all()
        if encoding.powers_of_two or encoding.scale == "E8M0":
            assert (np.frexp(now[changed])[0] == 0.5).all()


def test_scales_that_no_number_can_have_been_divided_by_are_replaced():
    encoding = Scaled("e4m3", 1, 0, "F32")
    scales = np.array([0, np.inf, np.nan, -1, 1], "<f4")
    base = oracle.Checkpoint(encoding, (5, 4), (np.full(20, 0x38, np.uint8), scales.view(np.uint8)))
    numbers = np.arange(20.0)
    codes, found, outcome = run(base, [], numbers)
    assert np.frombuffer(found, "<f4").tolist() == [*(oracle.least_scale(encoding, largest, 1.0) for largest in (3, 7, 11, 15)), 1]
    assert (outcome.rescaled, outcome.kept) == (4, 1)
    assert np.array_equal(np.frombuffer(codes, np.uint8), np.frombuffer(oracle.encoded(base, [], numbers)[0], np.uint8))


def test_zeros_where_the_scale_is_none_get_one():
    for scale in ("F32", "BF16", "F16", "F64", "F8_E4M3", "E8M0"):
        encoding = Scaled("e4m3", 1, 0, scale)
        none = np.array([float("nan")], oracle.SCALES[scale]).view(np.uint8)
        base = oracle.Checkpoint(encoding, (1, 4), (np.zeros(4, np.uint8), none))
        codes, scales, _ = run(base, [], np.zeros(4, oracle.NUMBERS[encoding.numbers]))
        assert codes == bytes(4)
        assert np.frombuffer(scales, oracle.SCALES[scale]).astype(np.float64)[0] == 1, scale


@pytest.mark.parametrize("code", ["e4m3", "e2m1"])
def test_a_negative_zero_stays_one(code):
    base = oracle.random_checkpoint(Scaled(code, 1, 32, "E8M0"), (1, 32), 1)
    numbers = np.where(np.arange(32) % 2, np.float32(-0.0), np.float32(0.0)).astype(np.float32)
    codes, _, _ = run(base, [], numbers)
    assert codes == (b"\x00\x80" * 16 if code == "e4m3" else b"\x80" * 16)


def test_what_the_number_for_a_tensor_does_not_allow_is_reported_and_not_silently_clipped():
    encoding = Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides")
    base = oracle.random_checkpoint(encoding, (4, 32), 1, whole=10.0)
    numbers = oracle.decoded(base) * 0.9
    numbers[70] = -448 * 6 / 10 * 3
    numbers[71] = 448 * 6 / 10 * 2
    *_, outcome = run(base, [], numbers)
    assert outcome.misfit == 70
    assert outcome.factor == pytest.approx(3, rel=1e-12)
    assert run(base, [], numbers[64:], 64, 128)[2].misfit == 70
    numbers[70:72] = 448 * 6 / 10  # more than 6 · (448 / 10) by a rounding
    codes, scales, outcome = run(base, [], numbers)
    assert (outcome.misfit, outcome.factor) == (None, 1.0)
    assert (codes[35], scales[4]) == (0x77, 0x7E)


def test_one_scale_for_a_tensor_stays_and_what_exceeds_it_is_reported():
    base = oracle.random_checkpoint(Scaled("e4m3", 0, 0, "F32"), (3, 8, 4), 1)
    limit = 448 * oracle.effective_scales(base)[0]
    numbers = oracle.decoded(base) / 2
    numbers[[50, 60]] = limit * 1.25, -limit * 1.5
    codes, scales, outcome = run(base, [], numbers)
    assert scales == base.arrays[1].tobytes()
    assert (outcome.misfit, outcome.factor) == (60, pytest.approx(1.5))
    assert (codes[50], codes[60]) == (0x7E, 0xFE)
    assert (outcome.kept, outcome.rescaled) == (1, 0)


def test_a_post_with_another_number_for_the_tensor_is_not_copied():
    encoding = Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides")
    base, post = oracle.random_checkpoint(encoding, (4, 32), 1, whole=64.0), oracle.random_checkpoint(encoding, (4, 32), 2, whole=32.0)
    codes, scales, outcome = run(base, [post], oracle.decoded(post))
    assert outcome.passed == 0
    assert (codes, scales) == oracle.encoded(base, [], oracle.decoded(post))


@pytest.mark.parametrize("scheme", ["block fp8", "mxfp8", "mxfp4", "int4", "small blocks"])
def test_numbers_that_are_not_finite_are_counted_and_hurt_no_others(scheme):
    base = oracle.random_checkpoint(SCHEMES[scheme], (64, 96), 1)
    numbers = (oracle.decoded(base) * 1.1).astype(oracle.NUMBERS[base.encoding.numbers])
    bad = np.array([5, 1000, 1001, 4000])
    finite = numbers.copy()
    finite[bad] = 0
    numbers[bad] = np.nan, np.inf, -np.inf, np.nan
    (codes, scales, outcome), (expected, expected_scales, _) = run(base, [], numbers), run(base, [], finite)
    assert outcome.nonfinite == 4
    assert scales == expected_scales
    found, good = (oracle.nibbles_of(base.encoding, np.frombuffer(each, np.uint8)) for each in (codes, expected))
    assert (found[bad] == {"e4m3": 0x7F, "e2m1": 0, "int4": 8}[base.encoding.code]).all()
    assert np.array_equal(np.delete(found, bad), np.delete(good, bad))


def test_nothing_finite_is_no_reason_to_fail():
    base = oracle.random_checkpoint(SCHEMES["small blocks"], (4, 6), 1)
    codes, _, outcome = run(base, [], np.full(24, np.nan))
    assert codes == b"\x7f" * 24
    assert (outcome.nonfinite, outcome.misfit) == (24, None)


def test_integers_reach_minus_8_without_another_scale():
    base = oracle.Checkpoint(Scaled("int4", 1, 32, "F32"), (1, 32), (np.full(16, 0x88, np.uint8), np.ones(1, "<f4").view(np.uint8)))
    numbers = np.linspace(-8.5, 7.5, 32)
    codes, scales, outcome = run(base, [], numbers)
    assert (outcome.kept, scales) == (1, base.arrays[1].tobytes())
    assert oracle.nibbles_of(base.encoding, np.frombuffer(codes, np.uint8)).tolist() == (np.clip(np.rint(numbers), -8, 7) + 8).tolist()
    assert run(base, [], np.nextafter(numbers, np.sign(numbers) * 99))[2].rescaled == 1


@pytest.mark.parametrize(("first", "last"), [(64, 576 * 192), (0, 192), (0, 0)])
def test_a_cut_within_a_block_is_refused(first, last):
    base = oracle.random_checkpoint(SCHEMES["block fp8"], (576, 192), 1)
    with pytest.raises(ValueError, match=r"24576|cut"):
        run(base, [], oracle.decoded(base)[first:last], first, last)
