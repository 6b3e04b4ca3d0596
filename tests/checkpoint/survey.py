"""Every model class of transformers that speaks: which of its tensors have an entry for each token, found by making the class twice
with vocabularies of different sizes, without memory for the weights. `python -m tests.checkpoint.survey` writes it down."""

import copy
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FILE = Path(__file__).parent / "data" / "vocabulary_survey.json"
KINDS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "TEXT_TO_WAVEFORM",
    "TEXT_TO_SPECTROGRAM", "CTC", "RNNT", "TDT", "PRETRAINING", "TEXT_ENCODING", "RETRIEVAL", "TEXT_RECOGNITION",
    "TABLE_RECOGNITION", "NEXT_SENTENCE_PREDICTION", "CAUSAL_IMAGE_MODELING",
)  # fmt: skip
LAYERS = re.compile(r"n_layers?|num_layers|num_hidden_layers|.*_layers|depth")
MORE = 8


def classes():
    """Class and model type of each."""
    found = {}
    for kind in KINDS:
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").items():
            for name in names if isinstance(names, (tuple, list)) else (names,):
                found.setdefault(name, model_type)
    return dict(sorted(found.items()))


def with_few_layers(config, seen=None):
    seen = set() if seen is None else seen
    if id(config) in seen:
        return
    seen.add(id(config))
    for key, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            with_few_layers(value, seen)
        elif LAYERS.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool) and value > 2:
            setattr(config, key, 2)


def counted(document, prefix=""):
    """Fields that count a vocabulary, by dotted name."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from counted(value, f"{prefix}{key}.")
        elif isinstance(key, str) and "vocab_size" in key and isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def numbers(document):
    for key, value in document.items():
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and "vocab" not in str(key) and not str(key).endswith("_id"):
            yield value


def shapes(cls, config):
    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in cls(config).state_dict().items()}


def surveyed(name, model_type):
    """Fields, and the tensors that change with each, or why the class cannot be made here."""
    try:
        cls = getattr(transformers, name)
        config = cls.config_class() if getattr(cls, "config_class", None) else CONFIG_MAPPING[model_type]()
        few = copy.deepcopy(config)
        try:
            with_few_layers(few)
            before, config = shapes(cls, few), few
        except Exception:  # some configs say twice how many layers there are
            before = shapes(cls, config)
        fields = dict(counted(config.to_dict()))
        changed = {}
        for field in fields:
            other = copy.deepcopy(config)
            *path, leaf = field.split(".")
            section = other
            for part in path:
                section = section[part] if isinstance(section, dict) else getattr(section, part)
            value = fields[field] + MORE
            section.__setitem__(leaf, value) if isinstance(section, dict) else setattr(section, leaf, value)
            try:
                after = shapes(cls, other)
            except Exception as error:
                changed[field] = type(error).__name__
                continue
            changed[field] = {each: after[each] for each, shape in before.items() if each in after and after[each] != shape}
    except Exception as error:
        return {"error": type(error).__name__}
    sized = set(fields.values())
    kept = {n: s for n, s in before.items() if sized & set(s) or any(isinstance(c, dict) and n in c for c in changed.values())}
    collisions = sorted(sized & set(numbers(config.to_dict())))
    return {"fields": fields, "collisions": collisions, "tensors": kept, "changed": changed}


def main():
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    found = {}
    for name, model_type in classes().items():
        found[name] = surveyed(name, model_type)
        print(name, file=sys.stderr, flush=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items())
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(f'{{\n"transformers": "{transformers.__version__}",\n{lines}\n}}\n')


if __name__ == "__main__":
    main()
