"""Side files are inputs: what is written is the version that was planned with, in every store, or the merge says that it changed."""

import json
import os
import shutil

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.errors import CheckpointError, InputChanged, NotFound, UsageError
from paramdelta_dist.output.hold import Hold
from paramdelta_dist.output.publish import SideFiles
from paramdelta_dist.planning.plan import SideFile
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import recipe, save_model
from tests.stop_after_first import Watcher
from tests.watched_stores import watched

TOKENIZER = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
FILES = {
    "tokenizer.json": json.dumps(TOKENIZER),
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
    "generation_config.json": "{}",
}


def make_three(root, files=FILES, vocabulary=2):
    generator = torch.Generator().manual_seed(0)
    for name in ("new", "post", "old"):
        tensors = {f"layers.{n}.weight": torch.randn(50, 50, generator=generator) for n in range(2)}
        tensors["embed_tokens.weight"] = torch.randn(vocabulary, 50, generator=generator)
        folder = save_model(root / name, tensors, files=2)
        for file, content in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [root / name for name in ("new", "post", "old")]


class Disk:
    def __init__(self, root):
        self.folder = str(root)

    def put(self, name, data):
        open_store(self.folder, StorageConfig()).write(name, data)  # a new file under the old name

    def delete(self, name):
        os.unlink(f"{self.folder}/{name}")


class Bucket(Disk):
    def __init__(self, client, bucket):
        self.folder, self._client, self._bucket = f"s3://{bucket}", client, bucket

    def put(self, name, data):
        self._client.put_object(Bucket=self._bucket, Key=name, Body=data)

    def delete(self, name):
        self._client.delete_object(Bucket=self._bucket, Key=name)


@pytest.fixture(params=["disk", "obstore", "fsspec"])
def place(request, tmp_path):
    """Three models in a store, and the merge of them into it."""
    make_three(tmp_path)
    storage = {}
    if request.param == "disk":
        place = Disk(tmp_path)
    else:
        server = request.getfixturevalue("s3_server")
        patch = request.getfixturevalue("monkeypatch")
        for name, value in server.environ.items():
            patch.setenv(name, value)
        bucket = server.make_bucket()
        place, storage = Bucket(server.client(), bucket), {"s3://": {"engine": request.param}}
        for path in tmp_path.rglob("*"):
            if path.is_file():
                place.put(str(path.relative_to(tmp_path)), path.read_bytes())
    names = [f"{place.folder}/{name}" for name in ("new", "post", "old")]
    place.recipe = lambda **options: recipe(*names, f"{place.folder}/out", storage=storage, **options)
    place.out = open_store(f"{place.folder}/out", place.recipe().storage_config)
    return place


def names_in(store):
    return {name for name in store.list() or {} if not name.startswith(".paramdelta")}


SWAPPED = ["new/config.json", "post/tokenizer.json", "post/chat_template.jinja", "post/additional_chat_templates/tool.jinja"]


@pytest.mark.parametrize("name", SWAPPED)
def test_a_side_file_that_is_replaced_while_the_merge_runs_is_an_input_that_changed(place, name):
    before = place.recipe()
    with pytest.raises(InputChanged, match=name.rpartition("/")[2].replace(".", r"\.")) as changed:
        api.merge(before, workers=1, observer=Watcher(lambda receipt: place.put(name, b'{"another": "version"}')))
    assert changed.value.exit_code == 3
    assert "config.json" not in names_in(place.out), "no loader opens it"
    assert ".paramdelta/commit.json" not in place.out.list()


def test_a_side_file_that_vanishes_while_the_merge_runs_is_missed(place):
    with pytest.raises((NotFound, InputChanged), match=r"chat_template\.jinja") as missed:
        api.merge(place.recipe(), workers=1, observer=Watcher(lambda receipt: place.delete("post/chat_template.jinja")))
    assert missed.value.exit_code == 3
    assert "config.json" not in names_in(place.out)


def test_a_merge_whose_side_file_changed_between_two_runs_is_another_merge_and_the_file_is_named(place):
    def stop(receipt):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.merge(place.recipe(), workers=1, observer=Watcher(stop))
    place.put("post/chat_template.jinja", b"{{ another }}")
    with pytest.raises(Exception, match=r"chat_template\.jinja") as occupied:
        api.merge(place.recipe(), workers=1)
    assert occupied.value.exit_code == 3


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_that_is_replaced_between_its_listing_and_its_reading_is_noticed(tmp_path, name):
    new, *_ = make_three(tmp_path)

    def replaced(store, request, about):
        if (request, about) == ("read_range", name):
            content = (new / name).read_bytes()
            (new / name).unlink()
            (new / name).write_bytes(content + b" ")

    with pytest.raises(InputChanged, match=name):
        open_checkpoint(str(new), watched(before=replaced))


def test_by_token_uses_the_tokenizer_it_planned_with_and_no_other(tmp_path):
    new, post, old = make_three(tmp_path)
    merge_plan, _ = api.plan(recipe(new, post, old, tmp_path / "out", vocab="by-token"))
    [file] = [file for file in merge_plan.side_files if file.name == "tokenizer.json"]
    (post / "tokenizer.json").write_text(json.dumps(TOKENIZER) + "\n")
    with pytest.raises(InputChanged):
        SideFiles(StorageConfig()).copy(file, open_store(str(tmp_path / "elsewhere"), StorageConfig()), Hold("", file.identity))
    assert not (tmp_path / "elsewhere" / "tokenizer.json").exists()


def test_a_tokenizer_from_elsewhere_is_pinned_as_well(tmp_path):
    new, post, old = make_three(tmp_path)
    shutil.copytree(post, tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").glob("*.safetensors*"):
        path.unlink()

    def replace(receipt):
        (tmp_path / "elsewhere" / "tokenizer.json").write_text("{}")

    made = recipe(new, post, old, tmp_path / "out", tokenizer_from=str(tmp_path / "elsewhere"))
    with pytest.raises(InputChanged, match=r"elsewhere/tokenizer\.json"):
        api.merge(made, workers=1, observer=Watcher(replace))


def test_large_files_are_copied_in_pieces_with_the_digest_of_what_was_written(place):
    large = os.urandom(20_000_001)
    place.put("post/tokenizer.model", large)
    api.merge(place.recipe(sweep={"deltas.0.weight": [0.5, 1.0]}), workers=1)
    for point in ("deltas.0.weight=0.5", "deltas.0.weight=1.0"):
        store = open_store(f"{place.folder}/out/{point}", place.recipe().storage_config)
        assert store.read("tokenizer.model", limit=1 << 30) == large
        assert api.verify(store.url, deep=True, recipe=place.recipe())["problems"] == []


# --- names, and configs that are no text

ODD = ["a?b.py", "a#b.py", "a%20b.py", "a%2Fb.py", "a:b.py", "a b+c.py", "ä.py", "*~|^`<>'\".py", "-x.py", "[{}].py"]


def test_names_with_characters_that_mean_something_elsewhere_are_written_as_they_are(place):
    for name in ODD:
        place.put(f"new/{name}", name.encode())
    api.merge(place.recipe(), workers=1)
    for name in ODD:
        assert place.out.read(name, limit=100) == name.encode()
    assert api.verify(place.out.url, deep=True, recipe=place.recipe())["problems"] == []


@pytest.mark.parametrize("name", [b"\xff.py", b"a\nb.py", b"a\x7f.py", b"a\\b.py", b"\x1b[2J.py", b"x" * 201 + b".py", b"[0].jinja\n.py"])
def test_a_side_file_with_a_name_that_not_every_store_can_hold_is_refused_by_the_plan(tmp_path, name):
    new, post, old = make_three(tmp_path)
    with open(os.path.join(os.fsencode(new), name), "wb") as file:
        file.write(b"pass")
    with pytest.raises(CheckpointError, match="copied beside the weights") as refused:
        api.plan(recipe(new, post, old, tmp_path / "out"))
    assert str(refused.value).isprintable()
    os.rename(os.path.join(os.fsencode(new), name), os.path.join(os.fsencode(new), b"renamed.py"))
    api.merge(recipe(new, post, old, tmp_path / "out"), workers=1)


def test_an_oversized_side_file_is_refused_by_the_plan(tmp_path):
    new, post, old = make_three(tmp_path)
    with open(post / "tokenizer.model", "wb") as file:
        file.truncate(600 << 20)
    with pytest.raises(CheckpointError, match=r"'tokenizer\.model'"):
        api.plan(recipe(new, post, old, tmp_path / "out"))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_config_with_half_a_character_is_written(tmp_path, dtype):
    new, post, old = make_three(tmp_path)
    (new / "config.json").write_text('{"model_type": "toy", "pad": "\\ud800", "text": "é"}')
    api.merge(recipe(new, post, old, tmp_path / "out", dtype=dtype), workers=1)
    written = (tmp_path / "out" / "config.json").read_bytes()
    assert json.loads(written.decode())["pad"] == "\ud800"
    assert "é".encode() in written
    assert (b'"torch_dtype": "bfloat16"' in written) == (dtype is not None)


def test_a_config_whose_fields_have_no_place_is_refused_by_the_plan(tmp_path):
    new, post, old = make_three(tmp_path)
    for folder, size in ((new, 2), (post, 3), (old, 2)):
        (folder / "config.json").write_text(json.dumps({"model_type": "toy", "x": 3, "x.vocab_size": size}))
    wider = {"embed_tokens.weight": torch.ones(3, 50)} | {f"layers.{n}.weight": torch.ones(50, 50) for n in range(2)}
    config = json.loads((post / "config.json").read_text())
    shutil.rmtree(post)
    save_model(post, wider, config=config)
    with pytest.raises(CheckpointError, match=r"config\.json of the base"):
        api.plan(recipe(new, post, old, tmp_path / "out", vocab="pad", tokenizer_from="base"))


@pytest.mark.parametrize(
    ("output", "deltas"),
    [("x" * 256, 1), ("a/" * 2040 + "b", 1), ("{date}" + "x" * 250, 1), ("out", 12)],
    ids=["a folder", "a path", "a template", "a point of a sweep"],
)
def test_an_output_whose_name_no_disk_takes_is_refused_by_the_plan(tmp_path, output, deltas):
    new, post, old = make_three(tmp_path)
    swept = {"sweep": {f"deltas.{n}.weight": [1.0625] for n in range(deltas)}} if deltas > 1 else {}
    given = [{"post": str(post), "base": str(old)} for _ in range(deltas)]
    with pytest.raises(UsageError, match="choose a shorter one"):
        api.plan(recipe(new, post, old, tmp_path / output, deltas=given, **swept))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "post"], "a plan writes nothing"


def test_an_output_whose_keys_are_too_long_for_an_object_store_is_refused_by_the_plan(tmp_path):
    new, post, old = make_three(tmp_path)
    with pytest.raises(UsageError, match="1024"):
        api.plan(recipe(new, post, old, "s3://bucket/" + "k" * 1000))


def test_side_files_of_a_sweep_are_read_once_where_they_are_small(tmp_path):
    (tmp_path / "small").write_bytes(b"12")
    identity = open_store(str(tmp_path), StorageConfig()).identify("small")
    copies, file = SideFiles(StorageConfig()), SideFile(str(tmp_path), "small", identity)
    assert copies.read(file) is copies.read(file)
