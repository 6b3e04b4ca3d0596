"""Merges of models whose vocabularies differ, judged row by row in float64, and opened by transformers with their tokenizer."""

import json
from dataclasses import asdict

import pyarrow.parquet
import pytest
import torch
import transformers

from paramdelta_dist import api
from paramdelta_dist.api.merge import merge_with
from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.tokenizer import Tokenizers
from paramdelta_dist.cli import tables
from paramdelta_dist.driver.workers import Resources
from paramdelta_dist.errors import HomologyError, UsageError
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import StorageConfig, open_store
from tests import oracle
from tests.models import recipe
from tests.vocabularies import expected_rows, make_model, make_tokenizer

EMBEDDINGS, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
SPECIAL = ("<s>", "</s>")


def by_token(tmp_path, tokenizers, *, weight=0.7, tied=False, written="post", rows=None, dtypes=None, resources=Resources()):  # noqa: B008  # it is frozen
    """Merge base + weight (post − old) by token. Returns output, expected tensors."""
    folders = {}
    for seed, (model, tokenizer) in enumerate(tokenizers.items()):
        height, dtype = (rows or {}).get(model), (dtypes or {}).get(model, torch.bfloat16)
        folders[model] = make_model(tmp_path / model, tokenizer, rows=height, tied=tied, seed=seed, dtype=dtype)
    source = {"post": None, "base": "base"}[written]
    made = recipe(folders["base"], folders["post"], folders["old"], tmp_path / "out", weight=weight, vocab="by-token",
                  tokenizer_from=source, shard_size="20KB")  # fmt: skip
    merge_with(made, resources)
    height = len(oracle.load(folders[written])[EMBEDDINGS])
    deltas = [("post", "old", weight)]
    models = [oracle.load(folders[model]) for model in ("base", "post", "old")]
    ordinary = {name: tensor for name, tensor in models[0].items() if name not in (EMBEDDINGS, HEAD)}
    expected = oracle.merge(ordinary, [(models[1], models[2], weight)])
    for name in (EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD):
        expected[name] = expected_rows(name, folders, tokenizers, written, deltas, height)
    return tmp_path / "out", expected


def three_tokenizers():
    """The post knows the old base's tokens and two more; the new base has the same text in another order, and one of its own."""
    return {
        "old": make_tokenizer(),
        "post": make_tokenizer(special=(*SPECIAL, "<|im_start|>", "<|im_end|>")),
        "base": make_tokenizer(words=140, special=(*SPECIAL, "<|native|>"), order=-1),
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("written", ["post", "base"])
def test_rows_follow_the_tokens_of_the_tokenizer_that_is_written(tmp_path, tied, written):
    tokenizers = three_tokenizers()
    out, expected = by_token(tmp_path, tokenizers, tied=tied, written=written)
    oracle.assert_within_one_rounding(oracle.load(out), expected)
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == tokenizers[written].get_vocab()
    ids = tokenizer("A merge moves each byte<|im_end|>", return_tensors="pt").input_ids[0]
    assert torch.equal(opened.get_input_embeddings()(ids), opened.get_input_embeddings().weight[ids])
    base = oracle.load(tmp_path / "base")[EMBEDDINGS]
    own = "<|im_end|>" if written == "post" else "<|native|>"
    theirs = oracle.load(tmp_path / written)[EMBEDDINGS]
    row = oracle.load(out)[EMBEDDINGS][tokenizer.convert_tokens_to_ids(own)]
    assert torch.equal(row, theirs[tokenizers[written].convert_tokens_to_ids(own)])
    assert len(oracle.load(out)[EMBEDDINGS]) == len(theirs) == opened.config.vocab_size
    assert len(theirs) != len(base) or written == "base"


def test_the_config_names_the_special_tokens_by_their_new_ids(tmp_path):
    tokenizers = three_tokenizers()
    out, _ = by_token(tmp_path, tokenizers)
    config = json.loads((out / "config.json").read_text())
    assert tokenizers["base"].eos_token_id != tokenizers["post"].eos_token_id
    assert config["eos_token_id"] == tokenizers["post"].eos_token_id
    assert config["bos_token_id"] == tokenizers["post"].bos_token_id
    assert config["vocab_size"] == len(tokenizers["post"])


@pytest.mark.parametrize("tile", [512, 3_000, 70_000])
def test_tiles_and_workers_do_not_change_a_byte(tmp_path, tile):
    out, expected = by_token(tmp_path, three_tokenizers(), resources=Resources(workers=2, tile_size=tile))
    oracle.assert_within_one_rounding(oracle.load(out), expected)
    made = recipe(tmp_path / "base", tmp_path / "post", tmp_path / "old", tmp_path / "one", weight=0.7, vocab="by-token", shard_size="20KB")
    api.merge(made, workers=1)
    oracle.assert_same(oracle.load(tmp_path / "one"), oracle.load(out))
    assert api.verify(str(out), deep=True, recompute=1.0)["ok"]


def test_rows_read_from_s3_are_the_same(tmp_path, s3_server, monkeypatch):
    out, _ = by_token(tmp_path, three_tokenizers())
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{s3_server.make_bucket()}"
    urls = {model: f"{bucket}/{model}" for model in ("base", "post", "old")}
    for model, url in urls.items():
        store = open_store(url, StorageConfig())
        for path in (tmp_path / model).iterdir():
            store.write(path.name, path.read_bytes())
    again = tmp_path / "again"
    made = recipe(urls["base"], urls["post"], str(tmp_path / "old"), again, weight=0.7, vocab="by-token", shard_size="20KB")
    api.merge(made, workers=2)
    oracle.assert_same(oracle.load(again), oracle.load(out))


def test_padded_embeddings_stay_padded(tmp_path):
    tokenizers = three_tokenizers()
    rows = {"old": 448, "post": 512, "base": 480}
    out, expected = by_token(tmp_path, tokenizers, rows=rows)
    oracle.assert_within_one_rounding(oracle.load(out), expected)
    assert len(oracle.load(out)[EMBEDDINGS]) == 512
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 512


def test_rows_taken_whole_are_rounded_to_the_outputs_dtype(tmp_path):
    dtypes = {"post": torch.float32, "old": torch.float16}
    out, expected = by_token(tmp_path, three_tokenizers(), dtypes=dtypes)
    oracle.assert_within_one_rounding(oracle.load(out), expected)


@pytest.mark.parametrize("vocab", ["by-token", "pad"])
def test_equal_vocabularies_give_the_bytes_of_strict(tmp_path, vocab):
    tokenizer = make_tokenizer()
    old, post, new = (make_model(tmp_path / name, tokenizer, rows=320, seed=seed) for seed, name in enumerate(("old", "post", "new")))
    for mode in ("strict", vocab):
        api.merge(recipe(new, post, old, tmp_path / mode, weight=0.3, vocab=mode))
    oracle.assert_same(oracle.load(tmp_path / vocab), oracle.load(tmp_path / "strict"))
    assert (tmp_path / vocab / "config.json").read_bytes() == (tmp_path / "strict" / "config.json").read_bytes()


def test_a_delta_without_a_token_leaves_its_row_to_the_others(tmp_path):
    plain, more, other = make_tokenizer(), make_tokenizer(special=(*SPECIAL, "<x>")), make_tokenizer(special=(*SPECIAL, "<y>", "<x>"))
    tokenizers = {"base": more, "one": more, "two": other, "old": plain}
    folders = {model: make_model(tmp_path / model, tokenizer, seed=seed) for seed, (model, tokenizer) in enumerate(tokenizers.items())}
    deltas = ({"post": str(folders["one"]), "weight": 0.5}, {"post": str(folders["two"]), "base": str(folders["old"]), "weight": -0.25})
    api.merge(recipe(folders["base"], None, None, tmp_path / "out", deltas=deltas, vocab="by-token", tokenizer_from=1))
    terms = [("one", "base", 0.5), ("two", "old", -0.25)]
    for name in (EMBEDDINGS, HEAD):
        expected = expected_rows(name, folders, tokenizers, "two", terms, len(other))
        oracle.assert_within_one_rounding({name: oracle.load(tmp_path / "out")[name]}, {name: expected}, share=1e-3)


def test_deltas_that_contradict_one_another_in_a_token_are_refused(tmp_path):
    plain, more = make_tokenizer(), make_tokenizer(special=(*SPECIAL, "<x>"))
    folders = {name: make_model(tmp_path / name, t) for name, t in (("base", more), ("one", more), ("two", more), ("old", plain))}
    deltas = tuple({"post": str(folders[post]), "base": str(folders[base])}
                   for post, base in (("one", "base"), ("one", "old"), ("two", "old"), ("two", "base")))  # fmt: skip
    with pytest.raises(UsageError, match="one after the other"):
        api.plan(recipe(folders["base"], None, None, tmp_path / "out", deltas=deltas, vocab="by-token"))


def test_a_weight_of_zero_still_lends_the_rows_of_its_tokens(tmp_path):
    tokenizers = {"base": make_tokenizer(), "post": make_tokenizer(special=(*SPECIAL, "<x>")), "old": make_tokenizer()}
    out, expected = by_token(tmp_path, tokenizers, weight=0.0)
    oracle.assert_same(oracle.load(out), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_pad_takes_the_rows_that_only_some_have_from_the_model_whose_tokenizer_is_written(tmp_path, tied):
    plain, more = make_tokenizer(), make_tokenizer(special=(*SPECIAL, "<x>", "<y>"))
    count = len(plain)
    old = make_model(tmp_path / "old", plain, tied=tied, seed=1)
    post = make_model(tmp_path / "post", more, tied=tied, seed=2)
    new = make_model(tmp_path / "new", plain, rows=count + 5, tied=tied, seed=3)
    api.merge(recipe(new, post, old, tmp_path / "out", weight=0.5, vocab="pad", shard_size="20KB"))
    models = [oracle.load(folder) for folder in (new, post, old)]
    out = oracle.load(tmp_path / "out")
    for name in (EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD):
        common = (models[0][name][:count].double() + 0.5 * (models[1][name][:count].double() - models[2][name].double())).bfloat16()
        expected = torch.cat([common, models[1][name][count:], models[0][name][count + 2 :]])
        oracle.assert_within_one_rounding({name: out[name]}, {name: expected})
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.config.vocab_size == count + 5


def test_pad_refuses_tokens_that_moved_and_says_which_mode_would_not(tmp_path):
    folders = {model: make_model(tmp_path / model, tokenizer) for model, tokenizer in three_tokenizers().items()}
    made = recipe(folders["base"], folders["post"], folders["old"], tmp_path / "out", vocab="pad")
    with pytest.raises(HomologyError, match=r"(?s)have other ids.*with vocab: by-token: \d+ of") as raised:
        api.plan(made)
    assert raised.value.exit_code == 3


def test_the_check_tells_what_each_mode_would_do(tmp_path, capsys):
    plain, more = make_tokenizer(), make_tokenizer(special=(*SPECIAL, "<x>", "<y>"))
    old, new = make_model(tmp_path / "old", plain), make_model(tmp_path / "new", plain)
    post = make_model(tmp_path / "post", more)
    report = api.check(recipe(new, post, old, tmp_path / "out"))
    count = len(plain)
    words = f"{count:,} of {count + 2:,} rows merged, 2 whole from {post}"
    assert report.vocabulary == (("pad", words), ("by-token", words))
    with pytest.raises(HomologyError, match=f"with vocab: by-token: {words}"):
        report.require()
    tables.check_table({"homologous": False, **asdict(report)})
    assert f"with vocab: pad: {words}" in capsys.readouterr().out


def test_by_token_needs_tokenizers_that_can_be_read(tmp_path):
    tokenizer = make_tokenizer()
    old, post = make_model(tmp_path / "old", tokenizer), make_model(tmp_path / "post", tokenizer)
    new = make_model(tmp_path / "new", tokenizer, save=False)
    with pytest.raises(HomologyError, match=r"new: tokenizer: there is no tokenizer whose tokens can be read"):
        api.plan(recipe(new, post, old, tmp_path / "out", vocab="by-token"))


def test_a_tokenizer_with_tokens_that_no_model_has_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    old, post, new = (make_model(tmp_path / name, tokenizer) for name in ("old", "post", "new"))
    make_tokenizer(special=(*SPECIAL, "<nowhere>")).save_pretrained(tmp_path / "elsewhere")
    made = recipe(new, post, old, tmp_path / "out", vocab="by-token", tokenizer_from=str(tmp_path / "elsewhere"))
    with pytest.raises(HomologyError, match=r"1 tokens.*<nowhere>.*tokenizer_from"):
        api.plan(made)


def test_changing_the_mode_or_a_tokenizer_makes_another_merge(tmp_path):
    folders = {model: make_model(tmp_path / model, tokenizer) for model, tokenizer in three_tokenizers().items()}
    plans = [
        api.plan(recipe(folders["base"], folders["post"], folders["old"], tmp_path / "out", vocab="by-token", tokenizer_from=source))[0]
        for source in (None, "base")
    ]
    make_tokenizer(words=140, special=(*SPECIAL, "<|native|>")).save_pretrained(folders["base"])
    plans.append(api.plan(recipe(folders["base"], folders["post"], folders["old"], tmp_path / "out", vocab="by-token"))[0])
    assert len({plan.fingerprint for plan in plans}) == 3


def piece(text, score=b"\x15\x00\x00\x00\x00"):
    inner = b"\x0a" + bytes([len(text.encode())]) + text.encode() + score
    return b"\x0a" + bytes([len(inner)]) + inner


def test_a_sentencepiece_model_is_read_with_the_tokens_added_to_it(tmp_path):
    tokenizer = make_tokenizer()
    folder = make_model(tmp_path / "m", tokenizer, save=False)
    (folder / "tokenizer.model").write_bytes(b"".join(map(piece, ["<unk>", "▁the", "é"])) + b"\x12\x02\x08\x01")
    (folder / "added_tokens.json").write_text('{"<pad>": 3}')
    tokenizers = Tokenizers(StorageConfig())
    vocabulary = tokenizers.vocabulary(tokenizers.of(str(folder), open_checkpoint(str(folder), StorageConfig()).side_files))
    assert vocabulary.tokens == {"<unk>": 0, "▁the": 1, "é": 2, "<pad>": 3}
    assert vocabulary.special == {"<pad>": 3}


def test_a_model_that_is_merged_as_it_is_has_the_first_ones_row_for_tokens_it_lacks(tmp_path):
    tokenizers = {
        "one": make_tokenizer(special=(*SPECIAL, "<x>")),
        "two": make_tokenizer(order=-1),
        "three": make_tokenizer(special=(*SPECIAL, "<y>")),
    }
    folders = {model: make_model(tmp_path / model, tokenizer, seed=seed) for seed, (model, tokenizer) in enumerate(tokenizers.items())}
    weights = {"one": 0.5, "two": 0.375, "three": 0.125}
    entries = [{"model": str(folders[model]), "weight": weight} for model, weight in weights.items()]
    for source, written in ((0, "one"), (2, "three")):
        out = tmp_path / f"out{source}"
        made = {"method": "linear", "models": entries, "output": str(out), "vocab": "by-token", "tokenizer_from": source}
        api.merge(Recipe.model_validate(made))
        tables = {model: (oracle.load(folder)[EMBEDDINGS].double(), tokenizers[model].get_vocab()) for model, folder in folders.items()}
        rows = []
        for token in sorted(tokenizers[written].get_vocab(), key=tokenizers[written].get_vocab().get):
            held = {model: table[ids[token]] for model, (table, ids) in tables.items() if token in ids}
            first = held.get("one")
            rows.append(held["three"] if first is None else sum(weight * held.get(model, first) for model, weight in weights.items()))
        oracle.assert_within_one_rounding(
            {EMBEDDINGS: oracle.load(out)[EMBEDDINGS]}, {EMBEDDINGS: torch.stack(rows).bfloat16()}, share=1e-3
        )


def test_methods_that_look_at_the_whole_tensor_need_equal_vocabularies_or_leave_the_tensor_out(tmp_path):
    folders = {model: make_model(tmp_path / model, tokenizer) for model, tokenizer in three_tokenizers().items()}

    def ties(density, **options):
        return recipe(folders["base"], folders["post"], folders["old"], tmp_path / "out", method="ties", vocab="by-token",
                      parameters={"density": density}, **options)  # fmt: skip

    with pytest.raises(UsageError, match=r"ties looks at all of 'lm_head.weight|ties looks at all of 'model.embed_tokens.weight'.*exclude"):
        api.plan(ties(0.5))
    api.plan(ties(1.0))
    made, _ = api.plan(ties(0.5, exclude=["*embed_tokens*", "lm_head*"], tokenizer_from="base"))
    assert made.copied == 2


def test_models_of_other_vocabularies_merge_when_embeddings_and_head_are_left_out(tmp_path):
    tokenizers = three_tokenizers()
    folders = {model: make_model(tmp_path / model, tokenizer, seed=seed) for seed, (model, tokenizer) in enumerate(tokenizers.items())}
    left_out = {"exclude": ["*embed_tokens*", "lm_head*"]}
    models = folders["base"], folders["post"], folders["old"]
    with pytest.raises(UsageError, match="set `tokenizer_from: base`"):
        api.plan(recipe(*models, tmp_path / "out", **left_out))
    api.merge(recipe(*models, tmp_path / "out", **left_out, tokenizer_from="base", weight=0.5))
    base, post, old = (oracle.load(folder) for folder in models)
    expected = {name: oracle.merge({name: t}, [(post, old, 0.5)])[name] for name, t in base.items() if name not in (EMBEDDINGS, HEAD)}
    oracle.assert_within_one_rounding(oracle.load(tmp_path / "out"), {**expected, **{name: base[name] for name in (EMBEDDINGS, HEAD)}})


def test_one_vocabulary_tensor_cannot_stay_while_the_other_grows(tmp_path):
    plain, more = make_tokenizer(), make_tokenizer(special=(*SPECIAL, "<x>"))
    old, new = make_model(tmp_path / "old", plain), make_model(tmp_path / "new", plain)
    post = make_model(tmp_path / "post", more)
    with pytest.raises(UsageError, match="leave out both or neither"):
        api.plan(recipe(new, post, old, tmp_path / "out", exclude="lm_head*", vocab="pad", tokenizer_from="base"))


@pytest.mark.parametrize("options", [{"vocab": "by-token"}, {"exclude": ["*embed_tokens*", "lm_head*"], "tokenizer_from": "base"}])
def test_an_analysis_leaves_out_rows_that_belong_to_different_tokens(tmp_path, options):
    folders = {
        model: make_model(tmp_path / model, tokenizer, seed=seed) for seed, (model, tokenizer) in enumerate(three_tokenizers().items())
    }
    made = recipe(folders["base"], folders["post"], folders["old"], tmp_path / "out", **options)
    api.analyze(made, str(tmp_path / "analysis"))
    tables = {path.name: pyarrow.parquet.read_table(path) for path in (tmp_path / "analysis").glob("*.parquet")}
    names = {name for table in tables.values() if "tensor" in table.column_names for name in table["tensor"].to_pylist()}
    assert any(name.endswith("q_proj.weight") for name in names)
    assert not names & {EMBEDDINGS, HEAD}
