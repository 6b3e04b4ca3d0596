"""The walks, one for each message and way; and the places that no walk goes from, each with the reason."""

from __future__ import annotations

import shutil

import torch
import yaml

from tests.raw_checkpoints import entry, weight_file
from tests.remedies.walking import FILE, INDEX, SHAPES, WORDS, Step, Walk, World, tokenizer

POST = f"post/{FILE}"
AGAIN = "get the model's files once more from where they came"
CHECKED = ("check", "merge")
PLANNED = ("plan", "merge")
MERGED = ("merge",)


def damaged(at, says, breaks, model="post"):
    return Walk(at, says, breaks, AGAIN, lambda world: world.get_again(model), CHECKED)


def replaced(content):
    return lambda world: world.write(POST, content)


def headed(header, data=b"", **more):
    return replaced(weight_file(header, data, **more))


def indexed(weight_map):
    """The post sharded, with this index."""

    def breaks(world: World) -> None:
        (world.root / POST).rename(world.root / "post/model-00001-of-00001.safetensors")
        world.write(f"post/{INDEX}", weight_map if isinstance(weight_map, bytes) else {"weight_map": weight_map})

    return breaks


ALL_IN_ONE = dict.fromkeys(SHAPES, "model-00001-of-00001.safetensors")
HEADERS = [
    damaged("checkpoint/header.py", "bytes are too few for a safetensors file", replaced(b"")),
    damaged("checkpoint/header.py", "more than the {} the format allows".partition("{")[0], replaced(b"\xff" * 64)),
    damaged("checkpoint/header.py", "cut off or not a safetensors file", replaced((1000).to_bytes(8, "little") + b"{}")),
    damaged("checkpoint/header.py", "broken header: ", headed('{"a": {}, "a": {}}')),
    damaged("checkpoint/header.py", "the header is not valid JSON", headed("{")),
    damaged("checkpoint/header.py", "the header is not a JSON object", headed("[]")),
    damaged("checkpoint/header.py", " is not an object of strings", headed({"__metadata__": 1})),
    damaged("checkpoint/header.py", "data_offsets ", headed({"a": entry(4, 8)}, bytes(8))),
    damaged("checkpoint/header.py", "the header describes ", headed({"a": entry(0, 8)}, bytes(4))),
    damaged(
        "checkpoint/header.py",
        "is not valid Unicode",
        headed('{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    ),
    damaged("checkpoint/header.py", "is empty", headed({"": entry(0, 4)}, bytes(4))),
    damaged("checkpoint/header.py", "is not an object", headed({"a": 1})),
    damaged("checkpoint/header.py", " is not one of ", headed({"a": entry(0, 4, dtype="F99")}, bytes(4))),
    damaged("checkpoint/header.py", " is not a list of at most 64 sizes", headed({"a": entry(0, 4, shape=[-1])}, bytes(4))),
    damaged(
        "checkpoint/header.py", " has more elements than any machine can count", headed({"a": entry(0, 4, shape=[1 << 62, 4])}, bytes(4))
    ),
    damaged("checkpoint/header.py", " are not a begin and an end", headed({"a": entry(0, 4) | {"data_offsets": [4]}}, bytes(4))),
    damaged("checkpoint/header.py", " takes ", headed({"a": entry(0, 4, shape=[9])}, bytes(4))),
    damaged("checkpoint/header.py", ": tensor ", headed({"": entry(0, 4)}, bytes(4))),
]
INDEXES = [
    damaged("checkpoint/index.py", ": not valid JSON (", indexed(b"{")),
    damaged("checkpoint/index.py", "weight_map is missing or empty", indexed({})),
    damaged("checkpoint/index.py", " is not a file name", indexed({"a": 1})),
    damaged("checkpoint/index.py", "which is not a plain path inside the folder", indexed({"a": "../x.safetensors"})),
    damaged("checkpoint/index.py", "which is not a safetensors file", indexed({"a": "x.bin"})),
    damaged("checkpoint/checkpoint.py", " names files that are not there", indexed({"a": "absent.safetensors"})),
    damaged(
        "checkpoint/checkpoint.py",
        " names tensors that their files do not hold",
        indexed({**ALL_IN_ONE, "more": "model-00001-of-00001.safetensors"}),
    ),
    damaged(
        "checkpoint/checkpoint.py",
        " is in {}, but ".partition("{")[0],
        indexed({name: file for name, file in ALL_IN_ONE.items() if "norm" not in name}),
    ),
]
FILES = [
    damaged("checkpoint/checkpoint.py", "the checkpoint holds no tensors", headed({})),
    damaged("checkpoint/checkpoint.py", ": not valid JSON (", lambda world: world.write("post/config.json", b"{")),
    damaged("checkpoint/checkpoint.py", ": not a JSON object", lambda world: world.write("post/config.json", b"[]")),
    damaged(
        "checkpoint/checkpoint.py",
        " levels deep; no config of a model is",
        lambda world: world.write("post/config.json", b'{"a":' * 99 + b"1" + b"}" * 99),
    ),
    Walk(
        "checkpoint/standins.py",
        "a pointer of Git LFS and not the file itself",
        lambda world: world.write(POST, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "fetch what it stands for (git lfs pull)",
        World.get_again,
        CHECKED,
    ),
    Walk(
        "checkpoint/standins.py",
        "a pointer of git-annex and not the file itself",
        lambda world: world.write("post/config.json", b"/annex/objects/K\n"),
        "fetch what it stands for (git annex get)",
        World.get_again,
        CHECKED,
    ),
    Walk(
        "checkpoint/standins.py",
        "a web page (HTML) and not the file itself",
        lambda world: world.write("post/tokenizer.json", b"<!doctype html>"),
        "download the file once more",
        World.get_again,
        CHECKED,
    ),
    Walk(
        "checkpoint/checkpoint.py",
        "no tokenizer or other model files here",
        lambda world: world.recipe.update(tokenizer_from="empty"),
        "name a folder that has them (`tokenizer_from`), or leave the key out",
        lambda world: world.recipe.pop("tokenizer_from"),
        PLANNED,
    ),
    Walk(
        "checkpoint/checkpoint.py",
        "no tokenizer or other model files here",
        lambda world: world.recipe.update(tokenizer_from="empty"),
        "name a folder that has them",
        lambda world: world.recipe.update(tokenizer_from="old"),
        PLANNED,
    ),
]


def only(*names, convert=None):
    """The post holds these and no safetensors."""

    def breaks(world: World) -> None:
        tensors = world.load("post")
        world.remove(POST)
        for name in names:
            world.write(f"post/{name}", b"x")
        if convert:
            torch.save(tensors, world.root / "post" / names[0])

    return breaks


def unpickled(world: World) -> None:
    """What save_pretrained does with pickled weights."""
    world.save("post", torch.load(world.root / "post/pytorch_model.bin", weights_only=True))


def below(marker):
    def breaks(world: World) -> None:
        (world.root / "post").rename(world.root / "inner")
        (world.root / "post").mkdir()
        (world.root / "inner").rename(world.root / "post/unet")
        world.write(f"post/{marker}", b"[]")

    return breaks


def named_below(world: World) -> None:
    world.recipe["deltas"][0]["post"] = "post/unet"


def two_models(world: World) -> None:
    shutil.copy(world.root / POST, world.root / "post/model-00001-of-00001.safetensors")
    world.write(f"post/{INDEX}", {"metadata": {}, "weight_map": ALL_IN_ONE})


def cached(world: World) -> None:
    """The post as the Hub's cache holds it, named by its root."""
    root = world.root / "hub/models--org--post"
    (root / "snapshots").mkdir(parents=True)
    (world.root / "post").rename(root / "snapshots/abc")
    world.write("hub/models--org--post/refs/main", b"abc")
    world.recipe["deltas"][0]["post"] = "hub/models--org--post"


def snapshot(world: World) -> None:
    world.recipe["deltas"][0]["post"] = "hub/models--org--post/snapshots/abc"


def cache_of_many(world: World) -> None:
    cached(world)
    world.recipe["deltas"][0]["post"] = "hub"


def loose(world: World) -> None:
    (world.root / POST).rename(world.root / "post/part.safetensors")


NEAR = "checkpoint/places.py"
PLACES = [
    Walk(
        NEAR,
        "no such folder, or it is empty; ",
        lambda world: world.recipe["deltas"][0].update(post="a/b/pots"),
        "look at how it is written",
        lambda world: world.recipe["deltas"][0].update(post="./post"),
        CHECKED,
    ),
    Walk(
        NEAR,
        "no such folder, or it is empty; name the folder",
        lambda world: world.recipe.update(base=f"new/{FILE}"),
        "name the folder, not a file in it",
        lambda world: world.recipe.update(base="new"),
        CHECKED,
    ),
    Walk(
        NEAR,
        "this is a LoRA adapter, not a whole model",
        only("adapter_config.json", "adapter_model.safetensors"),
        "merge it into its base first (peft: merge_and_unload) and save that",
        World.get_again,
        CHECKED,
    ),
    Walk(
        NEAR,
        ", which llama.cpp runs and nothing here reads",
        only("m.gguf"),
        "merge the safetensors models it was made of",
        World.get_again,
        CHECKED,
    ),
    Walk(
        NEAR,
        "only the weights in their maker's own layout are here",
        only("consolidated.00.pth"),
        "download the same model's model.safetensors",
        World.get_again,
        CHECKED,
    ),
    Walk(
        NEAR, "a format that can run code when it is read", only("pytorch_model.bin", convert=True), "convert them once", unpickled, CHECKED
    ),
    Walk(
        NEAR,
        "this is a checkpoint of torch.distributed",
        only("__0_0.distcp"),
        "save it as a Hugging Face model once",
        World.get_again,
        CHECKED,
    ),
    Walk(
        NEAR,
        "the weights are in a format of another framework",
        only("tf_model.h5"),
        "merge the same models as safetensors",
        World.get_again,
        CHECKED,
    ),
    Walk(NEAR, "this is a diffusers pipeline", below("model_index.json"), "name that folder", named_below, CHECKED),
    Walk(NEAR, "this is a sentence-transformers model without weights", below("modules.json"), "name that folder", named_below, CHECKED),
    Walk(NEAR, "no checkpoint here: neither ", below("notes.txt"), "name that folder", named_below, CHECKED),
    Walk(
        NEAR,
        "no checkpoint here: neither ",
        only("notes.txt"),
        "name the one that a model was saved to",
        lambda world: world.recipe["deltas"][0].update(post="as it came/post"),
        CHECKED,
    ),
    Walk(
        NEAR,
        " is in the folder; name the one that a model was saved to",
        only("notes.txt"),
        "name the one that a model was saved to",
        lambda world: world.recipe["deltas"][0].update(post="as it came/post"),
        CHECKED,
    ),
    Walk(
        NEAR,
        " are both missing, though there are weight files",
        loose,
        "restore the index",
        lambda world: world.write(f"post/{INDEX}", {"weight_map": dict.fromkeys(SHAPES, "part.safetensors")}),
        CHECKED,
    ),
    Walk(
        NEAR,
        "two models are here: ",
        two_models,
        f"move {INDEX} away to merge the first",
        lambda world: world.remove(f"post/{INDEX}"),
        CHECKED,
    ),
    Walk(NEAR, "two models are here: ", two_models, f"{FILE} to merge the second", lambda world: world.remove(POST), CHECKED),
    Walk(NEAR, "the root of the Hub's cache of a model", cached, "hub/models--org--post/snapshots/abc", snapshot, CHECKED),
    Walk(NEAR, "the Hub's cache of many models", cache_of_many, "name a snapshot of one", snapshot, CHECKED),
]


def resized(world: World, name: str, rows: int) -> None:
    """A model with more rows, as resize_token_embeddings leaves it."""
    generator = torch.Generator().manual_seed(9)
    more = {key: torch.randn(rows, 4, generator=generator) for key in ("model.embed_tokens.weight", "lm_head.weight")}
    world.add(**{name: more})
    world.configure(name, vocab_size=rows)
    world.write(f"{name}/tokenizer.json", tokenizer([*WORDS, *(f"x{number}" for number in range(rows - 8))]))


def moved(world: World) -> None:
    world.write("post/tokenizer.json", tokenizer(WORDS[::-1]))


def unreadable(world: World) -> None:
    world.write("post/tokenizer.json", {"model": {}})


def unknown_rows(world: World) -> None:
    """A tensor with the rows of the vocabulary and a name that nobody knows, where tokens move."""
    world.add(**{name: {"model.layers.0.routes": torch.ones(8, 3)} for name in ("new", "post", "old")})
    world.recipe.update(vocab="by-token")
    moved(world)


def numbered(world: World) -> None:
    """Integers with an entry for each token, as tables that route tokens to experts are."""
    world.add(**{name: {"model.layers.0.routes": torch.arange(8)} for name in ("new", "post", "old")})
    world.recipe.update(vocab="by-token", vocabulary={"tensors": ["model.layers.0.routes"]})
    moved(world)


def pictured(world: World) -> None:
    """The config of the base names a token that the tokenizer of the post has not."""
    world.configure("new", image_token_id=7)
    world.write("post/tokenizer.json", tokenizer([*WORDS[:7], "another"]))
    world.recipe.update(vocab="by-token")


def without_an_end(world: World) -> None:
    """A folder with a tokenizer that names a token it has not as the end of a text."""
    world.write("words/tokenizer.json", tokenizer(WORDS))
    world.write("words/tokenizer_config.json", {"eos_token": "</s>"})
    world.recipe.update(tokenizer_from="words")


def counted_from(world: World) -> None:
    """The config of the base has the first of the ids that stand for pictures, and tokens move."""
    world.configure("new", vision_config={"vocab_offset": 4})
    world.recipe.update(vocab="by-token")
    moved(world)


def elsewhere(world: World) -> None:
    """A folder that is no model of the recipe, with the tokens the other way round."""
    world.write("words/tokenizer.json", tokenizer(WORDS[::-1]))
    world.recipe.update(tokenizer_from="words")


def tied(world: World) -> None:
    world.configure("post", tie_word_embeddings=True)
    world.add(post={"lm_head.weight": None})


def written_out(world: World) -> None:
    world.configure("post", tie_word_embeddings=False)
    world.add(post={"lm_head.weight": world.load("post")["model.embed_tokens.weight"]})


def packed(world: World) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    codes, scale = torch.ones(4, 1, dtype=torch.int32), torch.ones(4, 1)
    world.add(post={name: None, f"{name}_packed": codes, f"{name}_scale": scale})


def recipe(**more):
    return lambda world: world.recipe.update(more)


def extra(**of):
    return lambda world: world.add(**of)


TABLE = {"a.table": torch.arange(3)}
WAVE = {"a.wave": torch.ones(2, dtype=torch.complex64)}
OTHER = {"a.table": torch.arange(3) + 1}
HOM = "checkpoint/homology.py"
MEANINGS = "checkpoint/meanings.py"
MODELS = [
    Walk(HOM, ": codes and scales cannot be merged as numbers", packed, "use the checkpoint that it was quantised from", World.get_again),
    Walk(HOM, "write lm_head.weight out in the tied model", tied, "set its `tie_word_embeddings: false`", written_out),
    Walk(HOM, "store lm_head.weight in both", tied, "and set `tie_word_embeddings: false`", written_out),
    Walk(
        HOM,
        "; if you know that this difference means nothing here",
        tied,
        "write `accept: [tie_word_embeddings]`",
        lambda world: world.recipe.update(accept="tie_word_embeddings", missing="copy"),
    ),
    Walk(
        HOM,
        "; if you know that this difference means nothing here",
        lambda world: world.configure("post", num_experts=2, moe=1) or world.configure("new", num_experts=4),
        "write `accept: [num_experts]` into the recipe",
        recipe(accept=["num_experts"]),
    ),
    Walk(
        HOM,
        "pick the post-trained model that grew from this architecture and size",
        lambda world: world.configure("post", num_experts=2) or world.configure("new", num_experts=4),
        "pick the post-trained model that grew from",
        lambda world: world.get_again() or world.get_again("new"),
    ),
    Walk(
        HOM,
        "only models of one architecture share a delta",
        lambda world: world.configure("post", model_type="bert"),
        "check the path",
        recipe(deltas=[{"post": "as it came/post", "base": "old"}]),
    ),
    Walk(
        HOM,
        "only models of one architecture share a delta",
        lambda world: world.configure("post", model_type="bert"),
        "write `accept: [model_type]`",
        recipe(accept="model_type"),
    ),
    Walk(
        HOM,
        "choose `vocab: pad` or `vocab: by-token` in the recipe, or pick",
        lambda world: resized(world, "post", 10),
        "choose `vocab: pad`",
        recipe(vocab="pad"),
    ),
    Walk(
        HOM,
        "choose `vocab: pad` or `vocab: by-token` in the recipe, or pick",
        lambda world: resized(world, "post", 10),
        "`vocab: by-token` in the recipe",
        recipe(vocab="by-token"),
    ),
    Walk(
        HOM,
        "choose `vocab: pad` or `vocab: by-token` in the recipe, or pick",
        lambda world: resized(world, "post", 10),
        "pick a post-trained model with the base's vocabulary",
        World.get_again,
    ),
    Walk(
        HOM,
        "the vocabularies have different sizes; choose `vocab: pad`",
        lambda world: resized(world, "post", 10),
        "choose `vocab: pad`",
        recipe(vocab="pad"),
    ),
    Walk(HOM, " is missing", extra(new={"more.fc.weight": torch.ones(2)}), "`missing: copy`", recipe(missing="copy")),
    Walk(
        HOM,
        "`exclude` with a glob on its name",
        extra(new={"more.fc.weight": torch.ones(2)}),
        "or leave it out: `exclude` with a glob on its name",
        recipe(exclude="more.*"),
    ),
    Walk(
        HOM,
        " is not in the base",
        extra(post={"more.fc.weight": torch.ones(2)}),
        "`exclude` with a glob on its name",
        recipe(exclude="more.*"),
    ),
    Walk(HOM, " is not in the base", extra(old=TABLE), "`missing: copy`", recipe(missing="copy")),
    Walk(
        HOM,
        "this is a LoRA adapter; merge it into its base first",
        extra(post={"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 4)}),
        "merge it into its base first (peft: merge_and_unload)",
        World.get_again,
    ),
    Walk(
        HOM,
        "this is a model of another size or architecture",
        extra(post={"model.norm.weight": torch.ones(5)}),
        "check the path",
        recipe(deltas=[{"post": "as it came/post", "base": "old"}]),
    ),
    Walk(
        HOM,
        "there is nothing to merge: use checkpoints",
        lambda world: world.save("post", {"a": torch.ones(2)}) or world.recipe.update(missing="copy"),
        "use checkpoints of the same model saved the same way",
        World.get_again,
    ),
    Walk(
        HOM,
        "no tensor of it has the name of one in the base",
        lambda world: world.save("post", {"a": torch.ones(2)}) or world.recipe.update(missing="copy"),
        "use checkpoints of the same model saved the same way",
        World.get_again,
    ),
    Walk(
        MEANINGS,
        "get the file once more from where it came, if it is damaged",
        unreadable,
        "get the file once more from where it came",
        World.get_again,
    ),
    Walk(
        MEANINGS,
        "get the file once more from where it came, if it is damaged",
        unreadable,
        '`exclude: ["lm_head.weight", "model.embed_tokens.weight"]` and `tokenizer_from: base`',
        recipe(exclude=["lm_head.weight", "model.embed_tokens.weight"], tokenizer_from="base"),
    ),
    Walk(
        HOM,
        " tensors with a dimension of the size of a vocabulary, or a little more, nobody knows whether it is one of ",
        unknown_rows,
        "`vocabulary: {others: […]}`",
        recipe(vocabulary={"others": ["model.layers.0.routes"]}),
    ),
    Walk(
        HOM,
        " tensors with a dimension of the size of a vocabulary, or a little more, nobody knows whether it is one of ",
        unknown_rows,
        '`vocabulary: {tensors: ["model.layers.0.routes"]}`',
        recipe(vocabulary={"tensors": ["model.layers.0.routes"]}),
    ),
    Walk(
        HOM,
        " holds integers with an entry for each token, which are not put together from several models",
        numbered,
        "leave it out with embeddings and output head (`exclude`) and set `tokenizer_from: base`",
        recipe(exclude=["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.routes"], tokenizer_from="base"),
    ),
    Walk(
        "checkpoint/special.py",
        ", which the tokenizer in ",
        pictured,
        "set `tokenizer_from: base`",
        recipe(tokenizer_from="base"),
    ),
    Walk("checkpoint/special.py", ", which the tokenizer in ", pictured, "`accept: [image_token_id]`", recipe(accept="image_token_id")),
    Walk(
        "checkpoint/special.py",
        "which has no id in the tokenizer: nothing written with it would end",
        without_an_end,
        "name a token of it as eos_token in tokenizer_config.json",
        lambda world: world.write("words/tokenizer_config.json", {"eos_token": "w1"}),
    ),
    Walk(
        "checkpoint/special.py",
        "which has no id in the tokenizer: nothing written with it would end",
        without_an_end,
        "or set `tokenizer_from: base`",
        recipe(tokenizer_from="base"),
    ),
    Walk(
        "checkpoint/special.py",
        ": nobody can tell whether it speaks of tokens of the tokenizer",
        counted_from,
        "set `tokenizer_from: base`",
        recipe(tokenizer_from="base"),
    ),
    Walk(
        "checkpoint/special.py",
        ": nobody can tell whether it speaks of tokens of the tokenizer",
        counted_from,
        "`accept: [vision_config.vocab_offset]`",
        recipe(accept="vision_config.vocab_offset"),
    ),
    Walk(
        MEANINGS,
        ", or set `vocab: by-token`: rows would be written with the names of other tokens",
        elsewhere,
        "take the tokenizer from a model of the recipe (`tokenizer_from: base` or `post`)",
        recipe(tokenizer_from="base"),
    ),
    Walk(
        MEANINGS,
        ", or set `vocab: by-token`: rows would be written with the names of other tokens",
        elsewhere,
        "or set `vocab: by-token`",
        recipe(vocab="by-token"),
    ),
    Walk(MEANINGS, "use models with the same tokenizer, or `vocab: by-token`", moved, "or `vocab: by-token`", recipe(vocab="by-token")),
    Walk(
        MEANINGS, "use models with the same tokenizer, or `vocab: by-token`", moved, "use models with the same tokenizer", World.get_again
    ),
    Walk(
        MEANINGS,
        "put a tokenizer.json into the folder",
        lambda world: world.remove("old/tokenizer.json") or world.recipe.update(vocab="by-token"),
        "put a tokenizer.json into the folder",
        lambda world: world.write("old/tokenizer.json", tokenizer(WORDS)),
    ),
    Walk(
        MEANINGS,
        "put a tokenizer.json into the folder",
        lambda world: world.remove("old/tokenizer.json") or world.recipe.update(vocab="by-token"),
        "or choose another `vocab`",
        recipe(vocab="strict"),
    ),
    Walk(
        "checkpoint/exact.py",
        " copied and not merged, ",
        extra(new=TABLE, post=OTHER, old=TABLE),
        "`exclude: ['*.table']`",
        recipe(exclude=["*.table"]),
    ),
    Walk(
        "checkpoint/exact.py",
        "is complex",
        extra(new=WAVE, post=WAVE, old=WAVE),
        "`exclude: ['*.wave']`",
        recipe(exclude=["*.wave"]),
    ),
    Walk(
        "checkpoint/exact.py",
        "holds floating-point numbers in one model and integers in another",
        extra(new={"a.odd": torch.ones(2)}, post={"a.odd": torch.arange(2)}, old={"a.odd": torch.ones(2)}),
        "`exclude: ['*.odd']`",
        recipe(exclude=["*.odd"]),
    ),
]


def no_config(world: World) -> None:
    for name in ("new", "post", "old"):
        world.remove(f"{name}/config.json")


def not_finite(world: World) -> None:
    world.add(post={"model.norm.weight": torch.full((4,), torch.inf)})


def rows_differ(world: World) -> None:
    resized(world, "post", 10)
    world.recipe.update(vocab="by-token")


def occupied(world: World) -> None:
    shutil.copytree(world.root / "old", world.root / "out")


def ours_of_another(world: World) -> None:
    assert world.run("merge")[0] == 0
    world.recipe["deltas"][0]["weight"] = 0.5


def one_weight(value):
    return lambda world: world.recipe["deltas"][0].update(weight=value)


def linked_out(world: World) -> None:
    (world.root / POST).rename(world.root / "elsewhere.safetensors")
    (world.root / POST).symlink_to(world.root / "elsewhere.safetensors")


def copied_with_links_followed(world: World) -> None:
    shutil.copytree(world.root / "post", world.root / "copy", symlinks=False)
    world.recipe["deltas"][0]["post"] = "copy"


def large_table(world: World) -> None:
    table = torch.zeros(200_000, dtype=torch.int64)
    changed = table.clone()
    changed[100_000] = 1
    world.add(new={"a.table": table}, post={"a.table": changed}, old={"a.table": table})


def shrunk(world: World) -> None:
    """Variances which the post has made smaller by more than the new base has."""
    variances = {"new": 0.5, "post": 0.25, "old": 1.0}
    world.add(**{name: {"encoder.bn.running_var": torch.full((4,), value)} for name, value in variances.items()})


PLANS = [
    Walk(
        "shards/compute.py",
        ": the result is a variance below zero",
        shrunk,
        "`exclude: ['*running_[mv]*']` takes the base's means and variances",
        lambda world: world.recipe.update(exclude=["*running_[mv]*"]) or world.options.append("--overwrite"),
        MERGED,
    ),
    Walk(
        "shards/compute.py",
        ": the result is a variance below zero",
        shrunk,
        "or lower the weights",
        lambda world: world.recipe["deltas"][0].update(weight=0.5) or world.options.append("--overwrite"),
        MERGED,
    ),
    Walk(
        "planning/build.py",
        "has no config.json; the output would not be a model that loads",
        no_config,
        "copy that of a model of the same architecture into it",
        lambda world: shutil.copy(world.root / "as it came/old/config.json", world.root / "new"),
        PLANNED,
        2,
    ),
    Walk(
        "planning/resolve.py",
        "the recipe has rules without effect:",
        recipe(exclude="nothing.*"),
        "matches no tensor of any model",
        lambda world: world.recipe.pop("exclude"),
        PLANNED,
        2,
    ),
    Walk(
        "planning/vocabulary_rows.py",
        "use a method that works element by element",
        lambda world: rows_differ(world) or world.recipe.update(method="ties", parameters={"density": 0.5}),
        "use a method that works element by element",
        lambda world: world.recipe.update(method="paramdelta", parameters={}),
        PLANNED,
        2,
    ),
    Walk(
        "driver/open_inputs.py",
        ", whose tokenizer is written, has other tokens ",
        lambda world: resized(world, "post", 10) or world.recipe.update(exclude=["*embed_tokens*", "lm_head*"]),
        "set `tokenizer_from: base`",
        recipe(tokenizer_from="base"),
        ("check", "plan", "merge"),
        2,
    ),
    Walk(
        "shards/compute.py",
        ", which is copied and not merged, and ",
        large_table,
        "be left out (`exclude`), which takes the base's",
        lambda world: world.recipe.update(exclude="a.table") or world.options.append("--overwrite"),
        MERGED,
    ),
    Walk(
        "output/claim.py",
        " is not empty and holds no merge of ours",
        occupied,
        "choose another output",
        recipe(output="elsewhere"),
        MERGED,
    ),
    Walk(
        "output/claim.py",
        " is not empty and holds no merge of ours",
        occupied,
        "or --overwrite to replace the checkpoint in it",
        lambda world: world.options.extend(["--overwrite", "--yes"]),
        MERGED,
    ),
    Walk("output/claim.py", " belongs to another merge ", ours_of_another, "choose another output", recipe(output="elsewhere"), MERGED),
    Walk(
        "output/claim.py",
        " belongs to another merge ",
        ours_of_another,
        "--overwrite to replace what is there",
        lambda world: world.options.append("--overwrite"),
        MERGED,
    ),
    Walk(
        "driver/consent.py",
        "--overwrite would delete what no merge of ours has made",
        lambda world: occupied(world) or world.options.append("--overwrite"),
        "or give --yes as well",
        lambda world: world.options.append("--yes"),
        MERGED,
    ),
    Walk(
        "planning/memory.py",
        "allow {}more memory (--memory ".partition("{")[0],
        lambda world: world.options.extend(["--memory", "64MiB"]),
        "more memory (--memory ",
        lambda world: world.options.__setitem__(1, "2GiB"),
        MERGED,
        2,
    ),
    Walk(
        "storage/confined.py",
        "which is outside of this folder, and nothing outside of it is read",
        linked_out,
        "or a copy that holds them all (cp -rL",
        copied_with_links_followed,
        CHECKED,
    ),
]


def wrong(says, offers, key, value, right, at="recipe/"):
    """A key of a recipe with a wrong value, and what the message asks for."""
    return Walk(at, says, recipe(**{key: value}), offers, recipe(**{key: right}), CHECKED, 2)


def text(says, offers, change, at="recipe/"):
    """A recipe whose text is wrong."""

    def breaks(world: World) -> None:
        world.text = change(yaml.safe_dump(world.recipe, sort_keys=False))

    return Walk(at, says, breaks, offers, lambda world: setattr(world, "text", ""), CHECKED, 2)


def place(says: str, offers: str, wrong_url: str, right_url: str = "post") -> Walk:
    """A post at a place that cannot be one."""

    def put(url: str) -> Step:
        return lambda world: world.recipe["deltas"][0].update(post=url.replace("{root}", str(world.root)))

    return Walk("storage/urls.py", says, put(wrong_url), offers, put(right_url), CHECKED, 2)


RECIPES = [
    wrong("should be a size such as 5GB", "5GB", "shard_size", [5], "5GB"),
    wrong(" bytes a shard must have at least; is a unit missing", "as in 5GB", "shard_size", 5, "5GB"),
    wrong("is not a dtype that can be written", "use bfloat16", "dtype", "int8", "bfloat16"),
    wrong(
        "should be a list of one or more ", "each starting with `- post:`", "deltas", {"post": "post"}, [{"post": "post", "base": "old"}]
    ),
    wrong("should be a glob on the names of tensors", "such as '*.mlp.*'", "exclude", 5, "*.mlp.*"),
    wrong("should be a field of config.json", "such as num_experts", "accept", 5, "num_experts"),
    wrong("should be base, post, the position of a delta counted from 0, or a URL", "should be base, post", "tokenizer_from", True, "base"),
    wrong(", counted from 0", "counted from 0", "tokenizer_from", 4, 0),
    wrong("are in each other; write to a folder of its own", "write to a folder of its own", "output", "new/out", "out"),
    wrong("there is no method ", "methods: ", "method", "tie", "paramdelta", at="methods/__init__.py"),
    text("a recipe is a list of `key: value` lines", "starting with `base:`, `deltas:` and `output:`", lambda right: "- a\n"),
    text(": not valid YAML: ", "not valid YAML", lambda right: right + "x: [\n"),
    text(" is given twice", "is given twice", lambda right: right + "base: new\n"),
    text(" are not allowed in a recipe", "are not allowed", lambda right: right + "x: &a 1\ny: *a\n"),
    text("a key should be a word, not a list or mapping", "a key should be a word", lambda right: right + "? [a]\n: 1\n"),
    place("a query string cannot be part of a folder's URL", "a query string cannot be part", "https://127.0.0.1:9/post?versionId=1"),
    place("credentials do not belong in a URL", "put them in the environment or a profile", "s3://key:secret@b/post"),
    place("write the path as it is, without percent signs", "write the path as it is", "file://{root}/po%73t", "file://{root}/post"),
    Walk(
        "recipe/output_template.py",
        " is not known in an output; known are ",
        recipe(output="out/{day}"),
        "{date}",
        recipe(output="out/{date}"),
        MERGED,
        2,
    ),
    Walk(
        "recipe/output_template.py",
        "a brace without its partner",
        recipe(output="out/{date"),
        "braces are for",
        recipe(output="out/{date}"),
        MERGED,
        2,
    ),
]
GOOD = {
    "merge_method": "task_arithmetic",
    "base_model": "new",
    "models": [{"model": "post", "parameters": {"weight": 1.0}}],
    "dtype": "float32",
}


def imported(says, offers, bad, good=None, code=2):
    """A config of mergekit that cannot be mapped, and what the message says to write instead."""
    return Walk(
        "recipe/",
        says,
        lambda world: setattr(world, "mergekit", bad),
        offers,
        lambda world: setattr(world, "mergekit", good or GOOD),
        ("import",),
        code,
    )


def weighing(weight):
    return {**GOOD, "models": [{"model": "post", "parameters": {"weight": weight}}]}


def weighed(*models):
    return [{"model": model, "parameters": {"weight": 0.5}} for model in models]


def over(**parameters):
    return {"merge_method": "multislerp", "base_model": "new", "models": weighed("post", "old"), "parameters": parameters}


def linear(**parameters):
    return {"merge_method": "linear", "models": weighed("post", "old"), "parameters": parameters}


def karcher(rounds):
    return {"merge_method": "karcher", "models": [{"model": "post"}, {"model": "old"}], "parameters": {"max_iter": rounds}}


def pair(base, *models):
    return {"merge_method": "slerp", "base_model": base, "models": [{"model": model} for model in models], "parameters": {"t": 0.5}}


def nuslerp(*models):
    return {"merge_method": "nuslerp", "base_model": "new", "models": weighed(*models)}


def ties(density):
    models = [{"model": "post", "parameters": {"weight": 1.0, "density": density}}]
    return {"merge_method": "ties", "base_model": "new", "models": models}


def in_modules(modules):
    return {key: value for key, value in GOOD.items() if key != "models"} | {"modules": modules}


def sliced(slices):
    return {key: value for key, value in GOOD.items() if key != "models"} | {"slices": slices, "parameters": {"weight": 0.5}}


def part(span, base=None, **others):
    """A slice of the post and of others, each with the layers that are taken of it."""
    spans = others if others and span is None else {"post": span, **others}
    sources = [{"model": model} | ({"layer_range": layers} if layers is not None else {}) for model, layers in spans.items()]
    return {"sources": sources} | ({"base_model": base} if base else {})


IMPORTS = [
    imported(": not valid YAML: ", "not valid YAML", "a: ["),
    imported("not a mergekit config, which is lines of `key: value`", "`merge_method:` among them", "- a\n"),
    imported(
        "this cannot be mapped to a recipe:",
        "merge_method is missing",
        {key: value for key, value in GOOD.items() if key != "merge_method"},
    ),
    imported("there should be one of models, slices and modules", "there should be one of models", {"merge_method": "linear"}),
    imported("should be a list of one or more models", "a list of one or more models", {**GOOD, "models": "post"}),
    imported("should have `model:`", "should have `model:`", {**GOOD, "models": [{"weight": 1}]}),
    imported(
        " is listed twice; list it once, with the sum of the weights",
        "list it once, with the sum of the weights",
        {**GOOD, "models": [{"model": "post", "parameters": {"weight": 0.5}}] * 2},
    ),
    imported("cannot be written; use bfloat16, float16, float32 or float64", "use bfloat16", {**GOOD, "dtype": "int8"}),
    imported(
        " is missing, which {} needs".partition("{")[0],
        "base_model is missing",
        {key: value for key, value in GOOD.items() if key != "base_model"},
    ),
    imported(
        "tokenizer_source union: no tokenizer is put together here",
        "write `base` where all models have the same",
        {**GOOD, "tokenizer_source": "union"},
        {**GOOD, "tokenizer_source": "base"},
    ),
    imported(
        "merge the LoRA into it first (peft: merge_and_unload), and ",
        "and name the result",
        {**GOOD, "models": [{"model": "post+lora", "parameters": {"weight": 1.0}}]},
    ),
    imported(
        "a recipe merges whole models of one shape",
        "stacks layers of models",
        {"merge_method": "passthrough", "models": [{"model": "post"}, {"model": "old"}]},
    ),
    imported("this cannot be mapped to a recipe:", "known are linear, task_arithmetic", {**GOOD, "merge_method": "task"}),
    imported(
        ": {} is missing, which mergekit needs as well".partition("{} ")[2],
        "weight is missing",
        {**GOOD, "models": [{"model": "post"}]},
    ),
    imported(" has no equal here: ", "1e-8 is fixed", over(eps=1e-6), over(eps=1e-8)),
    imported(" should be true or false", "should be true or false", linear(normalize="maybe"), linear(normalize="yes")),
    imported(" should be a number", "should be a number", weighing("much"), weighing("0.5")),
    imported(" should be a whole number", "should be a whole number", karcher(2.5), karcher(5)),
    imported(
        "true has no equal here: ",
        "divide the weights by their sum instead",
        {**GOOD, "parameters": {"normalize": True}},
        weighing(1.0),
    ),
    imported(": should be lines of `name: value`", "parameters: should be lines of", {**GOOD, "parameters": [1]}),
    imported(
        "modules: should be lines of `name:`, with models or slices below each",
        "with models or slices below each",
        in_modules([1]),
        in_modules({"default": {"models": GOOD["models"]}}),
    ),
    imported(
        ": there should be one of models and slices",
        "there should be one of models and slices",
        in_modules({"default": {}}),
        in_modules({"default": {"models": GOOD["models"]}}),
    ),
    Walk(
        "recipe/",
        " are merged in different ways, and a recipe has one list of ",
        lambda world: setattr(world, "mergekit", in_modules({"text": {"models": GOOD["models"]}, "other": {"models": [{"model": "old"}]}})),
        "write it by hand, with rules that have `match` or `component`",
        lambda world: setattr(world, "mergekit", None) or one_weight([{"match": "lm_head*", "value": 0}, {"value": 1}])(world),
        ("import",),
        2,
    ),
    imported("slices: should be a list, each entry with `sources:`", "each entry with `sources:`", sliced(5), sliced([part([0, 1])])),
    imported(": should have `sources:`, each with ", "each with `model:` and `layer_range:`", sliced([{}]), sliced([part([0, 1])])),
    imported(": layer_range should be two whole numbers", "such as [0, 32]", sliced([part("all")]), sliced([part([0, 1])])),
    imported(": layer_range is missing", "layer_range is missing", sliced([part([0, 1]), part(None)]), sliced([part([0, 1])])),
    imported(
        ": puts together layers of different numbers",
        "a recipe merges layers of the same number",
        sliced([part([0, 1], old=[1, 2])]),
        sliced([part([0, 1], old=[0, 1])]),
    ),
    imported(
        " does not go on at layer ",
        "a recipe merges whole models",
        sliced([part([0, 1]), part([2, 3])]),
        sliced([part([0, 1])]),
    ),
    imported(
        ": has other models than the slices before it",
        "a recipe merges the same ones everywhere",
        sliced([part([0, 1]), part(None, old=[1, 2])]),
        sliced([part([0, 1], old=[0, 1])]),
    ),
    imported(
        "slices have different base_models; a recipe has one base",
        "a recipe has one base",
        sliced([part([0, 1], base="new"), part([1, 2], base="old")]),
        sliced([part([0, 1], base="new")]),
    ),
    imported(
        " is not among the slices' models; mergekit's ",
        "would take config and tokenizer from it",
        {**sliced([part([0, 1])]), "merge_method": "linear"},
        {**sliced([part([0, 1], new=[0, 1])]), "merge_method": "linear"},
    ),
    imported(
        ": override_architecture has no equal here",
        "write that architecture into the model's own config.json",
        {**GOOD, "models": [{"model": {"model": "post", "override_architecture": "l"}, "parameters": {"weight": 1.0}}]},
    ),
    imported(": should name a model", "models.0: should name a model", {**GOOD, "models": [{"model": 5, "parameters": {"weight": 1.0}}]}),
    imported(" merges two models, of which base_model is one; ", "merges two models", pair("new", "post", "old"), pair("new", "post")),
    imported(" merges two models beside base_model; ", "merges two models beside base_model", nuslerp("post"), nuslerp("post", "old")),
    imported(
        "tokenizer: should be lines of `key: value`, `source:` among them",
        "`source:` among them",
        {**GOOD, "tokenizer": "base"},
        {**GOOD, "tokenizer": {"source": "base"}},
    ),
    imported(
        "tokenizer and tokenizer_source stand both there",
        "tokenizer and tokenizer_source stand both there",
        {**GOOD, "tokenizer": {"source": "base"}, "tokenizer_source": "base"},
        {**GOOD, "tokenizer_source": "base"},
    ),
    imported(
        "this cannot be mapped to a recipe:",
        "save it in a folder and name that as its source",
        {**GOOD, "tokenizer": {"source": "base", "tokens": {"<x>": {"source": "post"}}}},
        {**GOOD, "tokenizer": {"source": "old"}},
    ),
    Walk(
        "recipe/",
        "chat_template: a template of one's own cannot be mapped; put it into the folder",
        lambda world: setattr(world, "mergekit", {**GOOD, "chat_template": "{{ messages }}"}),
        "put it into the folder that tokenizer_from names",
        lambda world: world.write("post/chat_template.jinja", "{{ messages }}") or setattr(world, "mergekit", GOOD),
        ("import",),
        2,
    ),
    imported("should be a value, a gradient, or a list of ", "a list of `{filter, value}`", weighing({"a": 1}), weighing([{"value": 1}])),
    imported("a gradient of anything but numbers cannot be mapped", "numbers", weighing([0.5, "x"]), weighing([0.5, 1])),
    imported("a gradient of shares that leaves 0 to 1", "0 to 1", ties([0.5, 1.5]), ties([0.5, 1.0])),
    imported(" is not a value", "is not a value", weighing([[1]]), weighing([1])),
]
WALKS = [*HEADERS, *INDEXES, *FILES, *PLACES, *MODELS, *PLANS, *RECIPES, *IMPORTS]
