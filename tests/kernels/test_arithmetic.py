"""The arithmetic against float64: one rounding, exact identities, the same result however it is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.kernels import jit as compiling
from paramdelta_dist.kernels import sum_cpu as compiled
from paramdelta_dist.kernels import sum_torch as merging
from paramdelta_dist.kernels.elementwise import overflow_limit
from paramdelta_dist.kernels.sum_torch import Merger
from paramdelta_dist.kernels.torch_views import values_of, view
from paramdelta_dist.planning import memory

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def _implementation(request):
    global IMPLEMENTATION
    IMPLEMENTATION = request.param


IMPLEMENTATION = ""


def bits(tensor):
    return tensor.view(INTEGER[tensor.dtype.itemsize])


def numbers(seed, n, dtype, spread=20.0):
    """Values over many magnitudes, with zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=torch.float64) * torch.exp2(
        -spread * torch.rand(n, generator=generator, dtype=torch.float64)
    )
    values[:: max(1, n // 7)] = 0.0
    values[3 :: max(1, n // 5)] = -0.0
    return values.to(dtype)


def merge(out_dtype, base, deltas, weights):
    out = torch.empty(base.shape, dtype=out_dtype)
    if IMPLEMENTATION == "torch":
        return out, Merger(weights, torch.device("cpu")).merge(out, base, deltas)
    return out, compiled.add_deltas(values_of(out), values_of(base), [(values_of(post), values_of(old)) for post, old in deltas], weights)


def set_block(monkeypatch, block):
    """Patched and not given: the size of a block is a constant of the kernels that no caller chooses, and the results of which must not
    depend on it."""
    monkeypatch.setattr(compiled, "L1_BLOCK", block)
    monkeypatch.setattr(merging, "METHOD_BLOCK", block)


def oracle(out_dtype, base, deltas, weights):
    acc = base.double()
    for (post, old), weight in zip(deltas, weights, strict=True):
        acc = acc + weight * (post.double() - old.double())
    return acc.to(out_dtype)


def ulps_apart(one, two, scale):
    """Distance in units of the last place of `scale`, the largest number that took part."""
    eps = torch.finfo(one.dtype).eps
    return (
        ((one.double() - two.double()).abs() / (torch.maximum(scale.double().abs(), two.double().abs()) * eps).clamp_min(1e-300))
        .max()
        .item()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 63, 1000, merging.METHOD_BLOCK + 1])
def test_a_delta_on_the_same_base_gives_exactly_the_post(dtype, n):
    base, post = numbers(1, n, dtype), numbers(2, n, dtype)
    out, _ = merge(dtype, base, [(post, base.clone())], [1.0])
    assert torch.equal(bits(out), bits(post))


@pytest.mark.parametrize("old_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_the_same_base_gives_the_post_rounded_once_in_any_mix_of_dtypes(old_dtype, out_dtype):
    base, post = numbers(1, 5000, old_dtype), numbers(2, 5000, old_dtype)
    out, _ = merge(out_dtype, base, [(post, base)], [1.0])
    assert torch.equal(bits(out), bits(post.to(out_dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1.0, -1.0, 0.5, -2.0])
def test_a_post_that_equals_its_base_leaves_the_new_base_to_the_last_bit(dtype, weight):
    base, post = numbers(1, 5000, dtype), numbers(2, 5000, dtype)
    out, _ = merge(dtype, base, [(post, post)], [weight])
    assert torch.equal(bits(out), bits(base))


def test_no_deltas_give_the_base():
    base = numbers(1, 5000, torch.bfloat16)
    out, _ = merge(torch.bfloat16, base, [], [])
    assert torch.equal(bits(out), bits(base))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(DTYPES[:3]),
    st.lists(
        st.tuples(st.sampled_from(DTYPES[:3]), st.sampled_from(DTYPES[:3]), st.sampled_from([1.0, 0.7, -1.0, -0.3])), min_size=1, max_size=4
    ),
    st.sampled_from(DTYPES[:3]),
)
def test_a_merge_is_within_one_rounding_of_float64(seed, base_dtype, deltas, out_dtype):
    base = numbers(seed, 700, base_dtype, spread=8)
    pairs = [
        (numbers(seed + 2 * i + 1, 700, p, spread=8), numbers(seed + 2 * i + 2, 700, o, spread=8)) for i, (p, o, _) in enumerate(deltas)
    ]
    weights = [weight for _, _, weight in deltas]
    out, bad = merge(out_dtype, base, pairs, weights)
    assert bad == (0, 0)
    expected = oracle(out_dtype, base, pairs, weights)
    exact = oracle(torch.float64, base, pairs, weights)
    # half a unit for our one rounding, half for the oracle's, of the result itself; cancellation is not excused by more than 2^-14 of it
    largest = torch.stack([t.double().abs() for pair in pairs for t in pair] + [base.double().abs()]).max(0).values
    assert ulps_apart(out, expected, torch.maximum(exact.abs(), largest * 2**-14)) <= 1


def test_real_weights_round_to_the_float64_result_in_all_but_a_few_in_a_million():
    n = 1 << 20
    generator = torch.Generator().manual_seed(7)
    base = (0.02 * torch.randn(n, generator=generator)).bfloat16()
    old = (base.float() + 0.004 * torch.randn(n, generator=generator)).bfloat16()
    post = (old.float() + 0.001 * torch.randn(n, generator=generator)).bfloat16()
    out, _ = merge(torch.bfloat16, base, [(post, old)], [1.0])
    assert int((out != oracle(torch.bfloat16, base, [(post, old)], [1.0])).sum()) <= 4


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("block", [64, 1000, 1 << 12])
def test_the_block_size_does_not_change_a_bit(monkeypatch, dtype, block):
    base, post, old = (numbers(s, 10_001, dtype, spread=10) for s in (1, 2, 3))
    whole, _ = merge(dtype, base, [(post, old), (old, post)], [0.7, 1.0])
    set_block(monkeypatch, block)
    cut, _ = merge(dtype, base, [(post, old), (old, post)], [0.7, 1.0])
    assert torch.equal(bits(whole), bits(cut))


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_number_of_torch_threads_does_not_change_a_bit(dtype):
    base, post, old = (numbers(s, 300_000, dtype, spread=10) for s in (1, 2, 3))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(merge(dtype, base, [(post, old)], [0.9])[0])
    torch.set_num_threads(before)
    assert all(torch.equal(bits(results[0]), bits(result)) for result in results)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_first_element_that_is_not_finite_is_found(dtype):
    n = merging.METHOD_BLOCK + 500
    base, old = torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype)
    post = torch.zeros(n, dtype=dtype)
    post[merging.METHOD_BLOCK + 7] = float("nan")
    post[merging.METHOD_BLOCK + 9] = float("inf")
    assert merge(dtype, base, [(post, old)], [1.0])[1] == (2, merging.METHOD_BLOCK + 7)
    assert merge(dtype, post, [(base, old)], [1.0])[1] == (2, merging.METHOD_BLOCK + 7)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_overflow_of_the_output_dtype_is_found_and_its_largest_number_is_not(dtype):
    largest = torch.finfo(dtype).max
    base = torch.tensor([largest, 1.0], dtype=dtype)
    zero = torch.zeros(2, dtype=dtype)
    assert merge(dtype, base, [(zero, zero)], [1.0])[1] == (0, 0)
    assert merge(dtype, base, [(base, zero)], [1.0])[1] == (1, 0)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_overflow_limit_is_the_exact_border(dtype):
    for wide in (torch.float32, torch.float64)[dtype.itemsize // 4 :]:
        limit = torch.tensor([overflow_limit(dtype, wide)], dtype=wide)
        below = torch.nextafter(limit, torch.zeros_like(limit))
        assert torch.isinf(limit.to(dtype)).item()
        assert torch.isfinite(below.to(dtype)).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_else_is_in_a_block_changes_no_element_however_extreme(monkeypatch, dtype):
    largest, inf, nan = torch.finfo(dtype).max, float("inf"), float("nan")
    extremes = [0.0, -0.0, 1.5, -largest, largest, inf, -inf, nan]
    rows = torch.tensor([(b, p, o) for b in extremes for p in extremes for o in extremes], dtype=dtype)
    base, post, old = (rows[:, i].contiguous() for i in range(3))
    together, counted = merge(dtype, base, [(post, old)], [1.0])
    set_block(monkeypatch, 1)
    alone, counted_alone = merge(dtype, base, [(post, old)], [1.0])
    assert torch.equal(bits(together), bits(alone))
    assert counted == counted_alone
    known = ~torch.isnan(rows).any(1)
    same = known & (bits(base) == bits(old))
    assert torch.equal(bits(together[same]), bits(post[same]))
    left_alone = known & (bits(post) == bits(old)) & torch.isfinite(post)
    assert torch.equal(bits(together[left_alone]), bits(base[left_alone]))


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_is_one_nan(dtype, n):
    infinite, one = torch.full((n,), float("inf"), dtype=dtype), torch.ones(n, dtype=dtype)
    for weight in (1.0, 0.5):
        out, counted = merge(dtype, one, [(infinite, infinite)], [weight])
        assert bits(out).unique().tolist() == bits(torch.tensor([float("nan")], dtype=dtype)).tolist()
        assert counted == (n, 0)


def test_unaligned_memory_is_read_right():
    values = torch.arange(10, dtype=torch.float32)
    raw = b"xyz" + bytes(bits(values).view(torch.uint8).numpy())
    assert torch.equal(view(memoryview(raw)[3:], torch.float32), values)


def test_the_memory_plan_knows_the_kernels_block():
    assert memory.BLOCK_BYTES == merging.METHOD_BLOCK * 8


def test_inputs_are_left_as_they_are():
    base, post, old = (numbers(s, 1000, torch.bfloat16) for s in (1, 2, 3))
    copies = [t.clone() for t in (base, post, old)]
    merge(torch.bfloat16, base, [(post, old)], [0.5])
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip((base, post, old), copies, strict=True))


def test_kernels_are_compiled_where_nothing_can_be_kept():
    scope = {}
    exec("def twice(number): return 2 * number", scope)  # of no file, so there is no place for it
    assert compiling.compiled()(scope["twice"])(21) == 42


def test_inputs_of_another_length_are_refused():
    base = numbers(1, 100, torch.bfloat16)
    with pytest.raises(ValueError, match="100 elements"):
        compiled.add_deltas(values_of(torch.empty_like(base)), values_of(base), [(values_of(base), values_of(base[:99]))], [1.0])
