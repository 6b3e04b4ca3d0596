"""Merging on a GPU: runs of host memory up through pinned buffers, one pass over them there, down again.

A DeviceMerger belongs to one thread and has streams of its own: while one thread's run is on its way down, another's
kernel works and a third's is on its way up. A long run is cut into blocks that take turns on two lanes, so that one
block is copied into or out of pinned memory while the other is on the device.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType

import torch

from paramdelta_dist.errors import EngineError
from paramdelta_dist.kernels.sum_torch import DEVICE_BLOCK, DEVICE_PADDING, Merger
from paramdelta_dist.kernels.torch_views import values_of
from paramdelta_dist.sizes import format_memory

log = logging.getLogger(__name__)


def pin(buffer: mmap.mmap | memoryview) -> None:
    """Lock the pages of `buffer` for the GPU: what lies in it then goes up and down without a copy on the way.

    All of it becomes resident. For buffers that are used many times: this takes about as long as filling them. Undo with `unpin`
    while the buffer is still there. Raises EngineError where the driver refuses.
    """
    view = torch.frombuffer(buffer, dtype=torch.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(view.data_ptr(), view.numel(), 0))
    if code:
        raise EngineError(
            f"the CUDA driver does not lock {format_memory(view.numel())} of memory for copies to the GPU (cudaHostRegister says {code}); "
            "allow this process to lock more memory, give it less to hold (--memory), or compute with --device cpu"
        )


def unpin(buffer: mmap.mmap | memoryview) -> None:
    """Undo `pin`. No merge may be under way with what lies in `buffer`."""
    torch.cuda.cudart().cudaHostUnregister(torch.frombuffer(buffer, dtype=torch.uint8).data_ptr())


class DeviceMerger:
    """`compiled.add_deltas` for tensors in host memory, computed on a GPU to the same bytes. One per thread."""

    def __init__(self, weights: Sequence[float], device: torch.device, *, fused: bool = True) -> None:
        """With `fused`, kernels/sum_triton.py computes wherever it is seen to work, else plain torch."""
        self.block = DEVICE_BLOCK
        """Elements that go up at a time."""
        self.weights = tuple(weights)
        self._lanes = [_Lane(device, Merger(weights, device)) for _ in range(2)]
        self._magnitudes: dict[torch.dtype, torch.Tensor] = {}
        self._kernel = _fused_kernel() if fused else None
        if self._kernel is not None and (fault := self._fault()):
            log.warning("computing on the GPU in plain torch, because the fused kernel does not work here: %s", fault)
            self._kernel = None

    def merge(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        deltas: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[int, int]:
        """Write the merge of base[n] and the (post[n], base[n]) pairs to out[n], all in host memory; returns what `add_deltas` does."""
        slots: dict[tuple[int, torch.dtype], int] = {}
        inputs: list[torch.Tensor] = []

        def slot(tensor: torch.Tensor) -> int:
            """Where a tensor goes; the same memory goes up once, however often it is named."""
            place = slots.setdefault((tensor.data_ptr(), tensor.dtype), len(inputs))
            if place == len(inputs):
                inputs.append(tensor)
            return place

        slot(base)
        pairs = tuple((slot(post), slot(old)) for post, old in deltas)
        waiting: list[tuple[int, _Lane]] = []
        count = first = 0
        try:
            for number, start in enumerate(range(0, out.numel(), self.block)):
                run = slice(start, min(start + self.block, out.numel()))
                lane = self._lanes[number % 2]
                if len(waiting) == len(self._lanes):
                    count, first = _add(count, first, *waiting.pop(0))
                self._start(lane, out[run], [tensor[run] for tensor in inputs], pairs)
                waiting.append((start, lane))
            while waiting:
                count, first = _add(count, first, *waiting.pop(0))
        finally:
            for lane in self._lanes:
                lane.drain()  # after an error too: nothing may still use the caller's memory
        return count, first

    def _fault(self) -> str:
        """What is wrong with the fused kernel on this machine; empty if it gives the CPU's bytes on numbers of every kind.

        Triton needs a C compiler and Python's headers, and no test has seen every GPU, driver and version of it.
        """
        from paramdelta_dist.kernels.sum_cpu import add_deltas

        generator = torch.Generator().manual_seed(0)
        tensors = []
        for _ in range(1 + 2 * len(self.weights)):
            tensors.append(torch.randint(-(1 << 15), 1 << 15, (DEVICE_PADDING + 1,), generator=generator, dtype=torch.int16))
            tensors[-1] = tensors[-1].view(torch.bfloat16)
            tensors[-1][::2] = torch.randn(len(tensors[-1][::2]), generator=generator)
            tensors[-1][::3] = tensors[0][::3]
        base, deltas = tensors[0], list(zip(tensors[1::2], tensors[2::2], strict=True))
        out, expected = torch.empty_like(base), torch.empty_like(base)
        try:
            counted = self.merge(out, base, deltas)
        except Exception as error:  # whatever goes wrong in a compiler
            return f"{type(error).__name__}: {error}"
        reference = add_deltas(
            values_of(expected), values_of(base), [(values_of(post), values_of(old)) for post, old in deltas], self.weights
        )
        same = counted == reference and torch.equal(out.view(torch.int16), expected.view(torch.int16))
        return "" if same else "its results are not the CPU's"

    def _start(self, lane: _Lane, out: torch.Tensor, inputs: list[torch.Tensor], pairs: tuple[tuple[int, int], ...]) -> None:
        n = out.numel()
        with lane.current():
            views = lane.up(inputs, out)
            if self._kernel is None:
                count, first = lane.plain.merge(views[-1], views[0], [(views[post], views[old]) for post, old in pairs])
                lane.tally.copy_(torch.tensor([count, n - first]))
            else:
                what = self._kernel.FusedLaunch(tuple(view.dtype for view in views), pairs, self.weights)
                if what.compute not in self._magnitudes:
                    self._magnitudes[what.compute] = what.magnitudes(lane.device)
                lane.tally.zero_()
                self._kernel.add_deltas(lane.arena, lane.pitch, n, what, self._magnitudes[what.compute], lane.tally)
            lane.down(views[-1], out)


def _add(count: int, first: int, start: int, lane: _Lane) -> tuple[int, int]:
    """The count of elements that are not finite and the place of the first, with those of a block that began at `start`."""
    more, place = lane.finish()
    return count + more, start + place if more and not count else first


def _fused_kernel() -> ModuleType | None:
    try:
        from paramdelta_dist.kernels import sum_triton
    except ImportError:
        return None
    return sum_triton


@dataclass
class _Lane:
    """A stream, the device memory for one block at a time and the pinned memory it goes through; made once, grown when needed.

    On a CPU, for tests, all of it is plain memory and nothing is asynchronous.
    """

    device: torch.device
    plain: Merger
    """What computes where the fused kernel does not; its scratch belongs to this stream."""
    pitch: int = 0
    """Bytes of each slot of the arena, for the block under way."""

    def __post_init__(self) -> None:
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        self._done = torch.cuda.Event(blocking=True) if cuda else None  # waiting must not keep a core busy
        self.arena = torch.empty(0, dtype=torch.uint8, device=self.device)
        self.tally = torch.empty(2, dtype=torch.int64, device=self.device)
        self._tally_down = torch.empty(2, dtype=torch.int64, pin_memory=cuda)
        self._staging: dict[int, torch.Tensor] = {}
        self._landing: tuple[torch.Tensor, torch.Tensor] | None = None

    def current(self) -> AbstractContextManager[object]:
        """What is done inside goes to this lane's stream and device."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def up(self, inputs: Sequence[torch.Tensor], out: torch.Tensor) -> list[torch.Tensor]:
        """Bring up inputs[n] each; returns them on the device, and room for out[n] behind them."""
        tensors = [*inputs, out]
        n = out.numel()
        self.pitch = -(-n // DEVICE_PADDING) * DEVICE_PADDING * max(tensor.itemsize for tensor in tensors)
        if self.arena.numel() < len(tensors) * self.pitch:
            self.arena = torch.empty(0, dtype=torch.uint8, device=self.device)  # the old one goes before the new one comes
            self.arena = torch.empty(len(tensors) * self.pitch, dtype=torch.uint8, device=self.device)
        places = [
            self.arena[slot * self.pitch : slot * self.pitch + tensor.nbytes].view(tensor.dtype) for slot, tensor in enumerate(tensors)
        ]
        for slot, tensor in enumerate(inputs):
            places[slot].copy_(self._pinned(slot, tensor, fill=True), non_blocking=True)
        return places

    def down(self, made: torch.Tensor, out: torch.Tensor) -> None:
        """Bring down made[n], for out[n], and the tally."""
        landing = self._pinned(-1, out, fill=False)
        landing.copy_(made, non_blocking=True)
        self._tally_down.copy_(self.tally, non_blocking=True)
        self._landing = landing, out
        if self._done is not None:
            self._done.record(self._stream)

    def finish(self) -> tuple[int, int]:
        """Wait for the block and hand it over; returns how many elements are not finite and the first's place in the block."""
        assert self._landing is not None, "no block is under way"
        if self._done is not None:
            self._done.synchronize()
        landing, out = self._landing
        if landing is not out:
            out.copy_(landing)
        self._landing = None
        count, rest = self._tally_down.tolist()
        return count, out.numel() - rest if count else 0

    def drain(self) -> None:
        """Wait until nothing of this lane is under way."""
        if self._stream is not None:
            self._stream.synchronize()

    def _pinned(self, slot: int, tensor: torch.Tensor, *, fill: bool) -> torch.Tensor:
        """`tensor` itself where the GPU can reach it, else pinned memory of this lane in its stead, with its values if asked."""
        if self._stream is not None and tensor.is_pinned():
            return tensor
        held = self._staging.get(slot)
        if held is None or held.numel() < tensor.nbytes:
            self._staging.pop(slot, None)
            held = self._staging[slot] = torch.empty(self.pitch, dtype=torch.uint8, pin_memory=self._stream is not None)
        stand_in = held[: tensor.nbytes].view(tensor.dtype)
        return stand_in.copy_(tensor) if fill else stand_in
