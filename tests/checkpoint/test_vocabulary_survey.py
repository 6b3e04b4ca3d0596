"""Which tensors have an entry for each token, over the model classes of transformers: what is recognised, asked about, and neither."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from paramdelta_dist.checkpoint.vocabulary import field_changes, find_entries, vocabulary_fields

SURVEY = json.loads((Path(__file__).parent / "data" / "vocabulary_survey.json").read_text())
MORE = 8
"""By how much each vocabulary grew."""
CLASSES = {name: entry for name, entry in SURVEY.items() if name != "transformers" and "error" not in entry}

ASKED = {
    "BarkModel": ["semantic.input_embeds_layer.weight"],
    "CpmAntForCausalLM": ["cpmant.input_embedding.weight"],
    "DeepseekV4ForCausalLM": ["model.layers.N.mlp.gate.tid2eid"],
    "GraniteSpeech5ForCTC": ["encoder.out_mid.weight"],
    "IBertForMaskedLM": ["ibert.embeddings.word_embeddings.weight_integer"],
    "IBertModel": ["embeddings.word_embeddings.weight_integer"],
    "MusicgenForCausalLM": ["lm_heads.N.weight"],
    "MusicgenForConditionalGeneration": ["decoder.lm_heads.N.weight"],
    "MusicgenMelodyForCausalLM": ["lm_heads.N.weight"],
    "MusicgenMelodyForConditionalGeneration": ["decoder.lm_heads.N.weight"],
    "Nemotron3_5TranscribeForConditionalGeneration": ["word_timestamp_head.bias", "word_timestamp_head.weight"],
    "ParakeetForTDT": ["joint.head.bias", "joint.head.weight"],
}
"""What is asked about, where tokens move or tables grow. Those of Musicgen are codes, and known as such with its tokenizer."""
UNTOLD = {
    "DiaForConditionalGeneration": ["logits_dense.weight", "model.decoder.embeddings.embed.weight"],
    "MusicgenForCausalLM": ["model.decoder.embed_tokens.N.weight"],
    "MusicgenForConditionalGeneration": ["decoder.model.decoder.embed_tokens.N.weight"],
    "MusicgenMelodyForCausalLM": ["model.decoder.embed_tokens.N.weight"],
    "MusicgenMelodyForConditionalGeneration": ["decoder.model.decoder.embed_tokens.N.weight"],
}
"""What is merged by number: all of it codes of sound, that are longer than the field which counts them."""


class Shape(NamedTuple):
    shape: tuple[int, ...]


def model_of(entry, changes=None):
    """Config and tensors of a class, with the fields of `changes` and all that changes with them."""
    config = {f"number_{size}": size for size in entry["collisions"]}
    for field, value in entry["fields"].items():
        *path, leaf = field.split(".")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        section[leaf] = (changes or {}).get(field, value)
    shapes = dict(entry["tensors"])
    for field in changes or {}:
        shapes |= entry["changed"][field]
    return config, {name: Shape(tuple(shape)) for name, shape in shapes.items()}


def of_words(entry):
    """Tensors with an entry for each word, and the dimension: those that change with a field that may count words."""
    words = {field.name for field in vocabulary_fields(model_of(entry)[0]) if field.words is not False}
    found = {}
    for field in words:
        changed = entry["changed"][field]
        for name, shape in changed.items() if isinstance(changed, dict) else ():
            found[name] = next(d for d, (one, two) in enumerate(zip(entry["tensors"][name], shape, strict=True)) if one != two)
    return found


def kinds(names):
    """Names without the numbers of layers."""
    return sorted({".".join("N" if part.isdecimal() else part for part in name.split(".")) for name in names})


def told():
    """By class, tensors of words that are asked about, and those that are neither known nor asked about."""
    asked, untold = {}, {}
    for name, entry in CLASSES.items():
        entries, words = find_entries([model_of(entry)]), of_words(entry)
        for found, those in ((asked, set(entries.asked) & set(words)), (untold, set(words) - set(entries.known) - set(entries.asked))):
            if those:
                found[name] = kinds(those)
    return asked, untold


def test_the_survey_is_of_most_classes():
    assert len(CLASSES) > 400
    assert sum(len(of_words(entry)) for entry in CLASSES.values()) > 1000


def test_all_entries_of_words_are_recognised_but_for_those_listed_here():
    assert told() == (ASKED, UNTOLD)


def test_what_is_recognised_is_in_the_dimension_that_changes_with_the_vocabulary():
    for name, entry in CLASSES.items():
        words, known = of_words(entry), find_entries([model_of(entry)]).known
        assert {each: words[each] for each in known if each in words} == {each: known[each] for each in known if each in words}, name


def test_nothing_else_is_taken_for_an_entry_of_words():
    wrong = {name: set(find_entries([model_of(entry)]).known) - set(of_words(entry)) for name, entry in CLASSES.items()}
    assert {name: kinds(found) for name, found in wrong.items() if found} == {}


def test_fields_of_the_config_say_what_grown_tensors_have():
    grew = 0
    for name, entry in CLASSES.items():
        used = {field for field, changed in entry["changed"].items() if changed and isinstance(changed, dict)}
        fields = [field for field in vocabulary_fields(model_of(entry)[0]) if field.words and field.name in used]
        for size in {field.size for field in fields}:
            grown = {field.name: size + MORE for field in fields if field.size == size}
            models = [model_of(entry), model_of(entry, grown)]
            known = find_entries(models, moved=False).known
            sizes = {each: models[1][1][each].shape[known[each]] for each in known}
            if not sizes or set().union(*(entry["changed"][field] for field in grown)) - set(known):
                continue
            changes = field_changes(models, known, sizes)
            assert {field: changes.get(field) for field in grown} == grown, name
            grew += 1
    assert grew > 400


@pytest.mark.slow
def test_the_survey_is_what_transformers_says():
    transformers = pytest.importorskip("transformers")
    from tests.checkpoint import survey

    if transformers.__version__ != SURVEY["transformers"]:
        pytest.skip("made with another version: python -m tests.checkpoint.survey")
    for name, model_type in survey.classes().items():
        assert survey.surveyed(name, model_type) == SURVEY[name], name
