"""What lies beside the weights: it goes along unless there is a reason, and what stays behind is said."""

import json

import pytest
import torch
from safetensors.torch import load, save

from paramdelta_dist import api
from paramdelta_dist.storage import StorageConfig, open_store
from tests.models import recipe, save_model
from tests.terminal import call

WORDS = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}
TOKENIZER = {"tokenizer.json": WORDS, "tokenizer_config.json": {}, "chat_template.jinja": b"{{ x }}"}


def model(folder, seed, files=None, **config):
    torch.manual_seed(seed)
    save_model(
        folder, {"model.norm.weight": torch.randn(4)}, config={"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}
    )
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def three(root, files=None, *, new=None, post=None, old=None, **config):
    own = {"new": new, "post": post, "old": old}
    return [model(root / name, seed, {**(files or {}), **(own[name] or {})}, **config) for seed, name in enumerate(own)]


def merged(root, folders, **more):
    root.mkdir(exist_ok=True)
    result = api.merge(recipe(*folders, root / "out", **more))
    assert call("verify", str(root / "out"), "--deep", cwd=root).returncode == 0
    return root / "out", " ".join(result.report["notes"])


@pytest.mark.parametrize(
    "name",
    ["tiktoken.model", "spm.model", "source.spm", "bpe.codes", "normalizer.json", "tokenizer.model.v7", "vocab.bpe", "entity_vocab.json",
     "vocab-src.json", "tokenizer.model.v11", "m.model", "dict.txt", "tokenizer/vocab.txt"],
)  # fmt: skip
def test_a_tokenizer_file_of_any_name_comes_with_the_tokenizer(tmp_path, name):
    folders = three(tmp_path, new={name: b"new"}, post={name: b"post"}, old={name: b"old"})
    out, said = merged(tmp_path, folders)
    assert (out / name).read_bytes() == b"post"
    assert "cannot be read" in said


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "deep/er/notes.txt", "figure.png", "mel_filters.npy", "1_Pooling/x.json"])
def test_an_unknown_file_goes_along_from_the_base(tmp_path, name):
    out, said = merged(tmp_path, three(tmp_path, new={name: b"new"}, post={name: b"post", "only_here.txt": b"x"}))
    assert (out / name).read_bytes() == b"new"
    assert not (out / "only_here.txt").exists()
    assert "only_here.txt" in said
    assert ("code goes along" in said) == name.endswith(".py")


@pytest.mark.parametrize("name", ["2_Dense/model.safetensors", "projector.safetensors", "adapter_model.safetensors"])
def test_weights_beside_the_model_are_the_bases_and_said(tmp_path, name):
    folders = three(tmp_path, new={name: save({"w": torch.zeros(3)})}, post={name: save({"w": torch.ones(3)})})
    out, said = merged(tmp_path, folders)
    assert (out / name).read_bytes() == (folders[0] / name).read_bytes()
    assert f"not merged: '{name}'" in said
    assert name in (out / "README.md").read_text()
    for command in ("check", "plan"):
        (tmp_path / "r.yaml").write_text(f"base: {folders[0]}\ndeltas: [{{post: {folders[1]}, base: {folders[2]}}}]\noutput: other\n")
        assert name in call(command, "r.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize("store", ["disk", "s3"])
@pytest.mark.parametrize("name", ["2_Dense/model.safetensors", "projector.safetensors"])
def test_weights_beside_that_all_models_have_alike_are_merged(tmp_path, name, store, s3_server, monkeypatch):
    folders = []
    for seed, folder in enumerate(("new", "post", "old")):
        torch.manual_seed(seed)
        weights = {"linear.weight": torch.randn(8, 6), "linear.bias": torch.randn(8)}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        folders.append(save_model(tmp_path / folder, {f"layers.{n}.weight": torch.randn(40, 5) for n in range(3)}, config=config))
        (tmp_path / folder / name).parent.mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(save(weights))
    out = str(tmp_path / "out")
    if store == "s3":
        for variable, value in s3_server.environ.items():
            monkeypatch.setenv(variable, value)
        out = f"s3://{s3_server.make_bucket()}/out"
    made = recipe(*folders, out, weight=0.5, shard_size=1000)
    result = api.merge(made)
    assert f"are merged too: '{name}'" in " ".join(result.report["notes"])
    assert api.verify(out, deep=True, recompute=1.0)["ok"]
    assert api.merge(made).state == "nothing to do"
    written = open_store(out, StorageConfig())
    index = json.loads(written.read("model.safetensors.index.json", limit=1 << 20))
    assert set(index["weight_map"]) == {f"layers.{n}.weight" for n in range(3)}
    assert index["metadata"]["total_size"] == 3 * 40 * 5 * 4
    new, post, old = (load((folder / name).read_bytes()) for folder in folders)
    found = load(bytes(written.read(name, limit=1 << 20)))
    assert found.keys() == new.keys()
    for tensor, value in found.items():
        expected = new[tensor].double() + 0.5 * (post[tensor].double() - old[tensor].double())
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("adapter_model.safetensors", {"w": torch.ones(3)}),
        ("more.safetensors", {"q.lora_A.weight": torch.ones(3)}),
        ("more.safetensors", {"w": torch.ones(3, dtype=torch.int8)}),
        ("more.safetensors", {}),
    ],
)
def test_weights_beside_that_no_sum_has_a_meaning_for_are_copied(tmp_path, name, weights):
    out, said = merged(tmp_path, three(tmp_path, {name: save(weights)}))
    assert (out / name).read_bytes() == save(weights)
    assert f"not merged: '{name}'" in said


def test_rules_speak_of_weights_beside_by_file_and_name(tmp_path):
    name = "2_Dense/model.safetensors"
    folders = three(
        tmp_path, new={name: save({"w": torch.zeros(3)})}, post={name: save({"w": torch.ones(3)})}, old={name: save({"w": torch.zeros(3)})}
    )
    out, _ = merged(tmp_path, folders, exclude=["2_Dense/*"])
    assert load((out / name).read_bytes())["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("difference", ["small", "large", "size", "none"])
def test_weights_beside_that_differ_between_the_models_are_said_to_take_no_part(tmp_path, difference):
    name, size = "2_Dense/model.safetensors", 300_000 if difference == "large" else 3
    ours = torch.zeros(size)
    theirs = ours + (difference in ("small", "large")) if difference != "size" else torch.zeros(4)
    new, post = {name: save({"w": ours})}, {name: save({"w": theirs})}
    out, said = merged(tmp_path, three(tmp_path, new=new, post=post))  # old has none
    assert (out / name).read_bytes() == save({"w": ours})
    told = f"{tmp_path / 'post'}: has others than the base in weights beside the model, and no part in what is written there: '{name}'"
    assert (told in said) == (difference != "none")
    assert f"{tmp_path / 'old'}: has others" not in said


def test_files_of_the_bases_tokenizer_that_the_posts_has_not_are_told(tmp_path):
    folders = three(tmp_path, TOKENIZER, new={"added_tokens.json": {}, "tokenizer.model.v9": b"x"})
    out, said = merged(tmp_path, folders)
    assert not (out / "added_tokens.json").exists()
    assert f"stays behind, for the tokenizer is that of {folders[1]}, which has no file of this name: 'added_tokens.json', " in said
    assert "added_tokens.json" in (out / "README.md").read_text()
    (tmp_path / "r.yaml").write_text(f"base: {folders[0]}\ndeltas: [{{post: {folders[1]}, base: {folders[2]}}}]\noutput: other\n")
    for command in ("check", "plan"):
        assert "added_tokens.json" in call(command, "r.yaml", cwd=tmp_path).stdout
    assert "stays behind" not in merged(tmp_path / "b", folders, tokenizer_from="base")[1]


def test_side_files_and_code_that_only_a_post_has_are_told(tmp_path):
    out, said = merged(tmp_path, three(tmp_path, post={"preprocessor_config.json": {}, "modeling_x.py": b"x"}))
    assert not (out / "modeling_x.py").exists()
    assert "which has none of this name: 'modeling_x.py', 'preprocessor_config.json'" in said


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "consolidated.safetensors", "model-00001-of-00009.safetensors", "onnx/model.json", "m.gguf", "optimizer.pt",
     "checkpoint-5/config.txt", "trainer_state.json", "x.incomplete"],
)  # fmt: skip
def test_what_stays_behind_is_told_with_the_reason(tmp_path, name):
    out, said = merged(tmp_path, three(tmp_path, new={name: b"x"}))
    assert not (out / name).exists()
    assert f"'{name}' (" in said
    assert name in (out / "README.md").read_text()


def test_what_is_of_the_folder_and_not_of_the_model_never_travels(tmp_path):
    hidden = {".gitattributes": b"x", ".git/config": b"x", ".cache/a/b": b"x", ".paramdelta/commit.json": b"{}", "README.md": b"theirs"}
    out, _ = merged(tmp_path, three(tmp_path, new=hidden))
    assert {path.name for path in out.iterdir()} == {".paramdelta", "README.md", "config.json", "model.safetensors"}
    assert "theirs" not in (out / "README.md").read_text()


def test_a_link_out_of_the_base_and_a_pointer_stay_behind_and_are_told(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    folders = three(tmp_path, new={"projector.safetensors": pointer})
    (tmp_path / "secret.txt").write_text("secret")
    (folders[0] / "notes.txt").symlink_to(tmp_path / "secret.txt")
    out, said = merged(tmp_path, folders)
    assert not (out / "projector.safetensors").exists()
    assert not (out / "notes.txt").exists()
    assert "Git LFS" in said
    assert "notes.txt" in said


def test_a_post_without_a_tokenizer_gets_the_bases_and_says_so(tmp_path):
    folders = three(tmp_path, new=TOKENIZER, old=TOKENIZER)
    out, said = merged(tmp_path, folders)
    assert all((out / name).exists() for name in TOKENIZER)
    assert "has no tokenizer: that of the base is written" in said
    assert api.merge(recipe(*folders, out)).state == "nothing to do"


def test_a_tokenizer_that_somebody_chose_is_not_replaced(tmp_path):
    out, said = merged(tmp_path, three(tmp_path, new=TOKENIZER, old=TOKENIZER), tokenizer_from="post")
    assert not (out / "tokenizer.json").exists()
    assert "the output will have none" in said


def test_a_quantization_config_beside_plain_numbers_is_left_out_and_said(tmp_path):
    out, said = merged(tmp_path, three(tmp_path, quantization_config={"quant_method": "fp8"}))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert "quantization_config" in said


def test_overwriting_takes_what_went_along_away_again(tmp_path):
    folders = three(tmp_path, new={"deep/notes.txt": b"x", "figure.png": b"x"})
    out, _ = merged(tmp_path, folders)
    (folders[0] / "deep" / "notes.txt").unlink()
    (folders[0] / "figure.png").unlink()
    api.merge(recipe(*folders, out), overwrite=True)
    assert not (out / "deep" / "notes.txt").exists()
    assert not (out / "figure.png").exists()
