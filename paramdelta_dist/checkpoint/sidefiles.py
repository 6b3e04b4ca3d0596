"""The small files around the weights: which are known, and which model of a merge each is copied from."""

from __future__ import annotations

from fnmatch import fnmatchcase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Text in, text out: the tokenizer, how a conversation is written, and when generation stops. They belong together."""

TOKENIZER_PATTERNS = (
    *TOKENIZER_FILES, "*.tiktoken", "additional_chat_templates/*.jinja", "tiktoken.model", "spm.model", "*.spm", "*.model",
    "tokenizer.model.v*", "bpe.codes", "*.codes", "normalizer.json", "vocab.bpe", "vocab*.json", "*vocab.json", "*_vocab.txt",
    "vocab*.txt", "merges*.txt", "dict.txt", "tokenizer*.json", "tokenization*.json", "tokenizer/*",
)  # fmt: skip

MODEL_FILES = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "hf_quant_config.json",
    "quantize_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)
"""Files that the structure of the model needs, and the licence it comes under."""

MODEL_PATTERNS = (*MODEL_FILES, "sentence_*_config.json", "[0-9]_*/config.json", "*.py")

SIDE_FILE_NAMES = (*TOKENIZER_FILES, *MODEL_FILES)
"""Names without wildcards: what is looked for where a store cannot list."""

PEOPLE_PATTERNS = (
    "*.md", "license*", "licence*", "copying*", "notice*", "use_policy*", "citation*", ".gitattributes", ".gitignore",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp",
)  # fmt: skip
"""Files that people read and no loader does, in lower case: the card, licences, pictures, and what git and the Hub keep for themselves."""

MAX_SIDE_FILE = 512 << 20
"""Largest side file that is copied, in bytes; a tokenizer has some tens of MB."""


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def is_tokenizer_file(name: str) -> bool:
    """Whether the file comes from the model that `tokenizer_from` names."""
    return _matches(name, TOKENIZER_PATTERNS)


def is_model_file(name: str) -> bool:
    """Whether the file comes from the base. Code (`*.py`) does, and from nowhere else."""
    return _matches(name, MODEL_PATTERNS)


def is_for_people(name: str) -> bool:
    """Whether a file may be edited or removed and the model is still the same."""
    last = name.rpartition("/")[2].lower()
    return any(fnmatchcase(last, pattern) for pattern in PEOPLE_PATTERNS) and not last.endswith((".py", ".json", ".safetensors"))


def is_side_file(name: str) -> bool:
    return is_tokenizer_file(name) or is_model_file(name)


def says_tokens(name: str) -> bool:
    """Whether the file is of a tokenizer itself, and not of how it is used."""
    return is_tokenizer_file(name) and not name.startswith(("chat_template", "additional_chat_templates/", "generation_config"))


def is_side_folder(name: str) -> bool:
    """Whether side files may lie in a folder of this name."""
    return any("/" in pattern and _matches(name, (pattern.rpartition("/")[0],)) for pattern in (*TOKENIZER_PATTERNS, *MODEL_PATTERNS))
