"""Merges of every kind, computed by a DeviceMerger and by the CPU, whose bytes must be the same.

A program too: Triton reads at import whether to interpret its kernels on the CPU, so that takes a process of its own.
"""

import random
import sys
from dataclasses import dataclass

import torch

from paramdelta_dist.kernels import sum_torch as merging
from paramdelta_dist.kernels.sum_cpu import add_deltas
from paramdelta_dist.kernels.sum_gpu import DeviceMerger
from paramdelta_dist.kernels.sum_torch import Merger
from paramdelta_dist.kernels.torch_views import values_of

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
PADDING = merging.DEVICE_PADDING
SIZES = (1, 63, 64, 65, 1000, PADDING - 1, PADDING, PADDING + 1, 3 * PADDING + 17)
WEIGHTS = (1.0, 1.0, 1, 0.5, -0.7, -1.0, 1e-3, 1 / 3, 2.0, 0.0, 1e-41)


@dataclass(frozen=True)
class Case:
    out_dtype: torch.dtype
    base: torch.Tensor
    deltas: list[tuple[torch.Tensor, torch.Tensor]]
    weights: list[float]

    def __str__(self) -> str:
        pairs = ", ".join(f"{w}·({p.dtype} − {'the base' if o is self.base else o.dtype})" for (p, o), w in zip(self.deltas, self.weights))  # noqa: B905
        return f"{self.out_dtype} = {self.base.dtype}[{self.base.numel()}] + {pairs}".replace("torch.", "")


def specials(dtype: torch.dtype) -> torch.Tensor:
    info = torch.finfo(dtype)
    positive = [
        0.0,
        info.smallest_normal,
        info.tiny * info.eps,
        info.tiny * 0.75,
        1.0,
        1.0 + info.eps,
        3.0,
        info.max / 2,
        info.max,
        float("inf"),
    ]
    return torch.tensor([*positive, *(-value for value in positive), float("nan")], dtype=torch.float64).to(dtype)


def values(pick: random.Random, n: int, dtype: torch.dtype, near: torch.Tensor | None) -> torch.Tensor:
    """n numbers: any bits at all, special ones, like those of a model, or little different from `near`, in part the same."""
    generator = torch.Generator().manual_seed(pick.getrandbits(60))
    kind = pick.choice(["bits", "special", "model", "model", "near", "near", "near"])
    if kind == "bits":
        integer = INTEGER[dtype.itemsize]
        info = torch.iinfo(integer)
        return torch.randint(info.min, info.max, (n,), generator=generator, dtype=integer).view(dtype)
    if kind == "special":
        return specials(dtype)[torch.randint(0, len(specials(dtype)), (n,), generator=generator)]
    model = torch.randn(n, generator=generator, dtype=torch.float64) * torch.exp2(-20 * torch.rand(n, generator=generator).double())
    model[torch.rand(n, generator=generator) < 0.05] = pick.choice([0.0, -0.0])
    if kind == "near" and near is not None:
        same = torch.rand(n, generator=generator) < 0.3
        return torch.where(same, near.double(), near.double() + 0.01 * model).to(dtype)
    return model.to(dtype)


def make_case(seed: int) -> Case:
    pick = random.Random(seed)
    n, count = pick.choice(SIZES), pick.randint(1, 8)
    one = pick.choice([None, *DTYPES])
    dtype = lambda: one or pick.choice(DTYPES)  # noqa: E731
    base = values(pick, n, dtype(), None)
    deltas = []
    for _ in range(count):
        old = base if pick.random() < 0.4 else values(pick, n, dtype(), base)
        deltas.append((values(pick, n, dtype(), old), old))
    if pick.random() < 0.1:
        deltas[-1] = (base, base)
    return Case(dtype(), base, deltas, [pick.choice(WEIGHTS) for _ in range(count)])


def ties() -> list[Case]:
    """float64 a little beside the middle between two numbers of 16 bits, which torch rounds first to float32, the middle."""
    numbers = [sign * (1 + 2.0**-place + nudge) for place in (8, 9, 11, 12) for nudge in (2.0**-40, -(2.0**-40)) for sign in (1, -1)]
    base = torch.tensor([*numbers, 65520 - 2.0**-9, 65520 - 2.0**-8], dtype=torch.float64)
    return [Case(dtype, base, [(base, base)], [0.5]) for dtype in DTYPES[:2]]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTEGER[tensor.dtype.itemsize])


def compare(case: Case, merger: DeviceMerger | Merger) -> None:
    expected = torch.empty(case.base.shape, dtype=case.out_dtype)
    pairs = [(values_of(post), values_of(old)) for post, old in case.deltas]
    counted = add_deltas(values_of(expected), values_of(case.base), pairs, case.weights)
    out = torch.full_like(expected, 13.0)
    found = merger.merge(out, case.base, case.deltas)
    differ = torch.nonzero(bits(out) != bits(expected)).flatten().tolist()
    if differ:
        place = differ[0]
        inputs = [case.base[place].item(), *((p[place].item(), o[place].item()) for p, o in case.deltas)]
        raise AssertionError(
            f"{case}: {len(differ)} elements differ, first at {place}: {out[place].item()!r} is not {expected[place].item()!r}, of {inputs}"
        )
    assert found == counted, f"{case}: {found} is not {counted}"


def make_merger(weights: list[float], device: str, *, fused: bool) -> DeviceMerger:
    merger = DeviceMerger(weights, torch.device(device), fused=fused)
    assert fused == (merger._kernel is not None), "the fused kernel is not used"
    return merger


def compare_all(device: str, *, fused: bool, seeds: range) -> None:
    """Every seed's case, in one block and in several; one merger sees runs of changing size and dtype."""
    mergers: dict[int, DeviceMerger] = {}
    for number, one in enumerate([*ties(), *map(make_case, seeds)]):
        merger = make_merger(one.weights, device, fused=fused)
        if number % 2:
            merger = mergers.setdefault(len(one.weights), merger)
        merger.block = merging.DEVICE_BLOCK if number % 3 else PADDING + 100
        compare(Case(one.out_dtype, one.base, one.deltas, list(merger.weights)), merger)


if __name__ == "__main__":
    from paramdelta_dist.kernels import sum_triton as fused

    assert not hasattr(fused._add_deltas, "device_caches"), "this is not the interpreter: set TRITON_INTERPRET=1"
    compare_all("cpu", fused=True, seeds=range(*map(int, sys.argv[1:3])))
    print("the same")
