"""Headers of safetensors files, judged by the library that defines the format.

What it writes is understood, what we write it opens, what it refuses is refused.
"""

import json
import tracemalloc

import pytest
import safetensors
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.header import ALIGNMENT, Tensor, header_length, parse_header, render_header
from paramdelta_dist.checkpoint.index import parse_index
from paramdelta_dist.errors import CheckpointError
from tests.raw_checkpoints import entry, one_tensor, weight_file

TORCH_DTYPES = {dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch and hasattr(torch, dtype.torch)}


def parsed(file):
    """Header of a whole file as open_checkpoint reads it."""
    length = header_length(file[:64], file_size=len(file), where="file")
    return parse_header(memoryview(file)[8 : 8 + length], file_size=len(file), where="file")


def numbers(dtype, shape):
    count = 1
    for extent in shape:
        count *= extent
    raw = torch.arange(count * max(1, dtype.itemsize), dtype=torch.int64).remainder(2 if dtype == torch.bool else 120).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


SHAPES = [(), (0,), (3, 0, 2), (5,), (2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in TORCH_DTYPES for shape in SHAPES if shape or not name.startswith("float4")],  # no packed scalars
)
def test_what_the_library_writes_is_read_with_dtype_shape_and_place(name, shape):
    dtype = getattr(torch, name)
    tensors = {"x": numbers(dtype, shape), "before": torch.ones(3), "bytes": torch.arange(5, dtype=torch.uint8)}
    file = save(tensors, metadata={"format": "pt"})
    header, metadata = parsed(file)
    assert metadata == {"format": "pt"}
    assert set(header) == set(tensors)
    x = header["x"]
    written = (*shape[:-1], shape[-1] * 2) if name == "float4_e2m1fn_x2" else shape  # the library counts elements, torch pairs
    assert (x.dtype, x.shape) == (TORCH_DTYPES[name], written)
    assert file[x.start : x.stop] == bytes(tensors["x"].contiguous().reshape(-1).view(torch.uint8).numpy())


def test_every_dtype_of_torch_that_the_library_writes_is_known():
    for name in dir(torch):
        dtype = getattr(torch, name)
        if not isinstance(dtype, torch.dtype):
            continue
        try:
            file = save({"x": torch.zeros(4, dtype=torch.uint8).view(dtype) if dtype.itemsize <= 4 else torch.zeros(1, dtype=dtype)})
        except Exception:
            continue  # the library cannot write it
        assert parsed(file)[0]["x"].dtype in DTYPES, name


def test_tensors_come_in_the_order_of_their_bytes():
    file = weight_file({"late": entry(8, 16), "empty": entry(8, 8), "early": entry(0, 8)}, bytes(16))
    header, _ = parsed(file)
    assert list(header) == ["early", "empty", "late"]


def test_sub_byte_tensors_must_fill_their_last_byte():
    good = weight_file({"x": entry(0, 3, [4], "F6_E2M3"), "y": entry(3, 5, [4], "F4")}, bytes(5))
    assert {name: info.stop - info.start for name, info in parsed(good)[0].items()} == {"x": 3, "y": 2}
    for entries in ({"x": entry(0, 2, [3], "F4")}, {"x": entry(0, 1, [3], "F4")}, {"x": entry(0, 0, [1], "F6_E3M2")}):
        with pytest.raises(CheckpointError, match="data_offsets"):
            parsed(weight_file(entries, bytes(entries["x"]["data_offsets"][1])))


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda name: name != "__metadata__")
layouts = st.dictionaries(
    names,
    st.tuples(st.sampled_from([name for name, dtype in DTYPES.items() if dtype.bits % 8 == 0]), st.lists(st.integers(0, 5), max_size=4)),
    max_size=12,
)


@given(layouts)
@settings(deadline=None)
def test_a_written_header_reads_back_the_same(layout):
    tensors = [(name, dtype, tuple(shape), DTYPES[dtype].nbytes(tuple(shape))) for name, (dtype, shape) in layout.items()]
    first = render_header(tensors)
    size = len(first) + sum(tensor[3] for tensor in tensors)
    header, metadata = parse_header(first[8:], file_size=size, where="file")
    assert metadata == {"format": "pt"}
    assert len(first) % ALIGNMENT == 0
    assert int.from_bytes(first[:8], "little") == len(first) - 8
    expected, at = {}, len(first)
    for name, dtype, shape, nbytes in tensors:
        expected[name] = Tensor(dtype, shape, 0, at, at + nbytes)
        at += nbytes
    assert header == expected
    assert [name for name in header if header[name].start < header[name].stop] == [name for name, *_, n in tensors if n]


@given(layouts)
@settings(deadline=None, max_examples=50)
def test_a_written_header_opens_in_the_library(tmp_path_factory, layout):
    layout = {name: (dtype, shape) for name, (dtype, shape) in layout.items() if DTYPES[dtype].torch in TORCH_DTYPES}
    tensors = [(name, dtype, tuple(shape), DTYPES[dtype].nbytes(tuple(shape))) for name, (dtype, shape) in layout.items()]
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    path.write_bytes(render_header(tensors) + bytes(sum(tensor[3] for tensor in tensors)))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(layout)
        for name, dtype, shape, _ in tensors:
            view = file.get_slice(name)
            assert (view.get_dtype(), tuple(view.get_shape())) == (dtype, shape)


@pytest.mark.parametrize("pad", ["", " ", "   ", "       ", "\n\n", "\t "])
def test_unaligned_and_padded_headers_are_read(pad):
    file = weight_file(json.dumps({"x": entry(0, 8)}) + pad, bytes(range(8)))
    assert load(file)["x"].shape == (2,)
    info = parsed(file)[0]["x"]
    assert file[info.start : info.stop] == bytes(range(8))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"x": entry(0, 8)}).encode() + b"\0\0\0",
        b"\xef\xbb\xbf" + json.dumps({"x": entry(0, 8)}).encode(),
        json.dumps({"x": entry(0, 8)}).encode("utf-16"),
        json.dumps({"x": entry(0, 8)}).encode("utf-32-le"),
        json.dumps({"x": entry(0, 8)}).encode().replace(b"x", b"\xed\xa0\x80"),
        b"",
        b"NaN",
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": NaN}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": -Infinity}}',
    ],
    ids=["NUL padding", "byte order mark", "UTF-16", "UTF-32", "encoded surrogate", "empty", "constant", "NaN", "infinity"],
)
def test_what_the_library_cannot_decode_is_refused(text):
    file = weight_file(text, bytes(8))
    with pytest.raises(safetensors.SafetensorError):
        load(file)
    with pytest.raises(CheckpointError, match="file: the header is not valid JSON"):
        parsed(file)


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
def test_nesting_at_any_depth_is_refused(field):
    for depth in (1, 10, 100, *range(880, 1010), 100_000):
        fields = {name: json.dumps(value) for name, value in entry(0, 8).items()} | {field: "[" * depth + "]" * depth}
        text = '{"x": {' + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}}"
        with pytest.raises(CheckpointError) as refusal:
            parsed(weight_file(text, bytes(8)))
        assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**4000])
def test_no_number_in_a_file_makes_us_reserve_memory(size):
    files = [
        weight_file("{}", length=min(size, 2**64 - 1)),
        weight_file({"x": entry(0, size, [size], "U8")}),
        weight_file({"x": entry(0, 8, [size, size], "U8")}, bytes(8)),
        weight_file({"x": entry(size, size, [0], "U8")}),
        weight_file({"x": entry(0, 0, [size, size, 0], "U8")}),
        weight_file({"x": entry(0, 8, [1] * 63 + [size], "U8")}, bytes(8)),
    ]
    tracemalloc.start()
    try:
        for file in files:
            with pytest.raises(CheckpointError):
                parsed(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def outcome(parse, file):
    """What a parser makes of a file; None where it refuses."""
    try:
        return parse(file)
    except (CheckpointError, safetensors.SafetensorError):
        return None


def library_header(file):
    return {name: tuple(tensor.shape) for name, tensor in load(file).items()}


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=300)
def test_arbitrary_bytes_are_refused_or_right(file):
    ours = outcome(parsed, file)
    if ours is not None:
        assert outcome(library_header, file) == {name: info.shape for name, info in ours[0].items()}


VALID = save(
    {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64), "c": torch.zeros(()), "d": torch.zeros(0)}, metadata={"format": "pt"}
)


@st.composite
def damaged_files(draw):
    """A good file with some bytes overwritten, removed, inserted or cut off."""
    file = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(file), 330)))
        kind = draw(st.sampled_from(["overwrite", "insert", "remove", "cut", "append"]))
        piece = draw(
            st.one_of(
                st.binary(min_size=1, max_size=4), st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b"0", b"9", b"-", b"1e9", b"null"])
            )
        )
        if kind == "overwrite":
            file[at : at + len(piece)] = piece
        elif kind == "insert":
            file[at:at] = piece
        elif kind == "remove":
            del file[at : at + len(piece)]
        elif kind == "cut":
            del file[at:]
        else:
            file += piece
    if draw(st.booleans()):  # with a length field that fits, so that the damage is found where it is
        length = int.from_bytes(VALID[:8], "little") + len(file) - len(VALID)
        file[:8] = max(0, length).to_bytes(8, "little")
    return bytes(file)


@given(damaged_files())
@settings(deadline=None, max_examples=500)
def test_a_damaged_file_is_refused_unless_the_library_opens_it_the_same(file):
    assume(b"-0" not in file)  # an integer to Python, a float to Rust
    ours = outcome(parsed, file)
    if ours is not None:
        assert outcome(library_header, file) == {name: info.shape for name, info in ours[0].items()}


odd = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.integers(0, 16),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
sizes = st.one_of(st.integers(0, 16), odd)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([name for name in DTYPES if not name.startswith(("F4", "F6"))]), odd),
        "shape": st.one_of(st.lists(sizes, max_size=3), odd),
        "data_offsets": st.one_of(st.lists(sizes, min_size=2, max_size=2), odd),
        "more": odd,
    },
)
headers = st.dictionaries(
    st.one_of(st.sampled_from(["a", "b", "__metadata__"]), st.text(max_size=3)), st.one_of(entries, entries, odd), max_size=3
)


@given(headers, st.integers(0, 32))
@settings(deadline=None, max_examples=150)
def test_a_header_of_odd_values_is_refused_unless_the_library_opens_it_the_same(header, size):
    file = weight_file(header, bytes(size))
    ours = outcome(parsed, file)
    if ours is not None:
        assert outcome(library_header, file) == {name: info.shape for name, info in ours[0].items()}


@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(lambda value: json.dumps({"weight_map": value}).encode(), odd),
        odd.map(lambda value: json.dumps(value).encode()),
    )
)
@settings(deadline=None, max_examples=300)
def test_an_index_of_anything_is_names_of_files_or_refused(text):
    weight_map = outcome(lambda data: parse_index(data, where="index"), text)
    for file in (weight_map or {}).values():
        assert file.endswith(".safetensors")
        assert not {"", ".", ".."} & set(file.split("/"))


def test_a_good_file_is_good():
    assert list(parsed(one_tensor())[0]) == ["a.weight"]
