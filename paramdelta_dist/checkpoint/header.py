"""The header of a safetensors file: parsed from its bytes with nothing believed, and written aligned.

Format: 8 bytes little-endian header length n, n bytes of JSON, then the tensors' bytes without holes.
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from reprlib import Repr
from typing import Any, NamedTuple

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.standins import refuse_stand_in
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.kernels.encodings import Encoding, Space
from paramdelta_dist.storage import Identity

MAX_HEADER = 100_000_000
"""Longest header the format allows, in bytes."""
LENGTH_FIELD = 8
ALIGNMENT = 4096
"""Tensor data starts at a multiple of this in the files we write: on a page, it can be written and mapped as it lies. Any start is read."""

_quoted = json.JSONEncoder(ensure_ascii=False).encode
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxdict = 8


class Tensor(NamedTuple):
    """One tensor of a checkpoint and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    file: int
    """Position in `Checkpoint.files`."""
    start: int
    """First byte in the file, not in the data section."""
    stop: int
    """One past the last byte."""
    encoded: Encoded | Stacked | None = None
    """The arrays that its numbers are stored in, where that is not one of them: then `dtype` is that in which they would be written as
    plain numbers, and file, start and stop are those of its codes, or of the first tensor that it is stacked of."""

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are stored of it, in all of its arrays."""
        return self.stop - self.start if self.encoded is None else sum(array.tensor.nbytes for array in self.encoded.arrays)

    @property
    def space(self) -> Space:
        """The meaning of its numbers; what it is stacked of has one meaning."""
        if isinstance(self.encoded, Stacked):
            return self.encoded.arrays[0].tensor.space
        return self.encoded.encoding.space if self.encoded else Space.WEIGHT


class StoredArray(NamedTuple):
    """One of the arrays that a tensor is stored in, as a header has it."""

    name: str
    tensor: Tensor


class Encoded(NamedTuple):
    """The arrays that the numbers of a tensor are stored in, and the way in which they are."""

    encoding: Encoding
    arrays: tuple[StoredArray, ...]
    """Those that `encoding` decodes, in its order, and behind them what goes along with these and is copied: scales of activations,
    a shape."""


class Stacked(NamedTuple):
    """The tensors that one is made of: their elements, one tensor after the other, are its elements in row-major order."""

    arrays: tuple[StoredArray, ...]
    """Plain or encoded, none of them stacked itself."""


class WeightFile(NamedTuple):
    """One safetensors file of a checkpoint."""

    name: str
    identity: Identity


def damaged(problem: str) -> CheckpointError:
    """The error for a file whose content cannot be what a library wrote, with the one way on that there is."""
    return CheckpointError(f"{problem}; get the model's files once more from where they came, or save the model again")


def header_length(first: bytes | memoryview, *, file_size: int, where: str) -> int:
    """Length of the JSON, from a file's first bytes. Raises CheckpointError when it cannot be."""
    if file_size < LENGTH_FIELD or len(first) < LENGTH_FIELD:
        raise damaged(f"{where}: {file_size} bytes are too few for a safetensors file; it is empty or cut off")
    refuse_stand_in(first, where=where)
    length = int.from_bytes(first[:LENGTH_FIELD], "little")
    if length > MAX_HEADER:
        raise damaged(
            f"{where}: the header claims {length} bytes, more than the {MAX_HEADER} the format allows; this is not a safetensors file"
        )
    if LENGTH_FIELD + length > file_size:
        raise damaged(f"{where}: the header claims {length} bytes of a file of {file_size}: cut off or not a safetensors file")
    return length


def shown(value: Any) -> str:
    """A value from a file as messages show it: quoted, short at any length and depth, and nothing that a terminal obeys."""
    return _SHORT.repr(value)


def strict_json(text: bytes | bytearray | memoryview) -> Any:
    """JSON as the safetensors library reads it: UTF-8 only, no NaN, no name twice.

    Raises ValueError or RecursionError when it is anything else, CheckpointError for a name that occurs twice.
    """
    return json.loads(str(text, "utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise CheckpointError(f"the name {shown(name)} occurs twice")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_header(text: bytes | memoryview, *, file_size: int, where: str, file: int = 0) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, in file order, and the metadata, from the JSON part of a header.

    `file` is the position the tensors get, `where` names the file in messages. Raises CheckpointError naming file and
    field for anything that is not exactly a valid header: offsets out of the file, holes, overlaps, a size that is not
    shape × dtype.
    """
    try:
        header = strict_json(text)
    except CheckpointError as error:
        raise damaged(f"{where}: broken header: {error}") from None
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: the header is not valid JSON ({str(error)[:200]})") from None
    if not isinstance(header, dict):
        raise damaged(f"{where}: the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(f"{where}: __metadata__ {shown(metadata)} is not an object of strings")
    data_start = LENGTH_FIELD + len(text)
    sizes: _Sizes = {}
    tensors = [(name, _tensor(name, entry, file, data_start, sizes, where)) for name, entry in header.items()]
    tensors.sort(key=_place)
    end = data_start
    for name, info in tensors:
        if info.start != end:
            kind = "overlaps the one before it" if info.start < end else "leaves a hole before it"
            raise damaged(f"{where}: tensor {shown(name)}: data_offsets {kind} (byte {info.start}, expected {end})")
        end = info.stop
    if end != file_size:
        problem = "it is cut off" if end > file_size else "bytes follow the last tensor"
        raise damaged(f"{where}: the header describes {end} bytes, the file has {file_size}: {problem}")
    return dict(tensors), metadata


_Sizes = dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...], int]]
"""Bytes of the tensors of each dtype and shape met so far, with one dtype and one shape for all of them to share: models
have few, and what is checked once a shape and not once a tensor is what makes large models open fast."""


def _place(item: tuple[str, Tensor]) -> tuple[int, int]:
    return item[1].start, item[1].stop


def _tensor(name: str, entry: Any, file: int, data_start: int, sizes: _Sizes, where: str) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        for number in (*shape, start, stop):
            if type(number) is not int:  # true is 1 and 1.0 is 1, to a dict
                raise TypeError
        dtype, shape, size = sizes[dtype, shape]
        if stop - start == size and start >= 0 and stop < 1 << 63 and name and (name.isascii() or name.encode()):
            return Tensor(dtype, shape, file, data_start + start, data_start + stop)
    except (TypeError, ValueError, KeyError):  # not met before, or not right
        pass
    return _new_tensor(name, entry, file, data_start, sizes, where)


def _new_tensor(name: str, entry: Any, file: int, data_start: int, sizes: _Sizes, where: str) -> Tensor:
    """An entry of a dtype and shape not met before, or a broken one: every field looked at for itself."""

    def broken(field: str, problem: str) -> CheckpointError:
        return damaged(f"{where}: tensor {shown(name)}: {field} {problem}")

    try:
        name.encode()
    except UnicodeEncodeError:
        raise broken("name", "is not valid Unicode") from None
    if not name:
        raise broken("name", "is empty")
    if not isinstance(entry, dict):
        raise broken("entry", "is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise broken("dtype", f"{shown(dtype)} is not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_natural, shape)):
        raise broken("shape", f"{shown(shape)} is not a list of at most 64 sizes")
    elements = 1
    for extent in shape:
        elements *= extent
        if elements >= 1 << 63:
            raise broken("shape", f"{shown(shape)} has more elements than any machine can count")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)) or offsets[0] > offsets[1]:
        raise broken("data_offsets", f"{shown(offsets)} are not a begin and an end")
    size = DTYPES[dtype].nbytes(tuple(shape))
    if size != offsets[1] - offsets[0]:
        raise broken("data_offsets", f"span {offsets[1] - offsets[0]} bytes, but {dtype} {shown(shape)} takes {size}")
    sizes[dtype, tuple(shape)] = DTYPES[dtype].name, tuple(shape), size
    return Tensor(DTYPES[dtype].name, tuple(shape), file, data_start + offsets[0], data_start + offsets[1])


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def render_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Length field and JSON of a file that holds (name, dtype, shape, bytes) in this order, padded with spaces so
    that the data starts aligned."""
    rendered, alike, offset = ['{"__metadata__":{"format":"pt"}'], _Rendered(), 0
    for name, dtype, shape, size in tensors:
        stop = offset + size
        rendered.append(f"{_quoted(name)}:{alike[dtype, shape]}[{offset},{stop}]}}")
        offset = stop
    text = (",".join(rendered) + "}").encode()
    text += b" " * (-(LENGTH_FIELD + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_FIELD, "little") + text


class _Rendered(dict[tuple[str, tuple[int, ...]], str]):
    """The JSON of an entry up to its offsets, for each dtype and shape: models have few."""

    def __missing__(self, key: tuple[str, tuple[int, ...]]) -> str:
        dtype, shape = key
        start = json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": []}, separators=(",", ":"))
        self[key] = start.removesuffix("[]}")
        return self[key]
