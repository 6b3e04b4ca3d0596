"""Results of reductions as plain JSON values and back, bit for bit."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import torch


def encode(value: Any) -> Any:
    """JSON for None, booleans, numbers, text, torch tensors, and plain tuples, lists and dicts of these.

    Raises TypeError for anything else, so that what is read back is never another thing.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        data = zlib.compress(bytes(tensor.reshape(-1).view(torch.uint8).numpy()), 1)
        return {"tensor": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), base64.b64encode(data).decode()]}
    if type(value) is list:
        return [encode(each) for each in value]
    if type(value) is tuple:
        return {"tuple": [encode(each) for each in value]}
    if type(value) is dict:
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    raise TypeError(f"a reduction over a whole model found a {type(value).__name__}, which cannot be kept")


def decode(value: Any) -> Any:
    """What was encoded."""
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tensor":
        name, shape, data = content
        raw = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(data))) or bytearray(8), dtype=torch.uint8)
        dtype = getattr(torch, name)
        return raw.view(dtype)[: torch.Size(shape).numel()].reshape(shape)
    if kind == "tuple":
        return tuple(decode(each) for each in content)
    return {decode(key): decode(each) for key, each in content}
