"""A GPU gives the bytes of the CPU: on one where there is one, by Triton's interpreter, and by what the compiler makes."""

import mmap
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from paramdelta_dist.kernels import sum_gpu as devices
from paramdelta_dist.kernels import sum_torch as merging
from paramdelta_dist.kernels.sum_gpu import DeviceMerger, pin, unpin
from paramdelta_dist.kernels.sum_torch import Merger
from tests.kernels.device_cases import Case, compare, compare_all, make_case, make_merger

ROOT = Path(__file__).parents[2]
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def triton_is_new_enough() -> bool:
    """An older one comes with a build of torch for GPUs, and is not used."""
    try:
        return Version(version("triton")) >= Version("3.4")
    except PackageNotFoundError:
        return False


needs_triton = pytest.mark.skipif(
    not triton_is_new_enough(), reason="Triton 3.4 or newer is not installed (the gpu extra): the fused kernel is unverified here"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: byte equality on the GPU is unverified here")


def test_blocks_slots_and_lanes_change_nothing():
    compare_all("cpu", fused=False, seeds=range(150))


@needs_triton
def test_the_fused_kernel_gives_the_bytes_of_the_cpu_when_interpreted():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.device_cases", "0", "150"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "the same\n", done.stdout + done.stderr


def compiled(monkeypatch, tmp_path, what, arch, *, fusion):
    """The kernel for `what`, compiled for a GPU that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paramdelta_dist.kernels import sum_triton as fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = what.constants()
    names = ["arena", "pitch", "n", "weights", "tally"]
    types = ["*u8", "i32", "i32", "*fp64" if constants["WIDE"] else "*fp32", "*i64"]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("arena", "pitch")}
    source = ASTSource(fused._add_deltas, dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr"), constants, aligned)
    options = {"enable_fp_fusion": fusion, "num_warps": fused._WARPS}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]


def contractions(ptx):
    return re.findall(r"\b(?:fma|mad)\.[a-z.]*(?:f16|bf16|f32|f64)\S*", ptx)


SUMS = {
    "bf16": ((BF16,) * 4, ((1, 2),), (1.0,)),
    "bf16 weighted": ((BF16,) * 4, ((1, 2),), (0.5,)),
    "f16 on the same base": ((F16,) * 4, ((1, 0), (2, 0)), (1.0, -0.7)),
    "f32": ((F32,) * 4, ((1, 2),), (0.7,)),
    "f64": ((F64,) * 4, ((1, 2),), (0.7,)),
    "mixed": ((BF16, F32, F16, F64, F16), ((1, 0), (2, 3)), (1.0, 0.3)),
    "f64 to bf16": ((F64, F64, BF16, BF16), ((1, 2),), (-0.7,)),
}


@needs_triton
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", SUMS)
def test_compiled_arithmetic_rounds_each_operation_to_nearest_and_keeps_subnormals(monkeypatch, tmp_path, name, arch):

    from paramdelta_dist.kernels.sum_triton import FusedLaunch

    ptx = compiled(monkeypatch, tmp_path, FusedLaunch(*SUMS[name]), arch, fusion=False)
    assert not contractions(ptx)
    assert ".ftz" not in ptx
    assert not re.search(r"\.approx|\.sat\b", ptx)
    arithmetic = re.findall(r"\b(?:add|sub|mul)\.\S*f(?:16|32|64)\S*", ptx)
    assert arithmetic
    assert all(".rn." in operation for operation in arithmetic), set(arithmetic)
    narrowing = re.findall(r"\bcvt\.\S*(?:f32\.f64|f16\S*\.f32|f16\S*\.f64)\b", ptx)
    assert all(".rn." in operation for operation in narrowing), set(narrowing)
    assert bool(narrowing) == (name not in ("bf16", "bf16 weighted", "f64"))


@needs_triton
def test_the_check_for_fusion_can_fail(monkeypatch, tmp_path):

    from paramdelta_dist.kernels.sum_triton import FusedLaunch

    assert contractions(compiled(monkeypatch, tmp_path, FusedLaunch(*SUMS["bf16 weighted"]), 90, fusion=True))


@needs_triton
@pytest.mark.parametrize("name", ["bf16", "f16 on the same base", "f32"])
def test_compiled_memory_accesses_are_wide_and_every_input_is_read_once(monkeypatch, tmp_path, name):

    from paramdelta_dist.kernels.sum_triton import FusedLaunch

    what = FusedLaunch(*SUMS[name])
    ptx = compiled(monkeypatch, tmp_path, what, 90, fusion=False)
    threads = 32 * 4
    wide = re.findall(r"\bld\.global\S*\.v4\.b32", ptx)
    assert len(wide) * 16 * threads == merging.DEVICE_PADDING * sum(dtype.itemsize for dtype in what.dtypes[:-1])


def test_without_triton_the_same_comes_from_plain_blocks(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "paramdelta_dist.kernels.sum_triton", raising=False)
    monkeypatch.delattr("paramdelta_dist.kernels.sum_triton", raising=False)
    one = make_case(3)
    compare(one, DeviceMerger(one.weights, torch.device("cpu")))


@pytest.mark.parametrize("fault", ["it raises", "it gives other bytes", "it counts wrong"])
def test_a_fused_kernel_that_does_not_work_is_not_used(monkeypatch, caplog, fault):
    def kernel(arena, pitch, n, what, weights, tally):
        if fault == "it raises":
            raise OSError("no compiler")
        if fault == "it counts wrong":
            exact.merge(*views_of(arena, pitch, n, what))

    exact = Merger((1.0,), torch.device("cpu"))
    # patched, because the module that fails is one that is not there without a GPU
    monkeypatch.setattr("paramdelta_dist.kernels.sum_triton", SimpleNamespace(FusedLaunch=FakeSum, add_deltas=kernel), raising=False)
    one = make_case(3)
    merger = DeviceMerger([1.0], torch.device("cpu"))
    assert "does not work here: " + ("OSError: no compiler" if fault == "it raises" else "its results are not the CPU's") in caplog.text
    compare(Case(one.out_dtype, one.base, one.deltas[:1], [1.0]), merger)


@dataclass(frozen=True)
class FakeSum:
    dtypes: tuple[torch.dtype, ...]
    deltas: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    compute = F32

    def magnitudes(self, device):
        return torch.tensor(self.weights, device=device)


def views_of(arena, pitch, n, what):
    views = [arena[slot * pitch :][: n * dtype.itemsize].view(dtype) for slot, dtype in enumerate(what.dtypes)]
    return views[-1], views[0], [(views[post], views[old]) for post, old in what.deltas]


def test_memory_named_twice_goes_up_once(monkeypatch):
    base, post = torch.randn(100).bfloat16(), torch.randn(100).bfloat16()
    seen = []
    real = devices._Lane.up
    # patched, because on a CPU nothing goes anywhere that could be seen
    monkeypatch.setattr(devices._Lane, "up", lambda lane, inputs, out: seen.append(len(inputs)) or real(lane, inputs, out))
    one = Case(BF16, base, [(post, base), (post, base.clone())], [1.0, 0.5])
    compare(one, make_merger(one.weights, "cpu", fused=False))
    assert seen == [3]


def test_nothing_is_merged_from_nothing():
    empty = torch.empty(0, dtype=BF16)
    assert make_merger([1.0], "cpu", fused=False).merge(empty.clone(), empty, [(empty, empty)]) == (0, 0)


@needs_cuda
@pytest.mark.parametrize("fused", [pytest.param(True, marks=needs_triton), False])
def test_a_gpu_gives_the_bytes_of_the_cpu(fused):
    compare_all("cuda", fused=fused, seeds=range(80 if fused else 600))  # a fused case takes a second to compile


@needs_cuda
def test_pinned_memory_is_used_as_it_is_and_can_be_let_go():
    size = 1 << 20
    buffers = [mmap.mmap(-1, size) for _ in range(4)]
    for buffer in buffers:
        pin(buffer)
    base, post, old, out = (torch.frombuffer(buffer, dtype=BF16) for buffer in buffers)
    assert base.is_pinned()
    assert out[100:].is_pinned()
    for tensor in (base, post, old):
        tensor.copy_(torch.randn(size // 2))
    one = Case(BF16, base.clone(), [(post.clone(), old.clone())], [1.0])
    merger = make_merger(one.weights, "cuda", fused=False)
    merger.merge(out, base, [(post, old)])
    assert not any(lane._staging for lane in merger._lanes)
    expected = out.clone()
    for buffer in buffers:
        unpin(buffer)
    assert not base.is_pinned()
    merger.merge(out.zero_(), base, [(post, old)])
    assert torch.equal(out, expected)


@needs_cuda
def test_threads_with_a_merger_each_do_not_disturb_one_another():
    failures = []

    def work(first):
        try:
            compare_all("cuda", fused=True, seeds=range(first, first + 15))
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
