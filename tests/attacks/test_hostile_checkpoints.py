"""Model folders that lie: each is refused with one message that names the file and what is wrong in it, or is harmless and read right."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from paramdelta_dist import api
from paramdelta_dist.checkpoint import compare, open_checkpoint
from paramdelta_dist.checkpoint.homology import flat_config
from paramdelta_dist.errors import CheckpointError, InputError
from paramdelta_dist.storage import StorageConfig
from tests.raw_checkpoints import INDEX, entry, folder, one_tensor, weight_file


def opened(path):
    return open_checkpoint(str(path), StorageConfig())


def refused(path, *named):
    """The message with which a folder is refused; every part of `named` is in it."""
    with pytest.raises(CheckpointError) as refusal:
        opened(path)
    message = str(refusal.value)
    assert refusal.value.exit_code == 3
    assert str(path) in message
    for part in named:
        assert part in message
    assert len(message) < 3000
    assert message.isprintable(), "a message must not carry what a terminal obeys"
    return message


GOOD = entry(0, 8)
EIGHT = bytes(8)

FILES = {
    "the header is longer than the file": (weight_file({"a": GOOD}, EIGHT, length=1000), "claims 1000 bytes"),
    "the header is longer than the format allows": (weight_file({"a": GOOD}, EIGHT, length=100_000_001), "100000001"),
    "the length field is all ones": (b"\xff" * 8 + b"{}", "claims 18446744073709551615"),
    "the file is empty": (b"", "empty"),
    "the length field is cut off": (b"\x10\0\0", "too few"),
    "nothing but a length field": (bytes(8), "not valid JSON"),
    "the data is cut off": (weight_file({"a": GOOD, "b": entry(8, 16)}, bytes(15)), "cut off"),
    "bytes follow the last tensor": (weight_file({"a": GOOD}, bytes(9)), "bytes follow"),
    "there is a hole": (weight_file({"a": GOOD, "b": entry(12, 20)}, bytes(20)), "'b'", "hole"),
    "there is a hole at the start": (weight_file({"a": entry(4, 12)}, bytes(12)), "'a'", "hole"),
    "tensors overlap": (weight_file({"a": GOOD, "b": entry(4, 12)}, bytes(12)), "'b'", "overlap"),
    "two tensors are one": (weight_file({"a": GOOD, "b": GOOD}, EIGHT), "'b'", "overlap"),
    "offsets lie out of the file": (weight_file({"a": entry(0, 800)}, EIGHT), "cut off"),
    "begin is after end": (weight_file({"a": entry(8, 0, [2])}, EIGHT), "'a'", "data_offsets"),
    "shape times dtype is less than the bytes": (weight_file({"a": entry(0, 8, [1])}, EIGHT), "'a'", "data_offsets", "takes 4"),
    "shape times dtype is more than the bytes": (weight_file({"a": entry(0, 8, [3])}, EIGHT), "'a'", "data_offsets", "takes 12"),
    "the shape has more elements than fit any number": (weight_file({"a": entry(0, 8, [2**62] * 60)}, EIGHT), "'a'", "shape"),
    "the shape overflows to the right size": (weight_file({"a": entry(0, 8, [2**32, 2**32, 2])}, EIGHT), "'a'", "shape"),
    "a huge shape is multiplied by zero": (weight_file({"a": entry(0, 0, [2**62, 2**62, 0])}), "'a'", "shape"),
    "a size is negative": (weight_file({"a": entry(0, 8, [-2])}, EIGHT), "'a'", "shape", "-2"),
    "two sizes are negative": (weight_file({"a": entry(0, 8, [-1, -2])}, EIGHT), "'a'", "shape"),
    "a size is a float": (weight_file({"a": entry(0, 8, [2.0])}, EIGHT), "'a'", "shape", "2.0"),
    "a size is a boolean": (weight_file({"a": entry(0, 4, [True])}, bytes(4)), "'a'", "shape", "True"),
    "a size is text": (weight_file({"a": entry(0, 8, ["2"])}, EIGHT), "'a'", "shape"),
    "a size is a list": (weight_file({"a": entry(0, 8, [[2]])}, EIGHT), "'a'", "shape"),
    "the shape is null": (weight_file({"a": GOOD | {"shape": None}}, EIGHT), "'a'", "shape"),
    "the shape is an object": (weight_file({"a": GOOD | {"shape": {"0": 2}}}, EIGHT), "'a'", "shape"),
    "the shape has ten thousand sizes": (weight_file({"a": entry(0, 4, [1] * 10_000)}, bytes(4)), "'a'", "shape"),
    "an offset is negative": (weight_file({"a": entry(-8, 0, [2])}, EIGHT), "'a'", "data_offsets"),
    "an offset is a float": (weight_file({"a": GOOD | {"data_offsets": [0, 8.0]}}, EIGHT), "'a'", "data_offsets"),
    "an offset is a boolean": (weight_file({"a": entry(0, 1, [1], "U8") | {"data_offsets": [False, True]}}, b"x"), "'a'", "data_offsets"),
    "an offset is text": (weight_file({"a": GOOD | {"data_offsets": ["0", "8"]}}, EIGHT), "'a'", "data_offsets"),
    "an offset has four thousand digits": (weight_file({"a": GOOD | {"data_offsets": [0, 10**4000]}}, EIGHT), "'a'", "data_offsets"),
    "an offset has five thousand digits": (weight_file('{"a": {"data_offsets": [0, ' + "9" * 5000 + "]}}", EIGHT), "not valid JSON"),
    "there are three offsets": (weight_file({"a": GOOD | {"data_offsets": [0, 4, 8]}}, EIGHT), "'a'", "data_offsets"),
    "offsets are missing": (weight_file({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "'a'", "data_offsets"),
    "the dtype is unknown": (weight_file({"a": entry(0, 8, [8], "F8_E9M9")}, EIGHT), "'a'", "dtype", "F8_E9M9"),
    "the dtype is in lower case": (weight_file({"a": entry(0, 8, [2], "f32")}, EIGHT), "'a'", "dtype", "f32"),
    "the dtype is a list": (weight_file({"a": entry(0, 8, [2], ["F32"])}, EIGHT), "'a'", "dtype"),
    "the dtype is missing": (weight_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT), "'a'", "dtype"),
    "a tensor is there twice": (weight_file(f'{{"a": {json.dumps(GOOD)}, "a": {json.dumps(entry(8, 16))}}}', bytes(16)), "'a'", "twice"),
    "a field is there twice": (
        weight_file('{"a": {"dtype": "F32", "shape": [2], "shape": [1], "data_offsets": [0, 8]}}', EIGHT),
        "'shape'",
        "twice",
    ),
    "the header is a list": (weight_file("[]"), "not a JSON object"),
    "the header is a number": (weight_file("5"), "not a JSON object"),
    "the header is text": (weight_file('"a"'), "not a JSON object"),
    "the header is null": (weight_file("null"), "not a JSON object"),
    "an entry is a list": (weight_file({"a": ["F32", [2], [0, 8]]}, EIGHT), "'a'", "not an object"),
    "an entry is null": (weight_file({"a": None}), "'a'", "not an object"),
    "lists are nested without end": (weight_file("[" * 100_000), "not valid JSON"),
    "objects are nested without end": (weight_file('{"a":' * 100_000), "not valid JSON"),
    "the header is not UTF-8": (weight_file(b'{"a\xff": {}}'), "not valid JSON"),
    "the header is UTF-16": (weight_file(json.dumps({"a": GOOD}).encode("utf-16"), EIGHT), "not valid JSON"),
    "a name is half a character": (weight_file({"\ud800": GOOD}, EIGHT), "\\ud800", "Unicode"),
    "a name is empty": (weight_file({"": GOOD}, EIGHT), "''", "name is empty"),
    "a bad tensor's name would clear the screen": (weight_file({"\x1b[2J\r\n": None}), "\\x1b[2J"),
    "a bad tensor's name is endless": (weight_file({"n" * 100_000: None}), "nnn...nnn"),
    "metadata is a list": (weight_file({"__metadata__": [], "a": GOOD}, EIGHT), "__metadata__"),
    "metadata is zero": (weight_file({"__metadata__": 0, "a": GOOD}, EIGHT), "__metadata__"),
    "metadata is false": (weight_file({"__metadata__": False, "a": GOOD}, EIGHT), "__metadata__"),
    "metadata is text": (weight_file({"__metadata__": "", "a": GOOD}, EIGHT), "__metadata__"),
    "metadata is nested": (weight_file({"__metadata__": {"format": {"is": "pt"}}, "a": GOOD}, EIGHT), "__metadata__"),
    "metadata has numbers": (weight_file({"__metadata__": {"step": 1}, "a": GOOD}, EIGHT), "__metadata__"),
    "metadata is a tensor": (weight_file({"__metadata__": GOOD}, EIGHT), "__metadata__"),
    "there are no tensors": (weight_file("{}"), "no tensors"),
    "it is a pickle": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    "it is a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "it is an HTML page": (b"<!DOCTYPE html><html>Sign in</html>", "HTML"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_broken_weight_file_is_refused(tmp_path, case):
    content, *named = FILES[case]
    message = refused(folder(tmp_path / "model", {"model.safetensors": content}), *named)
    assert "model.safetensors" in message or "no tensors" in named


@pytest.mark.parametrize("case", [case for case in FILES if case != "there are no tensors"])
def test_a_broken_weight_file_among_good_ones_is_refused_and_named(tmp_path, case):
    content, *named = FILES[case]
    files = {"model-1.safetensors": one_tensor("good"), "model-2.safetensors": content, "model-3.safetensors": one_tensor("fine")}
    weight_map = {"good": "model-1.safetensors", "a": "model-2.safetensors", "fine": "model-3.safetensors"}
    refused(folder(tmp_path / "model", files, weight_map=weight_map), "model-2.safetensors", *named)


def test_a_header_of_a_hundred_million_bytes_of_nothing_is_refused(tmp_path):
    path = folder(tmp_path / "model", {"model.safetensors": struct.pack("<Q", 100_000_001)})
    os.truncate(path / "model.safetensors", 1 << 40)  # sparse: as long as it says, and empty
    refused(path, "model.safetensors", "100000001")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "np", "more": "of it"}], ids=str)
def test_harmless_metadata_is_read(tmp_path, metadata):
    path = folder(tmp_path / "model", {"model.safetensors": weight_file({"__metadata__": metadata, "a": GOOD}, EIGHT)})
    assert list(opened(path).tensors) == ["a"]


@pytest.mark.parametrize(
    "name",
    ["ü.重み.🦙", "n" * 10_000, "with space/and\\slash", "🦙" * 5000, "{}", "__metadata", "\x1b[2J", "a\nb", "%2e%2e"],
    ids=lambda name: ascii(name[:20]),
)
def test_tensor_names_of_any_text_are_read(tmp_path, name):
    content = save({name: torch.arange(3.0), "other": torch.ones(2)}, metadata={"format": "pt"})
    path = folder(tmp_path / "model", {"model.safetensors": content})
    tensor = opened(path).tensors[name]
    assert content[tensor.start : tensor.stop] == struct.pack("<3f", 0, 1, 2)
    assert name in [row["name"] for row in api.inspect(str(path))["tensor_list"]]


SHARD = {"model-1.safetensors": one_tensor("a")}

INDEXES = {
    "there is no weight_map": ({"metadata": {}}, "weight_map"),
    "weight_map is empty": ({"weight_map": {}}, "weight_map"),
    "weight_map is a list": ({"weight_map": [["a", "model-1.safetensors"]]}, "weight_map"),
    "weight_map is null": ({"weight_map": None}, "weight_map"),
    "the index is a list": ([{"weight_map": {}}], "weight_map"),
    "the index is a number": ("5", "weight_map"),
    "the index is empty": (b"", "not valid JSON"),
    "the index is not JSON": ("{'weight_map': {}}", "not valid JSON"),
    "the index is not UTF-8": (b'{"weight_map": {"\xff": "model-1.safetensors"}}', "not valid JSON"),
    "the index is nested without end": ('{"weight_map":' * 100_000, "not valid JSON"),
    "the index is lists without end": ("[" * 100_000, "not valid JSON"),
    "a tensor is there twice": ('{"weight_map": {"a": "model-1.safetensors", "a": "model-1.safetensors"}}', "'a'", "twice"),
    "weight_map is there twice": ('{"weight_map": {}, "weight_map": {"a": "model-1.safetensors"}}', "'weight_map'", "twice"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_broken_index_is_refused(tmp_path, case):
    content, *named = INDEXES[case]
    refused(folder(tmp_path / "model", {**SHARD, INDEX: content}), INDEX, *named)


@pytest.mark.parametrize(
    "name",
    [
        "../model-1.safetensors", "sub/../../secret.safetensors", "..", "./model-1.safetensors", "sub//model-1.safetensors",
        "/etc/model-1.safetensors", "//host/model-1.safetensors", "C:/model-1.safetensors", "..\\secret.safetensors", "sub\\x.safetensors",
        "s3://bucket/x.safetensors", "https://example.org/x.safetensors", "file:///etc/x.safetensors", "x\0.safetensors",
        "%2e%2e/secret.safetensors", "%2E%2E%2Fsecret.safetensors", "x\n.safetensors", "\x1b[2J.safetensors", "\ud800.safetensors",
        "pytorch_model.bin", "model.gguf", "", "sub/", 5, None, True, ["model-1.safetensors"], {"file": "model-1.safetensors"},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_file_name_that_could_lead_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "secret.safetensors").write_bytes(one_tensor("b"))
    refused(folder(tmp_path / "model", SHARD, weight_map={"a": "model-1.safetensors", "b": name}), INDEX, "weight_map")


def test_files_in_folders_below_are_read(tmp_path):
    path = folder(tmp_path / "model", {"deep/er/one.safetensors": one_tensor("a")}, weight_map={"a": "deep/er/one.safetensors"})
    assert opened(path).files[0].name == "deep/er/one.safetensors"


def test_a_file_that_the_index_names_and_that_is_not_there_is_refused(tmp_path):
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    refused(folder(tmp_path / "model", SHARD, weight_map=weight_map), INDEX, "'model-2.safetensors'", "'model-3.safetensors'", "not there")


def test_a_folder_in_place_of_a_weight_file_is_refused(tmp_path):
    path = folder(tmp_path / "model", SHARD, weight_map={"a": "model-1.safetensors", "b": "model-2.safetensors"})
    (path / "model-2.safetensors").mkdir()
    refused(path, "model-2.safetensors", "not there")


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path):
    files = {"model-1.safetensors": weight_file({"a": GOOD, "stray": entry(8, 16)}, bytes(16))}
    refused(folder(tmp_path / "model", files, weight_map={"a": "model-1.safetensors"}), "model-1.safetensors", "'stray'", INDEX)


def test_a_tensor_that_is_absent_from_its_file_is_refused(tmp_path):
    path = folder(tmp_path / "model", SHARD, weight_map={"a": "model-1.safetensors", "gone": "model-1.safetensors"})
    refused(path, "model-1.safetensors", "'gone'", INDEX)


def test_a_tensor_in_another_file_than_the_index_says_is_refused(tmp_path):
    files = {"model-1.safetensors": one_tensor("a"), "model-2.safetensors": one_tensor("b")}
    refused(folder(tmp_path / "model", files, weight_map={"a": "model-2.safetensors", "b": "model-1.safetensors"}), "'a'", "model-1", INDEX)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    files = {"model-1.safetensors": one_tensor("a"), "model-2.safetensors": weight_file({"a": GOOD, "b": entry(8, 16)}, bytes(16))}
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    refused(folder(tmp_path / "model", files, weight_map=weight_map), "'a'", "model-1.safetensors", "model-2.safetensors")


def test_stale_shards_are_reported_and_never_read(tmp_path):
    stale = {
        "model-00001-of-00009.safetensors": b"not even a header",
        "consolidated.safetensors": one_tensor("a"),
        "sub/x.safetensors": b"",
    }
    path = folder(tmp_path / "model", {**SHARD, **stale}, weight_map={"a": "model-1.safetensors"})
    checkpoint = opened(path)
    assert [file.name for file in checkpoint.files] == ["model-1.safetensors"]
    assert checkpoint.orphans == ("consolidated.safetensors", "model-00001-of-00009.safetensors", "sub/x.safetensors")
    assert list(checkpoint.tensors) == ["a"]


def test_a_single_file_is_a_checkpoint(tmp_path):
    checkpoint = opened(folder(tmp_path / "model", {"model.safetensors": one_tensor("a"), "extra.safetensors": b""}))
    assert [file.name for file in checkpoint.files] == ["model.safetensors"]
    assert checkpoint.orphans == ("extra.safetensors",)


def test_an_index_beside_a_single_file_that_it_does_not_name_is_refused(tmp_path):
    path = folder(tmp_path / "model", {**SHARD, "model.safetensors": one_tensor("old", 80)}, weight_map={"a": "model-1.safetensors"})
    refused(path, "two models are here")
    (path / "model.safetensors").unlink()
    assert list(opened(path).tensors) == ["a"]


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path, names):
    message = refused(folder(tmp_path / "model", dict.fromkeys(names, b"\x80\x02}q\x00.")), names[0], "pickled")
    assert "save_pretrained" in message


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_lora_adapter_is_refused_with_the_way_to_merge_it(tmp_path, name):
    path = folder(tmp_path / "model", {name: one_tensor("base_model.model.a.lora_A.weight"), "adapter_config.json": {"r": 8}})
    assert "merge_and_unload" in refused(path, "LoRA")


def test_shards_without_an_index_are_refused(tmp_path):
    refused(folder(tmp_path / "model", SHARD), INDEX, "missing", "model-1.safetensors")


def test_a_folder_without_weights_is_refused(tmp_path):
    refused(folder(tmp_path / "model", {}), "no checkpoint", "model.safetensors")


def test_an_empty_folder_and_none_at_all_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty")
    refused(tmp_path / "absent", "no such folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_in_place_of_a_folder_is_refused_with_a_hint(tmp_path, name):
    path = folder(tmp_path / "model", {"model.safetensors": one_tensor()})
    refused(path / name, "name the folder")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("5", "not a JSON object"),
        ('{"a":' * 100_000, "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a_config":' * 200 + "1" + "}" * 200, "nested"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested"),
    ],
    ids=range(11),
)
def test_a_broken_config_is_refused(tmp_path, content, named):
    refused(folder(tmp_path / "model", {"model.safetensors": one_tensor()}, config=content), "config.json", named)


def test_a_config_nested_to_the_limit_of_recursion_is_refused_and_breaks_nothing(tmp_path):
    for depth in (65, *range(880, 1010)):
        content = '{"a_config":' * depth + "{}" + "}" * depth
        refused(folder(tmp_path / "model", {"model.safetensors": one_tensor()}, config=content), "config.json")


def test_a_config_nested_to_our_limit_is_compared(tmp_path):
    content = '{"a_config":' * 60 + '{"x": [1]}' + "}" * 60
    path = folder(tmp_path / "model", {"model.safetensors": one_tensor()}, config=content)
    assert list(flat_config(opened(path).config)) == ["a_config." * 60 + "x"]


def test_odd_values_in_a_config_break_nothing(tmp_path):
    odd = {
        "architectures": {"not": "a list"}, "model_type": ["\ud800", None], "tie_word_embeddings": "yes", "text_config": [1, 2],
        "vision_config": None, "hidden_size": 1e308, "vocab_size": "\x1b[2J" * 100_000, "rope_scaling": {"factor": [1] * 100_000},
    }  # fmt: skip
    other = folder(tmp_path / "odd", {"model.safetensors": one_tensor()}, config=json.dumps(odd).replace("1e+308", "Infinity"))
    plain = {"architectures": ["A"], "model_type": "m", "hidden_size": 4, "vocab_size": 5, "rope_scaling": None, "text_config": {"a": 1}}
    base = folder(tmp_path / "base", {"model.safetensors": one_tensor()}, config=plain)
    assert opened(other).architecture is None
    assert opened(other).tied_embeddings
    for one, two in ((base, other), (other, base)):
        report = compare(opened(one), [opened(two)], StorageConfig())
        assert {"config"} == {mismatch.subject for mismatch in report.mismatches}
        assert all(len(text) < 2000 and text.isprintable() for m in report.mismatches for text in (m.problem, m.remedy))
        assert all(len(note) < 2000 and note.isprintable() for note in report.notes)
    json.dumps(api.inspect(str(other)))


def test_an_oversized_config_is_refused_before_it_is_parsed(tmp_path):
    path = folder(tmp_path / "model", {"model.safetensors": one_tensor()})
    os.truncate(path / "config.json", 1 << 36)
    with pytest.raises(InputError, match=r"config\.json is larger") as refusal:
        opened(path)
    assert refusal.value.exit_code == 3


def test_a_snapshot_of_symbolic_links_is_a_checkpoint(tmp_path):
    """As the cache of the Hugging Face hub keeps models."""
    repository = tmp_path / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    contents = {"model-1.safetensors": one_tensor("a"), "model-2.safetensors": one_tensor("b"), INDEX: index, "config.json": b"{}"}
    for number, (name, content) in enumerate(contents.items()):
        (blobs / str(number)).write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    linked, copied = opened(snapshot), opened(folder(tmp_path / "copy", contents))
    assert linked.tensors == copied.tensors
    assert [(f.name, f.identity.size) for f in linked.files] == [(f.name, f.identity.size) for f in copied.files]


def test_a_symbolic_link_to_nowhere_is_a_missing_file(tmp_path):
    path = folder(tmp_path / "model", SHARD, weight_map={"a": "model-1.safetensors", "b": "model-2.safetensors"})
    (path / "model-2.safetensors").symlink_to(tmp_path / "nowhere")
    refused(path, "model-2.safetensors", "not there")


def test_file_names_that_are_no_text_break_nothing(tmp_path):
    path = folder(tmp_path / "model", {"model.safetensors": one_tensor()})
    Path(os.fsdecode(os.fsencode(path) + b"/\xff\x1b[2J.safetensors")).write_bytes(b"")
    assert len(opened(path).orphans) == 1
    json.dumps(api.inspect(str(path)))
