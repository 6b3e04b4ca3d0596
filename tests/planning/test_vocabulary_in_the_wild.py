"""Vocabularies as people's models have them: rows, columns and biases, several vocabularies in a model, ids of special tokens."""

import json

import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.errors import HomologyError, UsageError
from paramdelta_dist.planning.vocabulary_rows import MOST_PARTS
from tests import oracle
from tests.models import recipe, save_model

WORDS = [f"w{n}" for n in range(20)]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tokenizer_json(words, added=()):
    entries = [{"id": number, "content": token, "special": True} for token, number in added]
    return {"added_tokens": entries, "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}}}


def make(folder, seed, shapes, config, words=WORDS, added=(), **files):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: shape if isinstance(shape, torch.Tensor) else torch.randn(*shape, generator=generator) for name, shape in shapes.items()
    }
    save_model(folder, {"model.norm.weight": torch.ones(8), **tensors}, config={"model_type": "toy", "architectures": ["Toy"], **config})
    contents = {"tokenizer.json": tokenizer_json(words, added), **files} if words else files
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


def three(root, shapes, config, *, post=None, old=WORDS[::-1], new=WORDS, **more):
    """New base, post and old base; `shapes` and `config` are functions of how many tokens there are."""
    if post is None:
        post = [*WORDS[::-1], "x", "y"]
    models = {"new": new, "post": post, "old": old}
    return [
        make(root / name, seed, shapes(len(words)), config(len(words)), words, **more) for seed, (name, words) in enumerate(models.items())
    ]


def by_token(folders, name, dimension, tokens):
    """What a tensor should be: `tokens` are those of new, post and old, and the post's are written."""
    new, post, old = (oracle.load(folder)[name].double().movedim(dimension, 0) for folder in folders)
    rows = []
    for number, token in enumerate(tokens[1]):
        if token not in tokens[0]:
            rows.append(post[number])
            continue
        row = new[tokens[0].index(token)].clone()
        if token in tokens[2]:
            row += post[number] - old[tokens[2].index(token)]
        rows.append(row)
    return torch.stack(rows).movedim(0, dimension).float().contiguous()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


OF_TOKENS = {
    "rows": (EMBEDDINGS, lambda v: (v, 8), 0),
    "a bias": ("lm_head.bias", lambda v: (v,), 0),
    "a bias with a dimension before": ("final_logits_bias", lambda v: (1, v), 1),
    "columns": ("cls.predictions.dense.weight", lambda v: (5, v), 1),
    "the embeddings of Mamba": ("backbone.embeddings.weight", lambda v: (v, 8), 0),
    "the head of Whisper": ("proj_out.weight", lambda v: (v, 8), 0),
    "the decoder of BERT": ("cls.predictions.decoder.bias", lambda v: (v,), 0),
    "the decoder of RoBERTa": ("lm_head.decoder.weight", lambda v: (v, 8), 0),
    "the embeddings of T5": ("shared.weight", lambda v: (v, 8), 0),
}


@pytest.mark.parametrize("case", OF_TOKENS)
def test_entries_follow_their_tokens_wherever_they_stand(tmp_path, case):
    name, shape, dimension = OF_TOKENS[case]
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8), name: shape(v)}, lambda v: {"vocab_size": v})
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token"))
    out, tokens = oracle.load(tmp_path / "out"), [WORDS, [*WORDS[::-1], "x", "y"], WORDS[::-1]]
    expected = {each: by_token(folders, each, d, tokens) for each, d in ((EMBEDDINGS, 0), (name, dimension))}
    oracle.assert_within_one_rounding({each: out[each] for each in expected}, expected, share=0.01)
    assert config_of(tmp_path / "out")["vocab_size"] == 22
    assert api.verify(str(tmp_path / "out"), deep=True, recompute=1.0)["ok"]


@pytest.mark.parametrize("case", OF_TOKENS)
def test_pad_takes_entries_that_only_one_model_has_wherever_they_stand(tmp_path, case):
    name, shape, dimension = OF_TOKENS[case]
    tokens = {"post": [*WORDS, "x", "y"], "old": WORDS}
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8), name: shape(v)}, lambda v: {"vocab_size": v}, **tokens)
    api.merge(recipe(*folders, tmp_path / "out", vocab="pad"))
    expected = by_token(folders, name, dimension, [WORDS, [*WORDS, "x", "y"], WORDS])
    oracle.assert_within_one_rounding({name: oracle.load(tmp_path / "out")[name]}, {name: expected}, share=0.01)


@pytest.mark.parametrize("vocab", ["pad", "by-token"])
def test_a_tensor_with_the_size_of_a_vocabulary_and_an_unknown_name_is_asked_about_and_the_answers_work(tmp_path, vocab):
    tokens = {"post": [*WORDS, "x", "y"], "old": WORDS} if vocab == "pad" else {}
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8), "model.hash.table": (v, 3)}, lambda v: {"vocab_size": v}, **tokens)
    with pytest.raises(HomologyError, match=r'(?s)model.hash.table.*`vocabulary: \{tensors: \["model.hash.table"\]\}`'):
        api.plan(recipe(*folders, tmp_path / "out", vocab=vocab))
    api.merge(recipe(*folders, tmp_path / "out", vocab=vocab, vocabulary={"tensors": ["model.hash.table"]}))
    written = tokens.get("post", [*WORDS[::-1], "x", "y"])
    expected = by_token(folders, "model.hash.table", 0, [WORDS, written, tokens.get("old", WORDS[::-1])])
    oracle.assert_within_one_rounding({"t": oracle.load(tmp_path / "out")["model.hash.table"]}, {"t": expected}, share=0.02)


def test_a_tensor_that_only_looks_like_one_of_tokens_is_merged_by_number_where_the_recipe_says_so(tmp_path):
    shapes = {"model.hash.table": (20, 3)}
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8), **shapes}, lambda v: {"vocab_size": v}, post=WORDS[::-1])
    with pytest.raises(HomologyError, match=r"hash\.table"):
        api.plan(recipe(*folders, tmp_path / "out", vocab="by-token"))
    made = recipe(*folders, tmp_path / "out", vocab="by-token", vocabulary={"others": ["*hash*"]})
    api.merge(made)
    new, post, old = (oracle.load(folder)["model.hash.table"].double() for folder in folders)
    oracle.assert_within_one_rounding(
        {"t": oracle.load(tmp_path / "out")["model.hash.table"]}, {"t": (new + (post - old)).float()}, share=0.02
    )
    plain = recipe(*folders, tmp_path / "out", vocab="by-token", exclude=["*hash*"])
    assert api.plan(plain)[0].fingerprint != api.plan(made)[0].fingerprint


def test_two_tables_by_token_each_have_their_rows_and_their_field(tmp_path):
    def config(v):
        return {"text_config": {"vocab_size": v + 2, "vocab_size_per_layer_input": v}}

    def shapes(v):
        return {"model.language_model.embed_tokens.weight": (v + 2, 8), "model.language_model.embed_tokens_per_layer.weight": (v, 4)}

    folders = three(tmp_path, shapes, config, post=[*WORDS, "x", "y"], old=WORDS)
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token"))
    assert config_of(tmp_path / "out")["text_config"] == {"vocab_size": 24, "vocab_size_per_layer_input": 22}
    assert oracle.load(tmp_path / "out")["model.language_model.embed_tokens_per_layer.weight"].shape == (22, 4)


def test_the_codes_of_a_talker_are_left_alone_where_the_words_of_the_thinker_move(tmp_path):
    def config(v):
        return {"thinker_config": {"text_config": {"vocab_size": v}}, "talker_config": {"vocab_size": 12, "codec_eos_token_id": 3}}

    def shapes(v):
        return {
            "thinker.model.embed_tokens.weight": (v, 8), "thinker.lm_head.weight": (v, 8), "talker.model.embed_tokens.weight": (12, 8),
            "talker.codec_head.weight": (12, 8),
        }  # fmt: skip

    folders = three(tmp_path, shapes, config)
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token"))
    out = oracle.load(tmp_path / "out")
    new, post, old = map(oracle.load, folders)
    for name in ("talker.model.embed_tokens.weight", "talker.codec_head.weight"):
        want = (new[name].double() + (post[name].double() - old[name].double())).float()
        oracle.assert_within_one_rounding({name: out[name]}, {name: want}, share=0.02)
    expected = by_token(folders, "thinker.lm_head.weight", 0, [WORDS, [*WORDS[::-1], "x", "y"], WORDS[::-1]])
    oracle.assert_within_one_rounding({"head": out["thinker.lm_head.weight"]}, {"head": expected}, share=0.02)
    written = config_of(tmp_path / "out")
    assert written["thinker_config"]["text_config"]["vocab_size"] == 22
    assert written["talker_config"] == {"vocab_size": 12, "codec_eos_token_id": 3}


def test_a_vocabulary_too_small_for_the_words_of_the_tokenizer_is_one_of_codes(tmp_path):
    folders = three(
        tmp_path,
        lambda v: {"embed_text_tokens.weight": (v, 8), "lm_head.weight": (12, 8)},
        lambda v: {"text_vocab_size": v, "vocab_size": 12},
    )
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token"))
    new, post, old = (oracle.load(folder)[HEAD].double() for folder in folders)
    oracle.assert_within_one_rounding({HEAD: oracle.load(tmp_path / "out")[HEAD]}, {HEAD: (new + (post - old)).float()}, share=0.02)
    config = config_of(tmp_path / "out")
    assert (config["text_vocab_size"], config["vocab_size"]) == (22, 12)


def with_chat(root, vocab_size=22):
    """A post that added ChatML behind a base's words, and a base that names its own tokens in several places."""
    chat = [("<|im_start|>", 20), ("<|im_end|>", 21)]
    shapes = {EMBEDDINGS: (22, 8), HEAD: (22, 8)}
    base = {"vocab_size": vocab_size, "eos_token_id": 2, "text_config": {"eos_token_id": 2, "pad_token_id": 0}, "image_token_id": 5}
    own = {"eos_token_id": 21, "text_config": {"eos_token_id": 21, "pad_token_id": None}, "image_token_id": 5}
    new = make(root / "new", 1, shapes, base, generation_config__json={"eos_token_id": 2})
    post = make(root / "post", 2, shapes, base | own, added=chat, generation_config__json={"eos_token_id": [21, 2]})
    return new, post, make(root / "old", 3, shapes, base)


@pytest.mark.parametrize("vocab", ["strict", "pad", "by-token"])
def test_a_conversation_stops_where_the_tokenizer_that_is_written_says(tmp_path, vocab):
    folders = with_chat(tmp_path)
    result = api.merge(recipe(*folders, tmp_path / "out", vocab=vocab))
    config = config_of(tmp_path / "out")
    assert config["eos_token_id"] == config["text_config"]["eos_token_id"] == 21
    assert config["text_config"]["pad_token_id"] == 0
    assert config["image_token_id"] == 5
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [21, 2]
    assert not any("taken from the base: 2" in note for note in result.report["notes"])
    api.merge(recipe(*folders, tmp_path / "base", vocab=vocab, tokenizer_from="base"))
    assert config_of(tmp_path / "base")["eos_token_id"] == 2


def test_ids_of_special_tokens_that_only_the_bases_config_names_follow_their_tokens(tmp_path):
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8)}, lambda v: {"vocab_size": v}, post=WORDS[::-1], old=WORDS[::-1])
    own = {"image_token_id": 3, "vision_config": {"stop_token_ids": [1, 2]}, "eos_token_id": 0, "suppress_tokens": [4]}
    (folders[0] / "config.json").write_text(json.dumps(config_of(folders[0]) | own))
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token"))
    config = config_of(tmp_path / "out")
    assert (config["image_token_id"], config["eos_token_id"]) == (16, 19)
    assert (config["vision_config"]["stop_token_ids"], config["suppress_tokens"]) == ([18, 17], [15])


def test_a_special_token_of_the_config_that_is_not_in_the_tokenizer_written_is_refused_with_a_way_out(tmp_path):
    tokens = {"post": WORDS[::-1][:-1], "old": WORDS[::-1][:-1]}
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8)}, lambda v: {"vocab_size": v}, **tokens)
    (folders[0] / "config.json").write_text(json.dumps(config_of(folders[0]) | {"image_token_id": 0}))
    with pytest.raises(HomologyError, match=r"(?s)'image_token_id' of the base's config.json is the id of 'w0'.*`tokenizer_from: base`"):
        api.plan(recipe(*folders, tmp_path / "out", vocab="by-token"))
    assert [found.subject for found in api.check(recipe(*folders, tmp_path / "out", vocab="by-token")).mismatches] == ["special tokens"]
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token", tokenizer_from="base"))
    assert config_of(tmp_path / "out")["image_token_id"] == 0


def folder_of_words(root, words, added=(), **files):
    """A folder with a tokenizer and no model."""
    root.mkdir()
    for name, content in {"tokenizer.json": tokenizer_json(words, added), **files}.items():
        (root / name.replace("__", ".")).write_text(json.dumps(content))
    return str(root)


@pytest.mark.parametrize("vocab", ["strict", "pad", "by-token"])
def test_the_special_tokens_are_those_that_a_folder_with_nothing_but_a_tokenizer_names(tmp_path, vocab):
    own = {"eos_token_id": 0, "pad_token_id": None, "bos_token_id": 4, "text_config": {"eos_token_id": 0}, "image_token_id": 6}
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8)}, lambda v: {"vocab_size": v, **own}, post=WORDS, old=WORDS)
    words = WORDS[::-1] if vocab == "by-token" else WORDS
    names = {"eos_token": {"content": "w2"}, "pad_token": "w3", "bos_token": None}
    elsewhere = folder_of_words(tmp_path / "words", words, tokenizer_config__json=names)
    api.merge(recipe(*folders, tmp_path / "out", vocab=vocab, tokenizer_from=elsewhere))
    config, place = config_of(tmp_path / "out"), words.index
    assert (config["eos_token_id"], config["text_config"]["eos_token_id"]) == (place("w2"), place("w2"))
    assert (config["pad_token_id"], config["bos_token_id"], config["image_token_id"]) == (place("w3"), place("w4"), place("w6"))


def test_a_folder_with_a_config_and_no_weights_says_its_special_tokens_by_that_config(tmp_path):
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8)}, lambda v: {"vocab_size": v, "eos_token_id": 0}, post=WORDS, old=WORDS)
    files = {"config__json": {"eos_token_id": [5, 6]}, "tokenizer_config__json": {"eos_token": "w7"}}
    elsewhere = folder_of_words(tmp_path / "words", WORDS, **files)
    api.merge(recipe(*folders, tmp_path / "out", tokenizer_from=elsewhere))
    assert config_of(tmp_path / "out")["eos_token_id"] == [5, 6]


def test_the_stop_tokens_of_such_a_folder_are_written_in_both_places(tmp_path):
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8)}, lambda v: {"vocab_size": v, "eos_token_id": 0}, post=WORDS, old=WORDS)
    files = {"generation_config__json": {"eos_token_id": [5, 6]}, "special_tokens_map__json": {"eos_token": "w5"}}
    elsewhere = folder_of_words(tmp_path / "words", WORDS, **files)
    api.merge(recipe(*folders, tmp_path / "out", tokenizer_from=elsewhere))
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config_of(tmp_path / "out")["eos_token_id"] == generation["eos_token_id"] == [5, 6]


@pytest.mark.parametrize("vocab", ["strict", "pad"])
def test_an_id_of_the_base_follows_its_token_where_another_took_its_place_though_ids_of_words_did_not_move(tmp_path, vocab):
    shapes, fields = {EMBEDDINGS: (24, 8)}, {"vocab_size": 24}
    names = {"new": [("<pad>", 20), ("<|reserved_1|>", 21)], "post": [("<tool>", 21), ("<pad>", 20)], "old": []}
    new, post, old = (make(tmp_path / name, seed, shapes, fields, added=added) for seed, (name, added) in enumerate(names.items()))
    (new / "config.json").write_text(json.dumps(config_of(new) | {"pad_token_id": 20, "spare_token_id": 21}))
    with pytest.raises(HomologyError, match=r"(?s)'spare_token_id'.*reserved_1.*`accept: \[spare_token_id\]`"):
        api.plan(recipe(new, post, old, tmp_path / "out", vocab=vocab))
    api.merge(recipe(new, post, old, tmp_path / "out", vocab=vocab, accept=["spare_token_id"]))
    config = config_of(tmp_path / "out")
    assert (config["pad_token_id"], config["spare_token_id"]) == (20, 21)


def test_a_tokenizer_from_elsewhere_is_compared_and_its_remedies_work(tmp_path):
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8)}, lambda v: {"vocab_size": v}, post=WORDS, old=WORDS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer_json([*WORDS[::-1], "x"])))
    for vocab in ("strict", "pad"):
        with pytest.raises(HomologyError, match=r"(?s)1 token has ids beyond the 20 rows.*20 tokens have other ids"):
            api.plan(recipe(*folders, tmp_path / "out", vocab=vocab, tokenizer_from=str(other)))
    (other / "tokenizer.json").write_text(json.dumps(tokenizer_json(WORDS[::-1])))
    with pytest.raises(HomologyError, match="or set `vocab: by-token`"):
        api.plan(recipe(*folders, tmp_path / "out", tokenizer_from=str(other)))
    api.merge(recipe(*folders, tmp_path / "out", vocab="by-token", tokenizer_from=str(other)))
    new, post, old = (oracle.load(folder)[EMBEDDINGS].double() for folder in folders)
    want = (new + (post - old)).flip(0).float()
    oracle.assert_within_one_rounding({EMBEDDINGS: oracle.load(tmp_path / "out")[EMBEDDINGS]}, {EMBEDDINGS: want}, share=0.02)


def test_tokens_that_moved_merge_when_what_the_message_names_is_left_out(tmp_path):
    folders = three(tmp_path, lambda v: {EMBEDDINGS: (v, 8), "final_logits_bias": (1, v)}, lambda v: {"vocab_size": v}, post=WORDS[::-1])
    with pytest.raises(HomologyError, match=r'`exclude: \["final_logits_bias", "model.embed_tokens.weight"\]` and `tokenizer_from: base`'):
        api.plan(recipe(*folders, tmp_path / "out"))
    named = [EMBEDDINGS, "final_logits_bias"]
    api.merge(recipe(*folders, tmp_path / "out", exclude=named, tokenizer_from="base"))
    base = oracle.load(folders[0])
    oracle.assert_same({name: oracle.load(tmp_path / "out")[name] for name in named}, {name: base[name] for name in named})


def test_vocabularies_that_cannot_be_read_and_are_the_same_bytes_merge_by_token_with_what_was_added(tmp_path):
    folders = []
    for seed, (name, added) in enumerate({"new": {}, "post": {"<a>": 20, "<b>": 21}, "old": {}}.items()):
        rows = 20 + len(added)
        folder = make(tmp_path / name, seed, {EMBEDDINGS: (rows, 8)}, {"vocab_size": rows}, None, added_tokens__json=added)
        (folder / "spiece.model").write_bytes(b"a format of its own")
        folders.append(folder)
    for vocab in ("pad", "by-token"):
        api.merge(recipe(*folders, tmp_path / vocab, vocab=vocab))
        out, post = oracle.load(tmp_path / vocab)[EMBEDDINGS], oracle.load(folders[1])[EMBEDDINGS]
        assert torch.equal(out[20:], post[20:])
        assert config_of(tmp_path / vocab)["vocab_size"] == 22


def test_integers_with_an_entry_for_each_token_are_refused_and_can_be_left_out(tmp_path):
    table = torch.arange(40).reshape(20, 2)
    shapes = {EMBEDDINGS: (20, 8), "model.layers.0.mlp.gate.tid2eid": table}
    folders = three(tmp_path, lambda _: shapes, lambda _: {"vocab_size": 20}, post=WORDS[::-1])
    with pytest.raises(HomologyError, match="tid2eid"):
        api.plan(recipe(*folders, tmp_path / "out", vocab="by-token"))
    with pytest.raises(HomologyError, match="holds integers with an entry for each token"):
        api.plan(recipe(*folders, tmp_path / "out", vocab="by-token", vocabulary={"tensors": ["*tid2eid"]}))
    api.merge(recipe(*folders, tmp_path / "out", exclude=["*tid2eid", EMBEDDINGS], tokenizer_from="base"))


def test_columns_of_too_many_pieces_are_refused_with_the_way_out(tmp_path):
    folders = three(
        tmp_path, lambda v: {EMBEDDINGS: (v, 8), "cls.predictions.dense.weight": (MOST_PARTS // 3, v)}, lambda v: {"vocab_size": v}
    )
    with pytest.raises(UsageError, match=r"a column for each token.*tokenizer_from: base"):
        api.plan(recipe(*folders, tmp_path / "out", vocab="by-token"))


@pytest.mark.parametrize("vocab", ["pad", "by-token"])
def test_a_token_that_a_post_has_where_the_others_have_padding_keeps_its_row_whole(tmp_path, vocab):
    """All have 24 rows: 20 words, and padding, in which the post and the new base each have made tokens of their own."""
    shapes, names = {EMBEDDINGS: (24, 8), HEAD: (24, 8)}, {"new": [("<n>", 22)], "post": [("<a>", 20), ("<n>", 22)], "old": []}
    folders = [make(tmp_path / name, seed, shapes, {"vocab_size": 24}, added=added) for seed, (name, added) in enumerate(names.items())]
    result = api.merge(recipe(*folders, tmp_path / "out", vocab=vocab))
    out, (new, post, old) = oracle.load(tmp_path / "out"), map(oracle.load, folders)
    for name in (EMBEDDINGS, HEAD):
        want = (new[name].double() + (post[name].double() - old[name].double())).float()
        want[20] = post[name][20]
        want[22] = (post if vocab == "pad" else new)[name][22]
        oracle.assert_within_one_rounding({name: out[name]}, {name: want}, share=0.02)
        assert torch.equal(out[name][20], post[name][20])
    assert vocab != "pad" or any("taken whole" in note for note in result.report["notes"])
    assert api.verify(str(tmp_path / "out"), deep=True, recompute=1.0)["ok"]


def test_rows_behind_the_vocabulary_that_are_padding_keep_their_numbers_and_come_from_the_base_where_only_it_has_them(tmp_path):
    rows, counts = {"new": 32, "post": 26, "old": 24}, {"new": 20, "post": 22, "old": 20}
    words = [*WORDS, "x", "y"]
    folders = [
        make(tmp_path / name, seed, {EMBEDDINGS: (rows[name], 8)}, {"vocab_size": rows[name]}, words[: counts[name]])
        for seed, name in enumerate(rows)
    ]
    report = api.check(recipe(*folders, tmp_path / "out", vocab="pad"))
    assert dict(report.vocabulary)["pad"] == f"22 of 32 rows merged, 6 whole from {folders[0]}, 4 whole from {folders[1]}"
    api.merge(recipe(*folders, tmp_path / "out", vocab="pad"))
    out, (new, post, old) = oracle.load(tmp_path / "out")[EMBEDDINGS], [oracle.load(folder)[EMBEDDINGS] for folder in folders]
    merged = (new[:24].double() + (post[:24].double() - old.double())).float()
    merged[20:22] = post[20:22]
    oracle.assert_within_one_rounding({"t": out}, {"t": torch.cat([merged, post[24:26], new[26:]])}, share=0.02)
    assert config_of(tmp_path / "out")["vocab_size"] == 32


@pytest.mark.parametrize("vocab", ["pad", "by-token"])
def test_a_row_behind_the_vocabulary_that_every_model_has_stays_behind_it(tmp_path, vocab):
    """As Moshi, whose table of words has one more for what comes before the first."""
    folders = three(
        tmp_path, lambda v: {EMBEDDINGS: (v + 1, 8), HEAD: (v, 8)}, lambda v: {"vocab_size": v}, post=[*WORDS, "x", "y"], old=WORDS
    )
    api.merge(recipe(*folders, tmp_path / "out", vocab=vocab))
    out, models = oracle.load(tmp_path / "out"), [oracle.load(folder)[EMBEDDINGS] for folder in folders]
    assert (len(out[EMBEDDINGS]), len(out[HEAD]), config_of(tmp_path / "out")["vocab_size"]) == (23, 22, 22)
    new, post, old = (model[-1].double() for model in models)
    oracle.assert_within_one_rounding({"last": out[EMBEDDINGS][-1]}, {"last": (new + (post - old)).float()}, share=0.2)
    assert torch.equal(out[EMBEDDINGS][20:22], models[1][20:22])
