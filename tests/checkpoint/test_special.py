"""Ids of tokens in configs as the library's model classes have them: which follow the tokenizer, which are codes, which are asked about."""

import json
from functools import cache

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from paramdelta_dist.checkpoint.special import TokensMoved, special_ids
from paramdelta_dist.checkpoint.tokenizer import Vocabulary
from paramdelta_dist.checkpoint.written import Written

MANY, BY = 200_100, 7
NOBODY = Written("there", None, {}, {})
ANY = range(1 << 40)
"""Sizes of tensors, where every field that counts a vocabulary is to have one."""


@cache
def moved(count=MANY):
    """A vocabulary, and one that has every token of it seven numbers further on."""
    ids = {f"t{number}": number for number in range(count)}
    return Vocabulary("a", ids, {}), Vocabulary("b", {token: number + BY for token, number in ids.items()}, {})


def found(config, *, pair=None, written=NOBODY, accept=(), sizes=ANY):
    one, other = pair or moved()
    return special_ids(config, sizes, written, TokensMoved(lambda: (one, other), lambda: other), accept.__contains__)


@cache
def text_of(name):
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no {name} yet")
    return CONFIG_MAPPING[name]().to_json_string(use_diff=False)


def of_library(name, **more):
    return {**json.loads(text_of(name)), **more}


def at(config, name):
    for part in name.split("."):
        config = config[part]
    return config


FOLLOW = {
    "qwen2_5_omni": (
        "talker_config.audio_token_index", "talker_config.vision_start_token_id", "talker_config.tts_text_pad_token_id",
        "talker_config.tts_text_start_token_id", "thinker_config.image_token_index", "thinker_config.user_token_id",
    ),
    "qwen3_omni_moe": (
        "tts_pad_token_id", "tts_bos_token_id", "im_start_token_id", "assistant_token_id", "talker_config.image_token_id",
        "talker_config.vision_start_token_id", "thinker_config.audio_token_id",
    ),
    "phi4_multimodal": ("vision_config.image_token_id", "audio_config.audio_token_id", "bos_token_id"),
    "qwen2_vl": ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    "idefics3": ("image_token_id", "text_config.eos_token_id"),
    "whisper": ("decoder_start_token_id", "eos_token_id", "pad_token_id"),
    "csm": ("audio_token_id", "audio_eos_token_id", "bos_token_id"),
    "higgs_audio_v2": ("audio_bos_token_id", "audio_delay_token_id", "eos_token_id"),
    "hunyuan_vl": ("im_start_id", "im_end_id", "im_newline_id", "image_token_id", "text_config.eod_token_id"),
    "xlm": ("unk_index", "mask_index"),
}  # fmt: skip
STAY = {
    "qwen2_5_omni": ("talker_config.tts_codec_start_token_id", "talker_config.tts_codec_mask_token_id"),
    "qwen3_omni_moe": ("talker_config.codec_eos_token_id", "talker_config.codec_bos_id", "talker_config.codec_think_bos_id"),
    "csm": ("codebook_eos_token_id", "codebook_pad_token_id"),
    "higgs_audio_v2": ("audio_stream_bos_id", "audio_stream_eos_id"),
    "musicgen": ("decoder.bos_token_id", "decoder.pad_token_id"),
    "seamless_m4t": ("t2u_eos_token_id", "t2u_pad_token_id"),
    "instructblip": ("qformer_config.pad_token_id",),
}  # fmt: skip
ASKED = {
    "kyutai_speech_to_text": ("audio_bos_token_id",),
    "glm_image": ("image_start_token_id", "image_end_token_id"),
    "gemma3n": ("vision_config.vocab_offset",),
    "apertus1p5": ("image_token_offset",),
}


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in FOLLOW.items() for name in names])
def test_ids_of_tokens_follow_them_wherever_a_config_has_them(model, name):
    config = of_library(model)
    value = at(config, name)
    assert found(config).changes[name] == value + BY


def test_a_vocabulary_of_a_tower_that_no_tensor_has_is_no_reason_to_ask():
    """Every LLaVA says that its tower of pictures has 32,000 words."""
    config = of_library("llava")
    assert config["vision_config"]["vocab_size"] == config["image_token_index"] == 32_000
    assert found(config, sizes={32_064, 4096}).changes["image_token_index"] == 32_000 + BY


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in STAY.items() for name in names])
def test_numbers_of_codes_stay_where_tokens_move(model, name):
    config = of_library(model)
    assert at(config, name) is not None
    ids = found(config, pair=moved(32_000))
    assert name not in ids.changes
    assert not any(name in problem for problem, _ in ids.problems)


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in ASKED.items() for name in names])
def test_a_number_that_may_be_a_code_or_a_token_is_asked_about_and_the_answer_keeps_it(model, name):
    config = of_library(model)
    ids = found(config, pair=moved(300_000))
    [remedy] = [remedy for problem, remedy in ids.problems if f"'{name}'" in problem]
    assert f"`accept: [{name}]`" in remedy
    answered = found(config, pair=moved(300_000), accept=(name,))
    assert name not in answered.changes
    assert not any(f"'{name}'" in problem for problem, _ in answered.problems)


def test_lists_pairs_and_tables_of_ids_have_their_numbers_put_right():
    config = of_library(
        "whisper",
        suppress_tokens=[1, 2, 7],
        begin_suppress_tokens=[220, 50256],
        forced_decoder_ids=[[1, None], [2, 50359]],
        bad_words_ids=[[5, 6], [9]],
        vocabulary_map={"<image>": 11, "<boi>": 12},
        text_config={"lang_to_id": {"<|en|>": 50259}},
    )
    changes = found(config).changes
    assert changes["suppress_tokens"] == [8, 9, 14]
    assert changes["begin_suppress_tokens"] == [227, 50263]
    assert changes["forced_decoder_ids"] == [[1, None], [2, 50366]]
    assert changes["bad_words_ids"] == [[12, 13], [16]]
    assert changes["vocabulary_map"] == {"<image>": 18, "<boi>": 19}
    assert changes["text_config.lang_to_id"] == {"<|en|>": 50266}


def test_what_is_never_made_is_left_out_where_its_token_is_gone_and_what_is_forced_is_refused():
    one, other = Vocabulary("a", {"x": 0, "y": 1, "z": 2}, {}), Vocabulary("b", {"z": 0, "q": 1}, {})
    ids = found({"suppress_tokens": [0, 2], "forced_decoder_ids": [[1, 1]]}, pair=(one, other))
    assert ids.changes == {"suppress_tokens": [0]}
    [(problem, _)] = ids.problems
    assert "'forced_decoder_ids'" in problem
    assert "'y'" in problem


def test_an_offset_stays_where_no_token_behind_it_moves():
    one = Vocabulary("a", {"x": 0, "y": 1}, {"<i>": 5000})
    other = Vocabulary("b", {"y": 0, "x": 1}, {"<i>": 5000})
    assert found({"vision_config": {"vocab_offset": 5000}}, pair=(one, other)) == ({}, (), ())


def test_a_field_of_no_known_name_with_the_number_of_an_added_token_that_moves_is_asked_about():
    one, other = Vocabulary("a", {"x": 0}, {"<i>": 5000}), Vocabulary("b", {"x": 0}, {"<i>": 6000})
    ids = found({"special_marker_id": 5000, "num_image_tokens": 5000, "max_length": 5000, "layer_id": 3}, pair=(one, other))
    assert [problem.partition("'")[2].partition("'")[0] for problem, _ in ids.problems] == ["special_marker_id"]
    same = Written("there", {"special_marker_id": 5000}, {}, {})
    assert not found({"special_marker_id": 5000}, pair=(one, other), written=same).problems


def test_a_pad_that_is_gone_is_left_out_and_said_and_an_end_that_is_gone_is_refused():
    one, other = Vocabulary("a", {"x": 0}, {"<pad>": 1, "</s>": 2}), Vocabulary("b", {"x": 0}, {})
    ids = found({"pad_token_id": 1}, pair=(one, other))
    assert ids.changes == {"pad_token_id": None}
    assert "'<pad>'" in ids.notes[0]
    assert "tokenizer_from: base" in found({"eos_token_id": 2}, pair=(one, other)).problems[0][1]
    assert found({"eos_token_id": [0, 2]}, pair=(one, other)).changes == {"eos_token_id": [0]}


def test_a_number_without_a_token_that_becomes_the_number_of_one_is_no_padding_any_more():
    one, other = Vocabulary("a", {"x": 0}, {}), Vocabulary("b", {"x": 0, "y": 3}, {})
    assert found({"pad_token_id": 3}, pair=(one, other)).changes == {"pad_token_id": None}
    assert found({"image_token_id": 3}, pair=(one, other)).problems
    assert found({"image_token_id": 4}, pair=(one, other)) == ({}, (), ())


NAMES = {"eos": "</s>", "pad": "<pad>"}
ADDED = Vocabulary("b", {"x": 0}, {"<pad>": 1, "</s>": 2, "<end>": 3})


def named(config, generation=None, **names):
    written = Written("there", None, generation or {}, names)
    return special_ids(config, ANY, written, TokensMoved(lambda: None, lambda: ADDED), lambda _: False)


def test_a_folder_with_nothing_but_a_tokenizer_names_what_ends_and_fills_a_text():
    assert named({"eos_token_id": 0, "pad_token_id": None}, **NAMES).changes == {"eos_token_id": 2, "pad_token_id": 1}
    assert named({}, **NAMES).changes == {"eos_token_id": 2, "pad_token_id": 1}
    inner = {"text_config": {"eos_token_id": 0}, "vision_config": {"eos_token_id": 0}}
    assert named(inner, eos="</s>").changes == {"text_config.eos_token_id": 2}


def test_several_ends_of_a_text_are_those_of_generation_config_or_those_of_the_base_among_which_the_one_named_is():
    assert named({"eos_token_id": 0}, {"eos_token_id": [2, 3]}, **NAMES).changes["eos_token_id"] == [2, 3]
    assert named({"eos_token_id": [2, 3]}, eos="</s>").changes == {}
    assert named({"eos_token_id": [0, 3]}, eos="</s>").changes == {"eos_token_id": 2}


def test_a_named_token_without_an_id_is_said_and_an_end_without_one_is_refused():
    ids = named({"pad_token_id": 1, "eos_token_id": 2}, pad="<nowhere>", eos="</s>")
    assert ids.changes == {}
    assert "pad_token '<nowhere>' has no id" in ids.notes[0]
    [(problem, remedy)] = named({"eos_token_id": 2}, eos="<nowhere>").problems
    assert "eos_token is '<nowhere>'" in problem
    assert "tokenizer_config.json" in remedy


def test_names_of_a_tokenizer_that_cannot_be_read_are_said_and_change_nothing():
    written = Written("there", None, {}, NAMES)
    unread = Vocabulary("tekken.json", None, {"<pad>": 1})
    ids = special_ids({"eos_token_id": 9, "pad_token_id": 0}, ANY, written, TokensMoved(lambda: None, lambda: unread), lambda _: False)
    assert ids.changes == {"pad_token_id": 1}
    assert "eos_token '</s>' cannot be read" in ids.notes[0]


def test_what_only_the_config_of_the_folder_says_is_added_where_the_base_has_such_a_section():
    written = Written("there", {"eos_token_id": 3, "text_config": {"pad_token_id": 1}, "other_config": {"pad_token_id": 1}}, {}, {})
    ids = special_ids({"text_config": {"hidden_size": 8}}, ANY, written, TokensMoved(lambda: None, lambda: ADDED), lambda _: False)
    assert ids.changes == {"eos_token_id": 3, "text_config.pad_token_id": 1}


def test_what_the_config_of_the_folder_says_counts_wherever_it_stands_in_it():
    written = Written("there", {"eos_token_id": 3}, {}, {})
    ids = special_ids({"text_config": {"eos_token_id": 0}}, ANY, written, TokensMoved(lambda: None, lambda: ADDED), lambda _: False)
    assert ids.changes["text_config.eos_token_id"] == 3
