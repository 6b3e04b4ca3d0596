"""A LoRA adapter as a checkpoint of deltas: a folder as peft saves it, known by its headers and its config alone.

Its tensors have the names and shapes of those of the model it grew from. A product of factors is a delta; what the training held
whole (`modules_to_save`, biases) is a weight, and its delta the difference from that model's.
"""

from __future__ import annotations

from collections.abc import Mapping

from paramdelta_dist.checkpoint.adapter_config import CONFIG_NAME, MERGE_FIRST, AdapterConfig, parse_adapter_config
from paramdelta_dist.checkpoint.adapter_fit import fit
from paramdelta_dist.checkpoint.adapter_keys import Held, sort_keys
from paramdelta_dist.checkpoint.checkpoint import Adapter, Checkpoint, probed, read_config, read_header
from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import Tensor, WeightFile, shown
from paramdelta_dist.checkpoint.parsing import Parser
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.errors import CheckpointError, InputError, NotFound
from paramdelta_dist.storage import Identity, StorageConfig, Store, open_input, redact
from paramdelta_dist.threads import Threads

WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_SHOWN = 20
"""Problems that a message lists."""


def open_adapter(url: str, storage: StorageConfig, base: Checkpoint, room: Room | None = None) -> Checkpoint:
    """The adapter at a normalized URL, as deltas of `base`, the model it grew from; `room` is for what its small files take.

    Raises CheckpointError where there is none, where it is of a kind that cannot be a delta, or does not fit the model: then with
    all that does not. What the store raises, and OverBudget, pass through.
    """
    try:
        return _read(url, storage, base, Parser(room))
    except InputError as error:
        if type(error) in (InputError, NotFound):
            raise CheckpointError(str(error)) from error
        raise


def open_adapters(
    bases: Mapping[str, str], models: Mapping[str, Checkpoint], storage: StorageConfig, room: Room | None = None
) -> dict[str, Checkpoint]:
    """Several at the same time, by URL: `bases` has the URL of the model that each grew from, `models` what is known of these."""
    with Threads(max(1, len(bases))) as pool:
        return dict(zip(bases, pool.map(lambda url: open_adapter(url, storage, models[bases[url]], room), bases), strict=True))


def _read(url: str, storage: StorageConfig, base: Checkpoint, parser: Parser) -> Checkpoint:
    store = open_input(url, storage)
    listed = store.list()
    present = probed(store, (CONFIG_NAME, WEIGHTS_NAME, _PICKLED)) if listed is None else listed
    _require_adapter(store, present)
    table = read_config(store, CONFIG_NAME, present[CONFIG_NAME], parser.room)
    config = parse_adapter_config(table, where=f"{store.url}/{CONFIG_NAME}")
    file = WeightFile(WEIGHTS_NAME, present[WEIGHTS_NAME])
    text = read_header(store, file, parser.room)
    tensors = parser.header(text, file_size=file.identity.size, where=f"{store.url}/{file.name}", file=0)
    parser.room.give_back(len(text))
    held = sort_keys(tensors)
    return Checkpoint(
        url=url,
        files=(file,),
        tensors=_fitted(store.url, held, config, base),
        config=None,
        side_files={},
        orphans=(),
        adapter=Adapter(base.url, tuple(_notes(held, config, base))),
    )


def _require_adapter(store: Store, present: Mapping[str, Identity]) -> None:
    """Raise CheckpointError unless both files of an adapter are there."""
    if WEIGHTS_NAME in present and CONFIG_NAME in present:
        return
    if _PICKLED in present and WEIGHTS_NAME not in present:
        raise CheckpointError(
            f"{store.url}: the adapter is pickled ({_PICKLED}), a format that can run code when it is read; load it with peft and save it "
            "again (save_pretrained)"
        )
    if CONFIG_NAME not in present and WEIGHTS_NAME not in present:
        raise CheckpointError(
            f"{store.url}: no adapter here: neither {CONFIG_NAME} nor {WEIGHTS_NAME} is in the folder; name the one that peft saved it to, "
            "or write `post` for a model"
        )
    absent = CONFIG_NAME if CONFIG_NAME not in present else WEIGHTS_NAME
    raise CheckpointError(f"{store.url}: {absent} is missing, without which this is half an adapter; get it from where the rest came")


def _fitted(where: str, held: Held, config: AdapterConfig, base: Checkpoint) -> Tensors:
    """The tensors of the adapter. Raises CheckpointError where not all of it fits, or it holds nothing."""
    found = fit(held, config, base)
    problems = [*found.problems, *_of_ties(found.tensors, base)]
    if not problems and not found.tensors:
        problems = ["it holds no factors and no tensors"]
    if problems:
        count = "one thing does" if len(problems) == 1 else f"{len(problems)} things do"
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"{where}: {count} not fit {redact(base.url)}, the model that this adapter is said to have grown from:\n  - "
            + "\n  - ".join(problems[:_SHOWN])
            + f"{more}\n  name the model that it was trained on as the delta's `base`; or {MERGE_FIRST}"
        )
    return Tensors(found.tensors)


def _of_ties(tensors: Mapping[str, Tensor], base: Checkpoint) -> list[str]:
    """Problems of copies of the embeddings that would no longer be some."""
    if base.tie is None or not base.tie.equal:
        return []
    embedding = tensors.get(base.tie.embedding)
    apart = [name for name in base.tie.copies if name in tensors and (tensors[name].encoded or embedding is None or embedding.encoded)]
    return [
        f"{shown(name)} is the same tensor as {shown(base.tie.embedding)} in the model, and the adapter changes it by itself; set "
        "`tie_word_embeddings: false` in the base's config, which stores both"
        for name in apart
    ]


def _notes(held: Held, config: AdapterConfig, base: Checkpoint) -> list[str]:
    notes = []
    ours, theirs = base.url.rstrip("/").rpartition("/")[2], config.grew_from.rstrip("/").rpartition("/")[2]
    if theirs and ours.lower() != theirs.lower():
        notes.append(
            f"the adapter says that it grew from {shown(config.grew_from)}; its deltas are taken to be those of {redact(base.url)}"
        )
    if held.copies:
        names = ", ".join(map(shown, list(held.copies)[:3]))
        notes.append(f"the adapter holds a copy of {names} of the model that it grew from, which is not read")
    return notes
