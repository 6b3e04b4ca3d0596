"""Adapters that cannot be deltas: each is refused by its name, with all that does not fit and a way out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramdelta_dist.checkpoint import compare, open_checkpoint
from paramdelta_dist.checkpoint.adapter import open_adapter
from paramdelta_dist.checkpoint.adapter_config import parse_adapter_config
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.errors import CheckpointError, OverBudget
from paramdelta_dist.storage import StorageConfig

PATHS = [f"layers.{layer}.self_attn.{part}" for layer in range(2) for part in ("q_proj", "v_proj")]
SHAPES = {f"model.{path}.weight": (6, 4) for path in PATHS} | {"model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "o/base"}
STORAGE = StorageConfig()


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({name: torch.randn(shape) for name, shape in SHAPES.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": False}))
    return folder


def factors(paths=PATHS, rank=2, before="base_model.model.model."):
    made = {}
    for path in paths:
        made |= {f"{before}{path}.lora_A.weight": torch.randn(rank, 4), f"{before}{path}.lora_B.weight": torch.randn(6, rank)}
    return made


def opened(base, tensors=None, without=(), room=None, **config):
    folder = base.parent / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(factors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    table = {key: value for key, value in (CONFIG | config).items() if key not in without}
    (folder / "adapter_config.json").write_text(json.dumps(table))
    return open_adapter(str(folder), STORAGE, open_checkpoint(str(base), STORAGE), room)


def refused(base, *said, **more):
    with pytest.raises(CheckpointError) as raised:
        opened(base, **more)
    message = str(raised.value)
    assert all(part in message for part in said), message
    return message


def test_an_adapter_that_fits_holds_a_delta_for_each_of_its_modules(base):
    found = opened(base)
    assert list(found.tensors) == [f"model.{path}.weight" for path in PATHS]
    assert found.adapter.base == str(base)
    assert found.adapter.notes == ()
    assert found.nbytes == sum(tensor.numel() * 4 for tensor in factors().values())


@pytest.mark.parametrize(
    "before", ["", "base_model.model.", "base_model.model.language_model.model.", "base_model.model.model.language_model."]
)
def test_names_may_differ_in_what_is_around_the_language_model(base, before):
    assert len(opened(base, factors(before=before)).tensors) == 4


def test_names_may_have_that_of_the_adapter(base):
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in factors().items()}
    assert len(opened(base, tensors).tensors) == 4


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"init_lora_weights": "corda"}, "'corda'"),
        ({"init_lora_weights": "loftq"}, "'loftq'"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga'"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"use_qalora": True}, "QALoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"monteclora_config": {"num_samples": 8}}, "MonteCLoRA"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
    ],
)
def test_a_kind_of_adapter_that_is_no_sum_of_products_is_refused_by_its_name(base, config, said):
    message = refused(base, said, "adapter_config.json", **config)
    assert any(way in message for way in ("merge_and_unload", "weight_conversion", "leave it out"))


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_alone_is_no_matter(base, start):
    assert len(opened(base, init_lora_weights=start).tensors) == 4


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0}, {"r": 1 << 40}, {"r": "8"}, {"lora_alpha": None}, {"lora_alpha": "x"}, {"rank_pattern": []}, {"rank_pattern": {"(": 2}},
        {"rank_pattern": {"(a+)+": 2}}, {"alpha_pattern": {"q_proj": "x"}}, {"target_modules": 5}, {"target_modules": "(.*)*x"},
        {"target_parameters": "x"}, {"layers_to_transform": "1"}, {"modules_to_save": [1]}, {"exclude_modules": [""]},
    ],
)  # fmt: skip
def test_a_config_that_no_training_wrote_is_refused(config):
    with pytest.raises(CheckpointError, match=r"where: .*; get the adapter once more"):
        parse_adapter_config(CONFIG | config, where="where")


def test_factors_without_a_tensor_are_listed_and_no_more_than_twenty_shown(base):
    message = refused(base, "25 things do not fit", "… and 5 more", "layers.9.mlp.x0", "name the model that it was trained on",
                      tensors=factors() | factors([f"layers.9.mlp.x{number}" for number in range(25)]))  # fmt: skip
    assert message.count("\n  - ") == 20


def test_a_module_that_the_config_names_and_the_file_has_not_is_an_error(base):
    refused(base, "the config names 1 modules", "layers.1.self_attn.v_proj", tensors=factors(PATHS[:3]))
    only_q = factors([path for path in PATHS if path.endswith("q_proj")])
    refused(base, "target_modules: the config names 'v_proj'", tensors=only_q)
    refused(base, "modules_to_save: the config names 'lm_head'", modules_to_save=["lm_head"])
    assert len(opened(base, only_q, target_modules=["q_proj", "c_attn"]).tensors) == 2
    assert len(opened(base, factors(PATHS[2:]), layers_to_transform=[1]).tensors) == 2
    assert len(opened(base, factors(PATHS[1:]), exclude_modules=[PATHS[0]]).tensors) == 3


def test_layers_that_the_config_does_not_count_need_no_factors(base):
    (base / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    assert len(opened(base, factors(PATHS[:2])).tensors) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(next(iter(t))), "its other factor, A, is missing"),
        (lambda t: t.update({next(iter(t)): torch.randn(2, 5)}), "make no [6, 4]"),
        (lambda t: t.update({next(iter(t)): torch.randn(3, 4)}), "which have no product"),
        (lambda t: t.update({next(iter(t)): torch.randn(2, 4).half()}), "factors of F16 and F32"),
        (lambda t: t.update({next(iter(t)): torch.randn(2, 4, 1, 1)}), "no matrices"),
        (lambda t: t.update(factors(rank=3)), "3 rows, and the config gives it rank 2"),
        (lambda t: t.update({f"base_model.model.model.{PATHS[0]}.lora_magnitude_vector": torch.ones(6)}), "DoRA"),
        (lambda t: t.update({f"base_model.model.model.{PATHS[0]}.lora_B.bias": torch.ones(6)}), "a bias of a factor"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, 4)}), "trainable"),
        (lambda t: t.update({f"base_model.model.model.{PATHS[0]}.lora_kasa.weight": torch.ones(1)}), "no tensor that a LoRA"),
        (lambda t: t.update({f"x.{PATHS[0]}.lora_A.two.weight": torch.ones(2, 4)}), "several adapters lie in one file"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(9, 4)}), "where tokens were added"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.base_layer.weight": torch.ones(9, 4)}), "where tokens were added"),
        (lambda t: t.update({f"base_model.model.model.{PATHS[0]}.weight": torch.ones(6, 4)}), "which has factors for it as well"),
        (lambda t: t.update({"base_model.model.score.weight": torch.ones(9, 4)}), "the model has no tensor 'score.weight'"),
        (lambda t: t.clear(), "it holds no factors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(base, change, said):
    tensors = factors()
    change(tensors)
    config = {"target_modules": None} if not tensors else {}
    refused(base, said, tensors=tensors, **config)


def test_a_head_that_is_the_embeddings_cannot_be_adapted_by_itself(base):
    held = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    head = {"base_model.model.lm_head.lora_A.weight": torch.randn(2, 4), "base_model.model.lm_head.lora_B.weight": torch.randn(8, 2)}
    (base / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    save_file({**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    refused(base, "the adapter changes it by itself", "tie_word_embeddings: false", tensors=factors() | head)
    held.pop("lm_head.weight")
    save_file(held, base / "model.safetensors")
    refused(base, "no output head of its own", "tie_word_embeddings: false", tensors=factors() | head)


def test_a_folder_that_holds_no_adapter_is_refused_with_what_is_missing(base):
    adapter = base.parent / "adapter"

    def message():
        with pytest.raises(CheckpointError) as raised:
            open_adapter(str(adapter), STORAGE, open_checkpoint(str(base), STORAGE))
        return str(raised.value)

    opened(base)
    (adapter / "adapter_config.json").rename(adapter / "config.json")
    assert "adapter_config.json is missing" in message()
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "pickled" in message()
    (adapter / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors is missing" in message()
    (adapter / "adapter_config.json").unlink()
    (adapter / "notes.txt").write_text("x")
    assert "no adapter here" in message()
    (adapter / "adapter_config.json").write_text("[")
    save_file(factors(), adapter / "adapter_model.safetensors")
    assert "not valid JSON" in message()


def test_another_name_of_the_base_is_a_note_and_no_more(base):
    notes = opened(base, base_model_name_or_path="meta/Other").adapter.notes
    assert len(notes) == 1
    assert "'meta/Other'" in notes[0]


def test_small_files_take_their_place_in_the_room(base):
    with pytest.raises(OverBudget):
        opened(base, room=Room(1))


def test_an_adapter_is_homologous_with_every_model_that_has_its_tensors_in_their_shapes(base, tmp_path):
    adapter, model = opened(base), open_checkpoint(str(base), STORAGE)
    assert compare(model, [adapter], STORAGE).mismatches == ()
    assert any("'meta/Other'" in note for note in compare(model, [opened(base, base_model_name_or_path="meta/Other")], STORAGE).notes)
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(base / "model.safetensors")
    tensors[f"model.{PATHS[0]}.weight"] = torch.ones(6, 5)
    tensors.pop(f"model.{PATHS[1]}.weight")
    save_file(tensors, other / "model.safetensors")
    found = compare(open_checkpoint(str(other), STORAGE), [adapter], STORAGE).mismatches
    assert [(each.subject, each.problem.partition(" ")[0]) for each in found] == [
        ("shapes", f"'model.{PATHS[0]}.weight'"), ("tensors", f"'model.{PATHS[1]}.weight'"),
    ]  # fmt: skip
    assert [each.subject for each in compare(open_checkpoint(str(other), STORAGE), [adapter], STORAGE, missing="copy").mismatches] == [
        "shapes"
    ]
