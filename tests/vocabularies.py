"""Models with tokenizers of their own: real ones, small, trained on a page of text; and the judge of their merges, row by row."""

import json

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests import oracle

TEXT = """A merge moves each byte once, so the floor is what storage delivers. The plan lays out every output file before a weight
is read. A finished shard leaves a receipt with its digests; a rerun is the plan minus the receipts that still hold. Rows of the
embeddings belong to tokens, and where two tokenizers disagree about their order, the text of a token says which rows belong
together. Tokens that only one model has keep that model's row, for there is nothing that it could be merged with."""


def make_tokenizer(words=120, special=("<s>", "</s>"), order=1):
    """A byte-level BPE of about this many tokens; `order` turns the ids round, so that the same tokens get others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=words, show_progress=False))
    content = json.loads(tokenizer.to_str())
    tokens = list(content["model"]["vocab"])[::order]
    content["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    turned = Tokenizer.from_str(json.dumps(content))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=turned, bos_token=special[0], eos_token=special[1])
    made.add_special_tokens({"additional_special_tokens": list(special[2:])})
    return made


def make_model(folder, tokenizer, *, rows=None, tied=False, dtype=torch.bfloat16, seed=0, cut="30KB", save=True):
    """A small Llama whose embeddings have `rows` rows (default: one for each token), and its tokenizer."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=rows or len(tokenizer), tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=cut)
    if save:
        tokenizer.save_pretrained(folder)
    return folder


def expected_rows(name, folders, tokenizers, written, deltas, rows, dtype=None):
    """The vocabulary tensor `name` by token, in float64: `folders` and `tokenizers` by model, "base" among them, `written` the
    model whose tokenizer is written, `deltas` (post, old, weight) by model, `rows` of the output."""
    tensors = {model: oracle.load(folder)[name] for model, folder in folders.items()}
    ids = {model: tokenizer.get_vocab() for model, tokenizer in tokenizers.items()}
    names = {number: token for token, number in ids[written].items()}
    unnamed = {model: set(range(len(tensors[model]))) - set(ids[model].values()) for model in tensors}

    def row(model, number):
        """A model's row for the token that has this id in the output, or None."""
        if number in names:
            return tensors[model][ids[model][names[number]]] if names[number] in ids[model] else None
        return tensors[model][number] if number in unnamed[model] else None

    made = []
    for number in range(rows):
        start = row("base", number)
        if start is None:
            order = [written, *(post for post, _, _ in deltas), *(old for _, old, _ in deltas)]
            made.append(next(found for found in (row(model, number) for model in order) if found is not None).double())
            continue
        total = start.double()
        for post, old, weight in deltas:
            one, other = row(post, number), row(old, number)
            if one is not None and other is not None:
                total = total + weight * (one.double() - other.double())
        made.append(total)
    return torch.stack(made).to(dtype or tensors["base"].dtype)
