"""Places that are no model folder are told apart, and the way that each message offers ends with a finished merge."""

import json
import re
import shutil

import pytest

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.errors import CheckpointError
from paramdelta_dist.storage import StorageConfig
from tests.models import ARCHITECTURES, make_models
from tests.terminal import call


@pytest.fixture
def models(tmp_path):
    return make_models(tmp_path, ARCHITECTURES["llama"])


def said_of(path):
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(str(path), StorageConfig())
    assert raised.value.exit_code == 3
    return str(raised.value)


def merges(folder, models, tmp_path):
    """Whether a merge with this folder as its post ends well."""
    old, _, new = models
    (tmp_path / "r.yaml").write_text(f"base: {new}\ndeltas: [{{post: {folder}, base: {old}}}]\noutput: {tmp_path / 'out'}\n")
    done = call("merge", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "out" / "config.json").exists()


def cache_of(post, hub, revision="0123456789abcdef"):
    """The model as the Hub's cache keeps it: blobs, and links to them."""
    root = hub / "models--org--name"
    snapshot = root / "snapshots" / revision
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in post.iterdir() if path.is_file())):
        shutil.copy(file, root / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    (root / "refs" / "main").write_text(revision)
    return root


def test_the_root_of_a_hub_cache_names_its_snapshots(models, tmp_path):
    root = cache_of(models[1], tmp_path / "hub")
    message = said_of(root)
    assert "name the snapshot in it" in message
    assert "(main)" in message
    [snapshot] = re.findall(r"in it: (\S+)", message)
    assert merges(snapshot, models, tmp_path)
    above = said_of(tmp_path / "hub")
    assert "org/name" in above
    assert f"{root}/snapshots/" in above
    shutil.rmtree(root / "snapshots")
    assert "with no version of it" in said_of(root)


@pytest.mark.parametrize(
    ("files", "inner", "says"),
    [
        (["model_index.json"], "text_encoder", "a diffusers pipeline"),
        (["modules.json"], "0_Transformer", "a sentence-transformers model"),
        (["trainer_state.json"], "checkpoint-500", "neither model.safetensors nor"),
        (["consolidated.00.pth", "params.json"], "hf", "their maker's own layout"),
        (["model-q4.gguf"], "source", "this is GGUF"),
        (["pytorch_model.bin"], "safetensors", "the weights are pickled"),
    ],
)
def test_a_model_below_is_named(models, tmp_path, files, inner, says):
    place = tmp_path / "place"
    shutil.copytree(models[1], place / inner)
    for name in files:
        (place / name).write_bytes(b"[]")
    message = said_of(place)
    assert says in message
    [named] = re.findall(r"a model is in (\S+): name that folder", message)
    assert named == str(place / inner)
    assert merges(named, models, tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapter_config.json", "LoRA adapter"),
        ("weights.gguf", "convert_hf_to_gguf"),
        ("consolidated.safetensors", "convert_*_weights_to_hf"),
        ("consolidated.00.pth", "convert_*_weights_to_hf"),
        ("model_index.json", "none of them is a folder that can be merged"),
        ("__0_0.distcp", "torch.distributed"),
        ("tf_model.h5", "another framework"),
        ("model.onnx", "another framework"),
        ("model.ckpt", "pickled"),
        ("stray.safetensors", "restore the index"),
        ("notes.txt", "no checkpoint here"),
    ],
)
def test_each_place_has_a_message_of_its_own(tmp_path, name, says):
    place = tmp_path / "place"
    place.mkdir()
    (place / name).write_bytes(b"{}")
    assert says in said_of(place)


@pytest.mark.parametrize("command", ["inspect", "check", "plan"])
def test_an_id_of_the_hub_without_its_scheme_is_told(tmp_path, command):
    flags = [] if command == "inspect" else ["--delta", "new:new", *(["--output", "out"] if command == "plan" else [])]
    for given, hint in (("meta-llama/Llama-3.1-8B", "write hf://meta-llama/Llama-3.1-8B"), ("gpt2", "hf://OWNER/gpt2")):
        done = call(command, *([given] if command == "inspect" else ["--base", given]), *flags, cwd=tmp_path)
        assert done.returncode == 3
        assert hint in done.stderr
    assert "hf://" not in call("inspect", "./a/b/c", cwd=tmp_path).stderr


@pytest.mark.parametrize("kept", ["model.safetensors", "model.safetensors.index.json"])
def test_two_models_in_one_folder_are_refused_until_one_is_moved_away(models, tmp_path, kept):
    old, post, _ = models
    both = tmp_path / "both"
    shutil.copytree(post, both)
    for file in both.glob("model*"):
        file.unlink()
    source = {"one": post, "two": old}
    from safetensors.torch import save_file

    from tests import oracle

    save_file(oracle.load(source["one"]), both / "model.safetensors", metadata={"format": "pt"})
    save_file(oracle.load(source["two"]), both / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(oracle.load(old), "model-00001-of-00001.safetensors")
    (both / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    message = said_of(both)
    assert "two models are here" in message
    away = ({"model.safetensors", "model.safetensors.index.json"} - {kept}).pop()
    assert f"move {away} away" in message or f", {away} to merge the second" in message
    (both / away).unlink()
    assert merges(both, models, tmp_path)
