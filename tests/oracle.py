"""The judge of every merge: whole models in memory, in float64, rounded once. Written for clarity, not for size."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def load(folder):
    """All tensors of a checkpoint, through its index where it has one."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    loaded = {file: load_file(folder / file) for file in set(weight_map.values())}
    assert {name for tensors in loaded.values() for name in tensors} == set(weight_map)
    return {name: loaded[file][name] for name, file in weight_map.items()}


def merge(base, deltas, dtype=None):
    """Expected output: `deltas` are (post, old base, weight) of loaded models; tensors that are not floats are the base's."""
    expected = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            expected[name] = tensor
            continue
        total = tensor.double()
        for post, old, weight in deltas:
            total = total + weight * (post[name].double() - old[name].double())
        expected[name] = total.to(dtype or tensor.dtype)
    return expected


def same_bytes(one, two):
    return (
        one.dtype == two.dtype
        and one.shape == two.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))
    )


def assert_same(actual, expected):
    """To the last bit, tensor by tensor."""
    assert actual.keys() == expected.keys()
    wrong = [name for name in expected if not same_bytes(actual[name], expected[name])]
    assert not wrong, f"{len(wrong)} tensors differ, such as {wrong[:3]}"


def assert_within_one_rounding(actual, expected, *, share=1e-4):
    """Equal, or neighbouring numbers in at most `share` of the elements: one rounding more than the oracle's."""
    assert actual.keys() == expected.keys()
    off = elements = 0
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == want.dtype, name
        assert got.shape == want.shape, name
        elements += want.numel()
        if not want.is_floating_point():
            assert torch.equal(got, want), name
            continue
        wrong = got != want
        off += int(wrong.sum())
        towards = torch.nextafter(want[wrong], got[wrong]) if want.dtype != torch.bfloat16 else _next_bfloat16(want[wrong], got[wrong])
        assert torch.equal(towards, got[wrong]), f"{name}: more than one rounding apart"
    assert off <= max(2, share * elements), f"{off} of {elements} elements are one rounding off"


def _next_bfloat16(start, towards):
    step = torch.where(start.abs() < towards.abs(), 1, -1).to(torch.int16)
    return (start.view(torch.int16) + step).view(torch.bfloat16)
