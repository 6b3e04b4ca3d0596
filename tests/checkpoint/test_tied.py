"""An output head that is the input embeddings: one tensor, however often and by whom it is stored."""

import pytest
import torch

from paramdelta_dist import api
from tests import oracle
from tests.models import recipe, save_model

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def models(root, stored=("new", "post", "old"), *, tied=True, strange=(), head=HEAD):
    """new, post and old; those that are not `stored` twice have no head, that of the `strange` is another tensor."""
    folders = []
    for seed, name in enumerate(("new", "post", "old")):
        torch.manual_seed(seed)
        tensors = {EMBED: torch.randn(16, 8), "model.layers.0.mlp.up_proj.weight": torch.randn(8, 8)}
        if name in stored:
            tensors[head] = tensors[EMBED].clone() + (1 if name in strange else 0)
        config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 16}
        folders.append(save_model(root / name, tensors, config=config | ({} if tied is None else {"tie_word_embeddings": tied})))
    return folders


WAYS = [
    {},
    {"method": "dare_linear", "parameters": {"density": 0.5}},
    {"method": "della_linear", "parameters": {"density": 0.5}},
    {"method": "ties", "parameters": {"density": 0.5}},
    {"weight": [{"component": "lm_head", "value": 0.0}, {"value": 1.0}]},
    {"weight": [{"match": "lm_head*", "value": 3.0}, {"component": "embedding", "value": 0.5}, {"value": 1.0}]},
    {"exclude": HEAD},
    {"exclude": "*embed_tokens*", "tokenizer_from": "base"},
    {"dtype": "float16"},
]


@pytest.mark.parametrize("tied", [True, None])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_both_copies_are_equal_and_what_they_would_be_if_there_were_one(tmp_path, way, tied):
    api.merge(recipe(*models(tmp_path, tied=tied), tmp_path / "twice", **way))
    got = oracle.load(tmp_path / "twice")
    assert torch.equal(got[HEAD], got[EMBED])
    if "lm_head" not in str(way):
        api.merge(recipe(*models(tmp_path / "once", (), tied=True), tmp_path / "one", **way))
        assert torch.equal(got[EMBED], oracle.load(tmp_path / "one")[EMBED])


@pytest.mark.parametrize("stored", [("new",), ("post",), ("post", "old"), ("new", "old")])
def test_a_copy_that_only_some_models_have_is_no_difference(tmp_path, stored):
    api.merge(recipe(*models(tmp_path, stored), tmp_path / "out"))
    got = oracle.load(tmp_path / "out")
    assert (HEAD in got) == ("new" in stored)
    assert torch.equal(got.get(HEAD, got[EMBED]), got[EMBED])


@pytest.mark.parametrize("strange", ["new", "post", "old"])
def test_copies_that_differ_are_merged_each_from_its_own_and_a_note_says_so(tmp_path, strange):
    folders = models(tmp_path, strange=(strange,))
    result = api.merge(recipe(*folders, tmp_path / "out"))
    got, (new, post, old) = oracle.load(tmp_path / "out"), map(oracle.load, folders)
    for name in (EMBED, HEAD):
        torch.testing.assert_close(got[name], new[name] + post[name] - old[name], atol=1e-6, rtol=0)
    assert any("the tensors decide" in note for note in result.report["notes"])


def test_a_model_without_a_copy_gives_its_embeddings_where_others_differ(tmp_path):
    folders = models(tmp_path, ("new", "post"), strange=("post",))
    api.merge(recipe(*folders, tmp_path / "out"))
    got, (new, post, old) = oracle.load(tmp_path / "out"), map(oracle.load, folders)
    torch.testing.assert_close(got[HEAD], new[HEAD] + post[HEAD] - old[EMBED], atol=1e-6, rtol=0)


def test_heads_that_the_config_unties_are_their_own_even_where_they_are_equal(tmp_path):
    rule = [{"component": "lm_head", "value": 0.0}, {"value": 1.0}]
    folders = models(tmp_path, tied=False)
    api.merge(recipe(*folders, tmp_path / "out", weight=rule))
    assert torch.equal(oracle.load(tmp_path / "out")[HEAD], oracle.load(folders[0])[HEAD])


T5 = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
BERT = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
NEOX = ("gpt_neox.embed_in.weight", "embed_out.weight")
WRAPPED = ("model.language_model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("names", [T5, BERT, NEOX, WRAPPED], ids=str)
@pytest.mark.parametrize("method", ["paramdelta", "dare_linear"])
@pytest.mark.parametrize("once", ["new", "post", "old"])
def test_it_is_so_whatever_the_copies_are_called(tmp_path, names, method, once):
    folders = []
    for seed, name in enumerate(("new", "post", "old")):
        torch.manual_seed(seed)
        table = torch.randn(16, 8)
        tensors = {key: table.clone() for key in (names[:1] if name == once else names)}
        folders.append(save_model(tmp_path / name, tensors, config={"model_type": "x", "tie_word_embeddings": True}))
    api.merge(recipe(*folders, tmp_path / "out", method=method, **({"parameters": {"density": 0.5}} if method != "paramdelta" else {})))
    got = oracle.load(tmp_path / "out")
    assert set(got) == set(names[:1] if once == "new" else names)
    assert all(torch.equal(each, got[names[0]]) for each in got.values())
