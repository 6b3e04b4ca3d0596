"""Which models may be merged.

Each difference that would make a merge wrong is found, said once and comes with a way out; no other is held against them.
"""

import json

import pytest
import torch
from safetensors.torch import save

from paramdelta_dist.checkpoint import compare, open_checkpoint
from paramdelta_dist.checkpoint.tokenizer import Tokenizers
from paramdelta_dist.errors import HomologyError
from paramdelta_dist.storage import StorageConfig
from tests.raw_checkpoints import folder

STORAGE = StorageConfig()
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_hidden_layers": 1, "tie_word_embeddings": False, "max_position_embeddings": 2048,
    "rope_scaling": None, "torch_dtype": "float32", "transformers_version": "4.0",
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.up_proj.weight": (12, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}
VOCAB = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
SPECIAL = {"<s>": 6, "</s>": 7}


def tokenizer_json(vocab=VOCAB, special=SPECIAL, kind="BPE"):
    added = [{"id": number, "content": token, "special": True} for token, number in special.items()]
    return {"version": "1.0", "added_tokens": added, "model": {"type": kind, "vocab": vocab, "merges": []}}


@pytest.fixture
def model(tmp_path):
    """Makes a checkpoint of one file; keyword arguments change the config, `drop` takes fields out of it."""

    def make(name, shapes=SHAPES, files=None, drop=(), dtype=torch.float32, **config):
        content = save({tensor: torch.zeros(shape, dtype=dtype) for tensor, shape in shapes.items()}, metadata={"format": "pt"})
        fields = {key: value for key, value in {**CONFIG, **config}.items() if key not in drop}
        path = folder(tmp_path / name, {"model.safetensors": content, **(files or {})}, config=fields)
        return open_checkpoint(str(path), STORAGE)

    return make


def found(base, *others):
    """(subject, problem, remedy) of all mismatches, after checking that the report holds together."""
    report = compare(base, others, STORAGE)
    assert report.base == base.url
    assert report.models == tuple(other.url for other in others)
    assert {mismatch.model for mismatch in report.mismatches} <= {report.base, *report.models}
    if report.mismatches:
        with pytest.raises(HomologyError) as refusal:
            report.require()
        assert refusal.value.exit_code == 3
    else:
        report.require()
    return [(mismatch.subject, mismatch.problem, mismatch.remedy) for mismatch in report.mismatches]


def the_only(base, other):
    [mismatch] = found(base, other)
    return mismatch


def test_identical_models_fit(model):
    base, other = model("base", files={"tokenizer.json": tokenizer_json()}), model("other", files={"tokenizer.json": tokenizer_json()})
    report = compare(base, [other], STORAGE)
    assert report.mismatches == ()
    assert report.notes == ()


def test_dtype_and_layout_of_files_do_not_matter(model):
    reversed_order = dict(reversed(SHAPES.items()))
    assert (
        found(model("base"), model("other", reversed_order, dtype=torch.bfloat16, torch_dtype="bfloat16", transformers_version="5.0")) == []
    )


def test_another_shape_is_refused(model):
    shapes = SHAPES | {"model.layers.0.mlp.up_proj.weight": (16, 4)}
    subject, problem, remedy = the_only(model("base"), model("other", shapes))
    assert subject == "shapes"
    assert "model.layers.0.mlp.up_proj.weight" in problem
    assert "[16, 4]" in problem
    assert "[12, 4]" in problem
    assert "size or architecture" in remedy


def test_a_transposed_tensor_is_refused(model):
    shapes = SHAPES | {"model.layers.0.mlp.up_proj.weight": (4, 12)}
    assert the_only(model("base"), model("other", shapes))[0] == "shapes"


def test_a_scalar_and_a_vector_of_one_are_not_the_same(model):
    base, other = model("base", SHAPES | {"scale": ()}), model("other", SHAPES | {"scale": (1,)})
    assert the_only(base, other)[:2] == ("shapes", "'scale' is [1], the base has []")


def test_another_vocabulary_size_is_refused_with_the_advice_to_resize(model):
    shapes = SHAPES | {"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}
    differences = found(model("base"), model("other", shapes, vocab_size=9))
    assert [subject for subject, *_ in differences] == ["config", "shapes", "shapes"]
    assert differences[0][1] == "'vocab_size' is 9, the base has 8"
    assert all("resize the embeddings" in remedy for subject, _, remedy in differences if subject == "shapes")


def test_a_missing_tensor_is_refused(model):
    shapes = {name: shape for name, shape in SHAPES.items() if name != "model.norm.weight"}
    assert the_only(model("base"), model("other", shapes))[:2] == ("tensors", "'model.norm.weight' is missing")


def test_an_extra_tensor_is_refused(model):
    assert the_only(model("base"), model("other", SHAPES | {"extra.bias": (4,)}))[:2] == ("tensors", "'extra.bias' is not in the base")


def test_buffers_that_follow_from_the_config_may_be_missing_or_extra(model):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}
    assert found(model("base"), model("other", SHAPES | buffer)) == []
    assert found(model("base2", SHAPES | buffer), model("other2")) == []


TIED = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}


def test_a_tied_and_an_untied_model_are_refused_with_the_advice_to_write_the_head_out(model):
    tied, untied = model("tied", TIED, tie_word_embeddings=True), model("untied")
    for base, other in ((tied, untied), (untied, tied)):
        differences = found(base, other)
        assert [subject for subject, *_ in differences] == ["config", "tensors"]
        assert all("lm_head.weight" in remedy for *_, remedy in differences)


def test_tied_models_fit_however_they_say_so(model):
    silent = model("silent", TIED, drop=["tie_word_embeddings"])
    said = model("said", TIED, tie_word_embeddings=True)
    assert silent.tied_embeddings
    assert said.tied_embeddings
    assert found(silent, said) == []
    assert found(said, silent) == []


def test_the_flag_alone_is_enough_to_refuse(model):
    """Both have a head on disk, but a loader of the one that says it is tied would not look at it."""
    subject, problem, _ = the_only(model("base"), model("other", tie_word_embeddings=True))
    assert (subject, problem) == ("config", "'tie_word_embeddings' is True, the base has False")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 4), ("num_key_value_heads", 1), ("architectures", ["MistralForCausalLM"]), ("model_type", "mistral"),
        ("num_hidden_layers", 2), ("hidden_size", 5),
    ],
)  # fmt: skip
def test_a_field_that_changes_what_a_row_means_is_refused_though_shapes_agree(model, field, value):
    subject, problem, remedy = the_only(model("base"), model("other", **{field: value}))
    assert subject == "config"
    assert problem == f"{field!r} is {value!r}, the base has {CONFIG[field]!r}"
    assert remedy


def test_fields_in_a_nested_section_count(model):
    base, other = model("base", text_config={"num_attention_heads": 2}), model("other", text_config={"num_attention_heads": 4})
    assert the_only(base, other)[1] == "'text_config.num_attention_heads' is 4, the base has 2"


@pytest.mark.parametrize(
    ("field", "value"),
    [("rope_scaling", {"factor": 8.0, "rope_type": "llama3"}), ("max_position_embeddings", 131072), ("eos_token_id", [7])],
)
def test_a_field_that_leaves_weights_their_meaning_is_noted_and_taken_from_the_base(model, field, value):
    base, other = model("base", **{field: value}), model("other")
    report = compare(base, [other], STORAGE)
    assert report.mismatches == ()
    [note] = report.notes
    assert field in note
    assert f"taken from the base: {value!r}" in note


def test_a_field_left_at_its_default_is_not_held_against_a_model(model):
    assert found(model("base"), model("other", drop=["num_key_value_heads"])) == []


def test_models_without_a_config_are_compared_by_their_tensors(model):
    bare = model("bare")
    bare = type(bare)(bare.url, bare.files, bare.tensors, None, bare.side_files, bare.orphans)
    assert found(model("base"), bare) == []
    assert found(bare, model("other")) == []
    assert the_only(bare, model("more", SHAPES | {"x": (1,)}))[0] == "tensors"


def test_a_lora_adapter_saved_as_a_model_is_refused_with_the_advice_to_merge_it(model):
    shapes = {f"base_model.model.{name}.lora_A.weight": (2, 4) for name in ("q_proj", "v_proj")}
    differences = found(model("base"), model("adapter", shapes))
    assert any("merge_and_unload" in remedy for *_, remedy in differences)


@pytest.mark.parametrize("suffix", [".qweight", ".weight_scale_inv", ".weight_scale", ".scales", ".weight.absmax"])
def test_a_quantised_model_is_refused_with_the_advice_to_dequantise_it(model, suffix):
    shapes = SHAPES | {f"model.layers.0.mlp.up_proj{suffix}": (1, 1)}
    base, other = model("base"), model("other", shapes)
    assert "dequantise" in the_only(base, other)[2]
    assert "dequantise" in the_only(other, base)[2]


def with_tokenizer(model, name, **changes):
    return model(name, files={"tokenizer.json": tokenizer_json(**changes)})


@pytest.mark.parametrize(
    ("special", "said"),
    [
        ({"<s>": 6, "<|eot|>": 7}, "1 id is of another token than elsewhere, such as '</s>' and '<|eot|>'"),
        ({"<s>": 7, "</s>": 6}, "2 tokens have other ids, such as '<s>', '</s>'"),
        ({"<s>": 6, "</s>": 8}, "1 token has other ids, such as '</s>'"),
    ],
    ids=["renamed", "swapped", "moved to a free one"],
)
def test_special_tokens_that_have_other_ids_are_refused_as_any_token(model, special, said):
    base, other = with_tokenizer(model, "base"), with_tokenizer(model, "other", special=special)
    for one, two in ((base, other), (other, base)):
        subject, problem, remedy = the_only(one, two)
        assert subject == "tokenizer"
        assert problem.startswith(said.partition(", such as")[0])
        assert "`vocab: by-token`" in remedy
    assert the_only(base, other)[1] == said


@pytest.mark.parametrize(
    ("special", "shown"),
    [
        ({"<s>": 6, "</s>": 7, "<pad>": 8}, ["<pad>"]),
        ({}, ["<s>"]),
        ({"<s>": 6, "<unused0>": 7, "<|reserved_special_token_1|>": 8}, ["</s>"]),
    ],
    ids=["added", "none", "spare"],
)
def test_special_tokens_that_only_one_model_has_are_noted_and_not_refused(model, special, shown):
    report = compare(with_tokenizer(model, "base"), [with_tokenizer(model, "other", special=special)], STORAGE)
    assert report.mismatches == ()
    [note] = report.notes
    assert "not in both" in note
    assert all(repr(token) in note for token in shown)


def test_spare_tokens_may_be_numbered_in_another_way_and_be_put_to_use(model):
    old = {"<s>": 6, "<|reserved_special_token_0|>": 7, "<|reserved_special_token_1|>": 8, "<|eot_id|>": 9}
    new = {"<s>": 6, "<|finetune_right_pad_id|>": 7, "<|reserved_special_token_0|>": 8, "<|eot_id|>": 9}
    base, other = with_tokenizer(model, "base", special=new), with_tokenizer(model, "other", special=old)
    report = compare(base, [other], STORAGE)
    assert report.mismatches == ()
    assert "1 token is not in both" in report.notes[0]


def test_a_token_that_two_posts_added_at_different_ids_is_refused_though_the_base_has_neither(model):
    base = with_tokenizer(model, "base")
    one, two = (with_tokenizer(model, f"post{number}", special={"<s>": 6, "</s>": 7, "<|im_end|>": number}) for number in (8, 9))
    [mismatch] = compare(base, [one, two], STORAGE).mismatches
    assert (mismatch.model, mismatch.problem) == (two.url, "1 token has other ids, such as '<|im_end|>'")
    third = with_tokenizer(model, "post", special={"<s>": 6, "</s>": 7, "<|eom|>": 8})
    [mismatch] = compare(base, [one, third], STORAGE).mismatches
    assert "another token than elsewhere, such as '<|im_end|>' and '<|eom|>'" in mismatch.problem


def test_an_ordinary_token_with_another_id_is_refused(model):
    vocab = VOCAB | {"ab": 4, "bc": 3}
    subject, problem, remedy = the_only(with_tokenizer(model, "base"), with_tokenizer(model, "other", vocab=vocab))
    assert subject == "tokenizer"
    assert problem == "2 tokens have other ids, such as 'ab', 'bc'"
    assert "same tokenizer" in remedy


def test_missing_and_extra_ordinary_tokens_are_refused(model):
    fewer = {token: number for token, number in VOCAB.items() if token != "abc"}
    base, other = with_tokenizer(model, "base"), with_tokenizer(model, "other", vocab=fewer)
    assert the_only(base, other)[1] == "1 token has no id here, such as 'abc'"
    assert the_only(other, base)[1] == "1 token has no id in the base, such as 'abc'"


def test_a_token_that_became_special_keeps_its_meaning_by_note(model):
    ordinary = VOCAB | {"<tool>": 6}
    base = with_tokenizer(model, "base", vocab=ordinary, special={})
    other = with_tokenizer(model, "other", vocab=VOCAB, special={"<tool>": 6})
    assert found(base, other) == []


def test_a_tokenizer_in_other_bytes_with_the_same_ids_is_the_same(model):
    pretty = json.dumps(tokenizer_json(), indent=4, sort_keys=True)
    report = compare(with_tokenizer(model, "base"), [model("other", files={"tokenizer.json": pretty})], STORAGE)
    assert (report.mismatches, report.notes) == ((), ())


def test_a_model_without_a_tokenizer_is_noted(model):
    base, bare = with_tokenizer(model, "base"), model("bare")
    for one, two in ((base, bare), (bare, base)):
        report = compare(one, [two], STORAGE)
        assert report.mismatches == ()
        assert report.notes == (f"{bare.url} has no tokenizer, so its vocabulary could not be compared",)
    assert compare(bare, [model("bare2")], STORAGE).notes == ()


UNIGRAM = [["a", -1.0], ["b", -2.0], ["c", -2.5], ["ab", -3.0], ["bc", -3.5], ["abc", -4.0]]


def ids(checkpoint):
    tokenizers = Tokenizers(STORAGE)
    vocabulary = tokenizers.vocabulary(tokenizers.of(checkpoint.url, checkpoint.side_files))
    return vocabulary.ids


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": tokenizer_json(special={})},
        {"tokenizer.json": {"model": {"vocab": VOCAB}}},
        {"tokenizer.json": tokenizer_json(kind="WordPiece") | {"added_tokens": None}},
        {"tokenizer.json": tokenizer_json(UNIGRAM, kind="Unigram")},
        {"vocab.json": VOCAB, "merges.txt": "a b\nb c\nab c\n"},
        {"vocab.txt": "a\nb\nc\nab\nbc\nabc\n"},
        {"vocab.txt": "a\nb\nc\nab\nbc\nabc"},
        {"vocab.txt": "a\r\nb\r\nc\r\nab\r\nbc\r\nabc\r\n"},
    ],
    ids=["BPE", "bare", "WordPiece", "Unigram", "vocab.json", "vocab.txt", "no last newline", "Windows"],
)
def test_every_form_of_a_vocabulary_gives_the_same_ids(model, files):
    other = model("other", files=files)
    assert ids(other) == VOCAB
    assert found(with_tokenizer(model, "base"), other) == []


def test_a_line_of_a_vocabulary_may_hold_any_character_but_a_newline(model):
    tokens = ["a", "\x0b", "\x1c", "\u2028", "\x85", " b ", "c"]
    assert ids(model("odd", files={"vocab.txt": "\n".join(tokens) + "\n"})) == {token: number for number, token in enumerate(tokens)}


def test_a_moved_token_is_found_across_forms(model):
    moved = [UNIGRAM[1], UNIGRAM[0], *UNIGRAM[2:]]
    base = model("base", files={"tokenizer.json": tokenizer_json(moved, kind="Unigram")})
    assert the_only(base, model("other", files={"vocab.json": VOCAB}))[1] == "2 tokens have other ids, such as 'b', 'a'"


def test_binary_tokenizers_are_compared_by_their_bytes(model):
    base = model("base", files={"tokenizer.model": b"\x0a\x05one"})
    assert found(base, model("same", files={"tokenizer.model": b"\x0a\x05one"})) == []
    subject, problem, _ = the_only(base, model("other", files={"tokenizer.model": b"\x0a\x05two"}))
    assert subject == "tokenizer"
    assert problem.startswith("tokenizer.model differs from the base's and cannot be read")


@pytest.mark.parametrize("name", ["spiece.model", "tekken.json", "sentencepiece.bpe.model", "tokenizer.model.v3"])
def test_vocabularies_of_formats_that_are_not_read_are_compared_by_their_bytes(model, name):
    base = model("base", files={name: b"one", "tokenizer_config.json": {"chat_template": "a"}})
    assert found(base, model("same", files={name: b"one", "tokenizer_config.json": {"chat_template": "b"}})) == []
    assert the_only(base, model("other", files={name: b"two"}))[1] == f"{name} differs from the base's and cannot be read"


@pytest.mark.parametrize("name", ["qwen.tiktoken", "source.spm", "bpe.codes", "tokenizer/vocabulary.bin"])
def test_what_may_be_a_vocabulary_is_noted_where_its_bytes_differ(model, name):
    base = model("base", files={name: b"one"})
    assert compare(base, [model("same", files={name: b"one"})], STORAGE).notes == ()
    report = compare(base, [model("other", files={name: b"two"})], STORAGE)
    assert report.mismatches == ()
    assert f"{name} is not the base's and cannot be read" in report.notes[0]


def test_tokens_added_beside_a_vocabulary_count_whether_that_can_be_read_or_not(model):
    def folder(name, main, content, added):
        return model(name, files={main: content, **added})

    for main in ("tokenizer.model", "spiece.model", "vocab.json"):
        content = {"a": 0, "b": 1} if main == "vocab.json" else b"\x0a\x03\x0a\x01a" if main == "tokenizer.model" else b"x"
        base = folder(f"base-{main}", main, content, {"added_tokens.json": {"<|im_start|>": 6, "<|im_end|>": 7}})
        same = {"tokenizer_config.json": {"added_tokens_decoder": {"6": {"content": "<|im_start|>"}, "7": {"content": "<|im_end|>"}}}}
        assert found(base, folder(f"same-{main}", main, content, same)) == []
        moved = folder(f"moved-{main}", main, content, {"added_tokens.json": {"<|im_start|>": 7, "<|im_end|>": 6}})
        assert the_only(base, moved)[1].startswith("2 tokens have other ids")


def test_a_binary_and_a_readable_tokenizer_are_noted_as_not_comparable(model):
    base, other = model("base", files={"tokenizer.model": b"\x0a\x05one"}), with_tokenizer(model, "other")
    report = compare(base, [other], STORAGE)
    assert report.mismatches == ()
    assert "could not be compared" in report.notes[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", ""),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "null"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"vocab": ' + "[" * 100_000),
        ("tokenizer.json", {"model": None}),
        ("tokenizer.json", {"model": {"vocab": None}}),
        ("tokenizer.json", {"model": {"vocab": "abc"}}),
        ("tokenizer.json", {"model": {"vocab": {"a": "0"}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": 1.5}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": True}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": -1}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": [[[]]]}}}),
        ("tokenizer.json", '{"model": {"vocab": {"a": Infinity}}}'),
        ("tokenizer.json", {"model": {"vocab": [[]]}}),
        ("tokenizer.json", {"model": {"vocab": [5]}}),
        ("tokenizer.json", {"model": {"vocab": [[5, -1.0]]}}),
        ("tokenizer.json", {"model": {"vocab": [[["a"], -1.0]]}}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": 5}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": ["<s>"]}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": "x", "content": "<s>"}]}),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": 1, "content": ["<s>"]}]}),
        ("vocab.json", "[]"),
        ("vocab.json", {"a": None}),
        ("vocab.txt", b"a\n\xff\n"),
    ],
    ids=range(28),
)
def test_a_tokenizer_that_cannot_be_read_is_compared_by_its_bytes_and_named_with_the_reason(model, name, content):
    broken, again = model("broken", files={name: content}), model("again", files={name: content})
    assert found(broken, again) == []
    report = compare(with_tokenizer(model, "base"), [broken], STORAGE)
    [said] = [*(mismatch.problem for mismatch in report.mismatches), *report.notes]
    assert bool(report.mismatches) == (name == "tokenizer.json")
    assert "cannot be read" in said or "could not be compared" in said
    assert f"{name}: " in said
    assert len(said) < 1000


def test_all_differences_of_all_models_are_in_one_report(model):
    base = with_tokenizer(model, "base")
    one = with_tokenizer(model, "one", vocab=VOCAB | {"new": 9})
    two = model("two", SHAPES | {"model.norm.weight": (5,), "extra": (1,)}, num_attention_heads=4)
    report = compare(base, [one, two], STORAGE)
    assert [(m.model, m.subject) for m in report.mismatches] == [
        (two.url, "config"), (two.url, "shapes"), (two.url, "tensors"), (one.url, "tokenizer"),
    ]  # fmt: skip
    with pytest.raises(HomologyError, match="4 differences") as refusal:
        report.require()
    for mismatch in report.mismatches:
        assert mismatch.problem in str(refusal.value)
        assert mismatch.remedy in str(refusal.value)


@pytest.mark.parametrize(("count", "rest"), [(1, None), (20, None), (21, "… and 1 more"), (500, "… and 480 more")])
def test_the_message_shows_at_most_twenty_differences(model, count, rest):
    base, other = model("base"), model("other", SHAPES | {f"extra.{number}": (1,) for number in range(count)})
    report = compare(base, [other], STORAGE)
    assert len(report.mismatches) == count
    with pytest.raises(HomologyError) as refusal:
        report.require()
    message = str(refusal.value)
    assert message.count("is not in the base") == min(count, 20)
    assert ("more" in message) == (rest is not None)
    assert rest is None or message.endswith(rest)


def test_names_from_a_strangers_file_cannot_speak_to_the_terminal(model):
    evil = "\x1b[2J\r" + "x" * 5000
    tokenizer = tokenizer_json(VOCAB | {evil: 9}, {evil + "s": 8})
    config = {evil: 1, evil + "_config": {"num_attention_heads": evil}}
    other = model("other", SHAPES | {evil: (1,)}, files={"tokenizer.json": tokenizer}, **config)
    base = model("base", files={"tokenizer.json": tokenizer_json()}, **{evil + "_config": {"num_attention_heads": 1}})
    report = compare(base, [other], STORAGE)
    assert [mismatch.subject for mismatch in report.mismatches] == ["config", "tensors", "tokenizer"]
    assert len(report.notes) == 2
    for text in [mismatch.problem for mismatch in report.mismatches] + list(report.notes):
        assert text.isprintable()
        assert len(text) < 1500
