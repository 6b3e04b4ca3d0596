"""Opening what a recipe names: its models and tokenizer, once, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from paramdelta_dist.checkpoint import Checkpoint, HomologyReport, compare, find_side_files, open_adapters, open_checkpoints
from paramdelta_dist.checkpoint.beside import Folder, find_beside, notes_beside
from paramdelta_dist.checkpoint.companions import companions_noted, with_companions
from paramdelta_dist.checkpoint.encoded import with_logical
from paramdelta_dist.checkpoint.encoded_notes import schemes_noted
from paramdelta_dist.checkpoint.exact import Agreement, compare_exact
from paramdelta_dist.checkpoint.header import shown
from paramdelta_dist.checkpoint.homology import Mismatch, entries_of, is_accepted
from paramdelta_dist.checkpoint.layouts import all_paired
from paramdelta_dist.checkpoint.meanings import Named
from paramdelta_dist.checkpoint.one_head import with_one_head
from paramdelta_dist.checkpoint.plain_layout import with_plain_layout
from paramdelta_dist.checkpoint.quantised import find_quantised
from paramdelta_dist.checkpoint.room import ENTRY, NUMBER, Room
from paramdelta_dist.checkpoint.sidefiles import says_tokens
from paramdelta_dist.checkpoint.special import SpecialIds, TokensMoved, special_ids
from paramdelta_dist.checkpoint.tokenizer import Tokenizer, Tokenizers, Vocabulary
from paramdelta_dist.checkpoint.written import read_written
from paramdelta_dist.engine.machine import default_memory
from paramdelta_dist.errors import UsageError
from paramdelta_dist.planning.memory import RESERVED
from paramdelta_dist.planning.resolve import Resolver
from paramdelta_dist.planning.vocabulary_rows import VOCABULARY_MODES, Vocabularies, vocabulary_outcomes
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.rules import Selection
from paramdelta_dist.storage import Identity, StorageConfig, open_store, redact

ROW = 16 + NUMBER
"""Bytes of a row of one model while rows are found by their tokens."""


@dataclass(frozen=True)
class Models:
    """The models and the tokenizer of a recipe, opened once, so that all decisions are about one version of each file."""

    checkpoints: Mapping[str, Checkpoint]
    """By URL."""
    tokenizer_files: Mapping[str, Identity]
    """The side files of the folder whose tokenizer is written."""
    tokenizers: Tokenizers
    """Of the models and of that folder."""

    @property
    def room(self) -> Room:
        return self.tokenizers.room

    def tokenizer(self, url: str) -> Tokenizer | None:
        """The tokenizer of a model; of an adapter, that of the model it grew from."""
        adapter = self.checkpoints[url].adapter
        place = adapter.base if adapter else url
        return self.tokenizers.of(place, self.checkpoints[place].side_files)


def open_models(recipe: Recipe, *, memory: int | None = None) -> Models:
    """Every model of a recipe, opened concurrently, and the folder that its tokenizer is taken from.

    `memory` bounds, in bytes, what this process may use; half of the machine where it is left out. Raises OverBudget where what
    the models say of themselves does not fit, CheckpointError where they are no models.
    """
    room, source = Room(max(memory or default_memory(), RESERVED)), recipe.tokenizer_url  # less is too little, as the plan will say
    models = [url for url in recipe.models if url not in recipe.adapters]
    checkpoints = with_logical(open_checkpoints(models, recipe.storage_config, room), room)
    if recipe.quantization == "none":
        checkpoints = {url: with_plain_layout(checkpoint) for url, checkpoint in checkpoints.items()}
    checkpoints = all_paired(checkpoints, recipe.base, room)  # first: what is told by name is told by the names of the base
    checkpoints |= open_adapters(recipe.adapters, checkpoints, recipe.storage_config, room)
    base = checkpoints[recipe.base]
    checkpoints = {url: checkpoint if checkpoint is base else with_one_head(base, checkpoint) for url, checkpoint in checkpoints.items()}
    beside = find_beside(open_store(recipe.base, recipe.storage_config), base.others)
    checkpoints[recipe.base] = replace(base, beside=beside)
    checkpoints = with_companions(checkpoints, recipe.base, recipe.storage_config, room)
    is_model = source in checkpoints and not checkpoints[source].adapter
    files = checkpoints[source].side_files if is_model else find_side_files(source, recipe.storage_config)
    return Models(checkpoints, files, Tokenizers(recipe.storage_config, room))


def with_a_tokenizer(recipe: Recipe, models: Models) -> tuple[Recipe, Models, tuple[str, ...]]:
    """The recipe with the base's tokenizer where nobody chose one and the post has none, the models of that, and what is to be
    said of it."""
    source, base = recipe.tokenizer_url, models.checkpoints[recipe.base]
    if not any(map(says_tokens, models.tokenizer_files)):
        if recipe.tokenizer_from is None and any(map(says_tokens, base.side_files)):
            note = f"{redact(source)} has no tokenizer: that of the base is written, with its chat template and generation_config.json"
            return recipe.model_copy(update={"tokenizer_from": "base"}), replace(models, tokenizer_files=base.side_files), (note,)
        return recipe, models, (f"{redact(source)} has no tokenizer: the output will have none",)
    tokenizer = models.tokenizers.of(source, models.tokenizer_files)
    if tokenizer is None or not tokenizer.is_known:
        names = ", ".join([shown(name) for name in models.tokenizer_files if says_tokens(name)][:8])
        return recipe, models, (f"{redact(source)}: the files of the tokenizer are copied and cannot be read ({names}): nobody can tell "
                                "whether rows of the models belong to the same tokens",)  # fmt: skip
    return recipe, models, ()


@dataclass(frozen=True)
class Checked:
    """Models that were compared, and all that was found out on the way, so that a plan reads nothing of it again."""

    recipe: Recipe
    """With the base's tokenizer where the post has none."""
    models: Models
    ids: Mapping[str, Any]
    """Ids of tokens in the base's config that become others, by dotted name."""
    report: HomologyReport


def check_models(recipe: Recipe, models: Models) -> Checked:
    """Compare the models of a recipe. Reads headers, configs, tokenizers and small tensors of integers."""
    recipe, models, notes = with_a_tokenizer(recipe, models)
    report = _checked(recipe, models)
    found, ids = _compared_exactly(recipe, models), ids_of_tokens(recipe, models)
    misnamed = [Mismatch(redact(recipe.tokenizer_url), "special tokens", *problem) for problem in ids.problems]
    report = replace(report, mismatches=(*report.mismatches, *found.mismatches, *misnamed))
    folders = [_folder(models.checkpoints[url], recipe.storage_config) for url in recipe.models if url not in recipe.adapters]
    written = Folder(redact(recipe.tokenizer_url), folders[0].store, models.tokenizer_files, {})
    said = notes_beside(folders[0], models.checkpoints[recipe.base].beside, folders[1:], written)
    merged_too = companions_noted(models.checkpoints[recipe.base], folders[0].url)
    models_of_weights = [models.checkpoints[url] for url in recipe.models if url not in recipe.adapters]
    quantised = schemes_noted(models_of_weights[0], models_of_weights[1:], keeps=recipe.quantization == "keep")
    report = replace(report, notes=(*report.notes, *found.notes, *ids.notes, *notes, *merged_too, *quantised, *said))
    return Checked(recipe, models, ids.changes, report)


def _folder(model: Checkpoint, storage: StorageConfig) -> Folder:
    return Folder(redact(model.url), open_store(model.url, storage), model.side_files, model.others)


def _checked(recipe: Recipe, models: Models) -> HomologyReport:
    opened = models.checkpoints
    base, selection = opened[recipe.base], Selection(recipe.include, recipe.exclude)

    source, written = recipe.tokenizer_url, None
    if source not in opened or opened[source].adapter:
        written = Named(redact(source), models.tokenizers.of(source, models.tokenizer_files), is_model=False)

    def left_out(name: str) -> bool:
        return not selection.has(name)

    def compared(vocab: str) -> HomologyReport:
        others = [opened[url] for url in recipe.models[1:]]
        return compare(
            base, others, recipe.storage_config, vocab=vocab, copied=left_out, missing=recipe.missing, accept=recipe.accept,
            tokenizers=models.tokenizers, written=written, answers=recipe.answers, follows=source != recipe.base,
        )  # fmt: skip

    entries = entries_of(
        [opened[url] for url in recipe.models if url not in recipe.adapters], recipe.answers, recipe.vocab, models.tokenizers
    )
    if any(map(left_out, entries.known)):
        _require_the_bases_tokenizer(recipe, models)
    report = compared(recipe.vocab)
    if recipe.vocab == "strict" and not any(found.subject in ("tokenizer", "shapes") for found in report.mismatches):
        return report
    modes = [mode for mode in VOCABULARY_MODES if not (report if mode == recipe.vocab else compared(mode)).mismatches]
    return replace(report, vocabulary=vocabulary_outcomes(recipe, opened, read_vocabularies(recipe, models), modes))


def ids_of_tokens(recipe: Recipe, models: Models) -> SpecialIds:
    """What the ids of tokens in the base's config become, for the tokenizer that is written.

    Raises InputChanged when a file is another by now, OverBudget when there is no room for one.
    """
    source, base, tokenizers = recipe.tokenizer_url, models.checkpoints[recipe.base], models.tokenizers
    if source == recipe.base:
        return SpecialIds({})
    model = models.checkpoints.get(source)
    ours, theirs = tokenizers.of(recipe.base, base.side_files), tokenizers.of(source, models.tokenizer_files)
    written = read_written(
        redact(source), open_store(source, recipe.storage_config), models.tokenizer_files, model.config if model else None, models.room
    )

    def moved() -> tuple[Vocabulary, Vocabulary] | None:
        if ours is None or theirs is None or tokenizers.same(ours, theirs):
            return None
        one, other = tokenizers.vocabulary(ours), tokenizers.vocabulary(theirs)
        return None if one.ids is None or other.ids is None else (one, other)

    sizes = {size for tensor in base.tensors.values() for size in tensor.shape}
    vocabularies = TokensMoved(moved, lambda: tokenizers.vocabulary(theirs) if theirs is not None else None)
    found = special_ids(base.config, sizes, written, vocabularies, lambda name: is_accepted(name, recipe.accept))
    if theirs is not None and recipe.vocab != "by-token" and (ours is None or theirs.key != ours.key):
        tokenizers.drop(theirs)
    return found


def _compared_exactly(recipe: Recipe, models: Models) -> Agreement:
    """Whether the models that are read agree on what is copied."""
    base, selection = models.checkpoints[recipe.base], Selection(recipe.include, recipe.exclude)
    points = [*recipe.points.values()] if recipe.sweep else [recipe]
    read = dict.fromkeys(url for point in points for url in Resolver(point, base.tensors).models)
    opened = [models.checkpoints[url] for url in read]
    told = {name for model in opened for found in find_quantised(model.tensors, model.config) for name in found.tensors}
    return compare_exact(
        opened, recipe.storage_config, left_out=lambda name: not selection.has(name), told=told, room=models.room
    )  # fmt: skip


def _require_the_bases_tokenizer(recipe: Recipe, models: Models) -> None:
    """Raise UsageError where rows of the base would be written with a tokenizer that gives their numbers to other tokens."""
    source, tokenizers = recipe.tokenizer_url, models.tokenizers
    if source == recipe.base:
        return
    ours = tokenizers.of(recipe.base, models.checkpoints[recipe.base].side_files)
    theirs = tokenizers.of(source, models.tokenizer_files)
    if ours is None or theirs is None or ours.digest == theirs.digest:
        return
    tokens = tokenizers.vocabulary(ours).tokens
    if tokens and tokens == tokenizers.vocabulary(theirs).tokens:
        return
    raise UsageError(
        f"embeddings or output head are left out and so the base's, but {redact(source)}, whose tokenizer is written, has other tokens "
        "than the base: set `tokenizer_from: base`"
    )


def needs_vocabularies(recipe: Recipe, models: Models) -> bool:
    """Whether what the rows are made of is told from tokens: by token always, and by number where one model may have a token in what
    is padding in another."""
    found = [models.tokenizer(url) for url in models.checkpoints]
    return recipe.vocab == "by-token" or (recipe.vocab == "pad" and len({each and each.key for each in found}) > 1)


def read_vocabularies(recipe: Recipe, models: Models) -> dict[str, Vocabulary | None]:
    """The vocabulary of each model, and of the folder whose tokenizer is written, by URL; those that are equal are one.

    Raises OverBudget where there is no room for them, and for finding the rows of their tokens.
    """
    tokenizers = {url: models.tokenizer(url) for url in models.checkpoints}
    source = recipe.tokenizer_url
    written, own = models.tokenizers.of(source, models.tokenizer_files), tokenizers.get(source)
    if source in recipe.adapters and (written and written.key) != (own and own.key):
        raise UsageError(
            f"{redact(source)}, the adapter whose tokenizer is written, has another than the model that it grew from, by whose tokens its "
            "rows are told: copy its tokenizer into a folder of its own, and name that in `tokenizer_from`"
        )
    tokenizers[source] = written
    found = {url: None if tokenizer is None else models.tokenizers.vocabulary(tokenizer) for url, tokenizer in tokenizers.items()}
    if len({None if each is None else each.digest for each in tokenizers.values()}) == 1:  # what cannot be read is the same in all
        found = {url: each and (replace(each, ids={}) if each.ids is None else each) for url, each in found.items()}
    every = {id(vocabulary): len(vocabulary.ids or {}) + len(vocabulary.special) for vocabulary in found.values() if vocabulary is not None}
    models.room.take(sum(every.values()) * ENTRY + max(every.values(), default=0) * (2 * ENTRY + len(found) * ROW), "finding rows by token")
    return found


def open_inputs(
    recipe: Recipe, memory: int | None
) -> tuple[Recipe, tuple[Mapping[str, Checkpoint], Mapping[str, Identity], Vocabularies, Mapping[str, Any]], HomologyReport, Room]:
    """All that a plan is made from: the recipe, with the base's tokenizer where the post has none, the models, the side files of the
    folder that the tokenizer comes from, where they are needed vocabularies, and what ids in the config become; and the room that
    these took. Raises HomologyError when the models do not fit together."""
    checked = check_models(recipe, open_models(recipe, memory=memory))
    checked.report.require()
    recipe, models = checked.recipe, checked.models
    vocabularies = read_vocabularies(recipe, models) if needs_vocabularies(recipe, models) else {}
    return recipe, (models.checkpoints, models.tokenizer_files, vocabularies, checked.ids), checked.report, models.room
