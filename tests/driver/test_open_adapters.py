"""Adapters that a recipe names: opened after their bases, with the tokens of these."""

import json

import pytest
import torch
from safetensors.torch import save_file

from paramdelta_dist.driver.open_inputs import needs_vocabularies, open_models, read_vocabularies
from paramdelta_dist.errors import UsageError
from paramdelta_dist.recipe.model import Recipe

NAME = "model.layers.0.self_attn.q_proj.weight"


def model(folder, tokens):
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": torch.randn(len(tokens), 4),
        "lm_head.weight": torch.randn(len(tokens), 4),
        NAME: torch.randn(6, 4),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(tokens), "tie_word_embeddings": False}))
    tokenizer(folder, tokens)
    return folder


def tokenizer(folder, tokens):
    words = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words, "unk_token": tokens[0]}}))


def adapter(folder):
    folder.mkdir()
    path = f"base_model.model.{NAME.removesuffix('.weight')}"
    save_file(
        {f"{path}.lora_A.weight": torch.randn(2, 4), f"{path}.lora_B.weight": torch.randn(6, 2)}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folders(tmp_path):
    return model(tmp_path / "new", "abcdef"), model(tmp_path / "old", "fedcba"), adapter(tmp_path / "lora")


def recipe(new, old, lora, **more):
    document = {"base": str(new), "deltas": [{"adapter": str(lora), "base": str(old)}], "output": str(new.parent / "out"), **more}
    return Recipe.model_validate(document)


def test_an_adapter_is_opened_with_the_model_that_it_grew_from(folders):
    models = open_models(recipe(*folders))
    found = models.checkpoints[str(folders[2])]
    assert found.adapter.base == str(folders[1])
    assert list(found.tensors) == [NAME]
    assert models.tokenizer_files == models.checkpoints[str(folders[0])].side_files


def test_the_rows_of_an_adapter_are_of_the_tokens_of_the_model_that_it_grew_from(folders):
    asked = recipe(*folders, vocab="by-token")
    models = open_models(asked)
    assert needs_vocabularies(asked, models)
    vocabularies = read_vocabularies(asked, models)
    assert vocabularies[str(folders[2])].ids == vocabularies[str(folders[1])].ids
    assert vocabularies[str(folders[2])].ids["f"] == 0


def test_the_tokenizer_of_an_adapters_folder_may_be_written_where_it_is_that_of_its_base(folders):
    asked = recipe(*folders, vocab="by-token", tokenizer_from=0)
    tokenizer(folders[2], "fedcba")
    models = open_models(asked)
    assert list(models.tokenizer_files) == ["tokenizer.json"]
    assert read_vocabularies(asked, models)[str(folders[2])].ids["f"] == 0
    tokenizer(folders[2], "fedcbaX")
    with pytest.raises(UsageError, match="copy its tokenizer into a folder of its own"):
        read_vocabularies(asked, open_models(asked))
