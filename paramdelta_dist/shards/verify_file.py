"""Whether a committed output is still what was committed, and whether its inputs still give it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from blake3 import blake3

from paramdelta_dist.checkpoint import Checkpoint, open_checkpoint
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.encoded import with_logical_tensors
from paramdelta_dist.checkpoint.header import ALIGNMENT
from paramdelta_dist.checkpoint.index import INDEX_NAME, MAX_INDEX
from paramdelta_dist.checkpoint.sidefiles import is_for_people
from paramdelta_dist.errors import CheckpointError, InputError, Interrupted, NotFound
from paramdelta_dist.output.edits import edited, lost_or_changed
from paramdelta_dist.output.hold import find_document, mark_of
from paramdelta_dist.output.names import COMMIT, PLAN, REPORT
from paramdelta_dist.output.receipts import MAX_RECEIPT, Receipt, parse_receipt, receipt_name
from paramdelta_dist.output.sealed_json import read_document
from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.tiles import Tile, cut_tiles, steps_of
from paramdelta_dist.shards.compute import MergeContext
from paramdelta_dist.shards.digests import StreamDigests
from paramdelta_dist.shards.pipeline import MadeTile, tile_pipeline, tile_reader
from paramdelta_dist.storage import Identity, StorageConfig, Store, open_store, stream_object


class TensorDigest(NamedTuple):
    """Bytes [start, stop) of a file and the BLAKE3 they must have."""

    name: str
    start: int
    stop: int
    digest: str


@dataclass(frozen=True)
class VerifyJob:
    """The context that all checks of one output share."""

    output: str
    storage: StorageConfig
    merge: MergeContext | None
    """The context for computing tiles again; None when none are."""


@dataclass(frozen=True)
class FileCheck:
    """A check of one file: its digest, or some of its tiles against the inputs, or both."""

    file: str
    identity: Identity
    digest: str | None
    """Expected BLAKE3; None leaves the file unread."""
    tensors: tuple[TensorDigest, ...]
    """In the order of their bytes, to tell where a difference is."""
    shard: Shard | None
    tiles: tuple[int, ...]
    """Tiles to compute again, by their number in the shard."""

    @property
    def size(self) -> int:
        return self.identity.size if self.digest is not None else 0

    @property
    def bytes_moved(self) -> int:
        return self.size


@dataclass(frozen=True)
class FileVerdict:
    """The outcome of the check of one file."""

    file: str
    problems: tuple[str, ...]
    bytes_read: int
    tiles: int
    """Tiles computed again."""


def read_commit(store: Store) -> dict[str, Any]:
    """The commit of an output. Raises InputError when there is none, IntegrityError when it is not as it was written."""
    try:
        return read_document(store, COMMIT)
    except NotFound:
        raise InputError(f"{store.url}: no finished merge of ours is here ({COMMIT} is missing); `status` tells what is") from None


def check_structure(store: Store, storage: StorageConfig, url: str, commit: Mapping[str, Any]) -> tuple[list[str], Checkpoint | None]:
    """Problems that need no weight read: files and sizes, index against headers, alignment, totals, receipts.

    Also returns the output as a checkpoint, None when it cannot be opened.
    """
    present = store.list() or {}
    problems = []
    for name in lost_or_changed(commit, present):
        if name not in present:
            problems.append(f"{name}: missing")
        else:
            problems.append(f"{name}: {present[name].size} bytes, committed were {commit['files'][name]['size']}")
    found = {name: find_document(store, name) for name in (PLAN, REPORT)}
    unreadable = [name for name, document in found.items() if document is None]
    problems += [f"{name}: missing or not as it was written; the same merge, run again, writes it anew" for name in unreadable]
    plan = found[PLAN]
    if plan is not None and (plan.get("fingerprint"), mark_of(plan)) != (commit["fingerprint"], mark_of(commit)):
        problems.append(f"{COMMIT}: another run has taken the output since: its {PLAN} is not the one that was committed")
    strangers = [name for name in present if name.endswith((".safetensors", ".safetensors.index.json")) and name not in commit["files"]]
    problems += [f"{name}: not part of the commit" for name in strangers]
    for file, entry in _shards(commit).items():
        receipt = read_receipt(store, file, present)
        if receipt is None:
            problems.append(f"{receipt_name(file)}: missing or not as it was written")
        elif (receipt.fingerprint, receipt.size, receipt.digest) != (commit["fingerprint"], entry["size"], entry["digest"]):
            problems.append(f"{receipt_name(file)}: not the receipt of the committed file")
    try:
        checkpoint = open_checkpoint(url, storage)
    except CheckpointError as error:
        return [*problems, str(error)], None
    return problems + _layout_problems(store, checkpoint), checkpoint


def find_edits(store: Store, commit: Mapping[str, Any], verdicts: Sequence[FileVerdict]) -> list[str]:
    """The files that people may edit (the card, licences) and that are not what was committed, as far as was looked."""
    found = {verdict.file for verdict in verdicts if verdict.problems and is_for_people(verdict.file)}
    return sorted(found | set(edited(commit, store.list() or {})))


def _layout_problems(store: Store, checkpoint: Checkpoint) -> list[str]:
    problems = []
    for name, tensor in checkpoint.tensors.items():
        file = checkpoint.files[tensor.file].name
        if tensor.start % DTYPES[tensor.dtype].itemsize:
            problems.append(f"{file}: tensor {name!r} starts at byte {tensor.start}, which is not aligned to {tensor.dtype}")
    firsts = {tensor.file: tensor.start for tensor in reversed(checkpoint.tensors.values())}
    problems += [
        f"{checkpoint.files[n].name}: data starts at byte {start}, not aligned to {ALIGNMENT}"
        for n, start in firsts.items()
        if start % ALIGNMENT
    ]
    if len(checkpoint.files) > 1:
        metadata = json.loads(store.read(INDEX_NAME, limit=MAX_INDEX)).get("metadata") or {}
        parameters = with_logical_tensors(checkpoint).parameters
        for key, value in (("total_size", checkpoint.nbytes), ("total_parameters", parameters)):
            if metadata.get(key) != value:
                problems.append(f"{INDEX_NAME}: {key} is {metadata.get(key)}, the headers give {value}")
    return problems


def _shards(commit: Mapping[str, Any]) -> dict[str, Any]:
    """What the merge made; weights that were copied beside it have no receipt."""
    return {name: entry for name, entry in commit["files"].items() if name.endswith(".safetensors") and "from" not in entry}


def read_receipt(store: Store, file: str, present: Mapping[str, Identity]) -> Receipt | None:
    name = receipt_name(file)
    return parse_receipt(store.read(name, limit=MAX_RECEIPT)) if name in present else None


def plan_checks(
    store: Store,
    commit: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    *,
    deep: bool,
    tiles: Mapping[str, tuple[Shard, tuple[int, ...]]],
) -> list[FileCheck]:
    """One check for each committed file that is there and is to be read: all with `deep`, else those with `tiles`."""
    present = store.list() or {}
    ranges: dict[str, list[tuple[str, int, int]]] = {}
    for name, tensor in (checkpoint.tensors if checkpoint else {}).items():
        assert checkpoint is not None
        ranges.setdefault(checkpoint.files[tensor.file].name, []).append((name, tensor.start, tensor.stop))
    checks = []
    for file, entry in commit["files"].items():
        if file not in present or not (deep or file in tiles) or (is_for_people(file) and present[file].size != entry["size"]):
            continue
        receipt = read_receipt(store, file, present) if deep and file in ranges else None
        digests = receipt.tensors if receipt else {}
        located = tuple(
            TensorDigest(n, a, b, digests[n]) for n, a, b in sorted(ranges.get(file, []), key=lambda r: r[1:]) if n in digests and a < b
        )
        shard, numbers = tiles.get(file, (None, ()))
        checks.append(FileCheck(file, present[file], entry["digest"] if deep else None, located, shard, numbers))
    return checks


def choose_tiles(shards: Sequence[Shard], *, tile_size: int, fraction: float, seed: int | None) -> dict[str, tuple[Shard, tuple[int, ...]]]:
    """A random `fraction` of all tiles, at least one, by file."""
    every = [(shard, number) for shard in shards for number, _ in enumerate(cut_tiles(shard, tile_size=tile_size))]
    chosen = random.Random(seed).sample(every, min(len(every), max(1, round(fraction * len(every)))))
    return {
        shard.file: (shard, tuple(sorted(number for other, number in chosen if other.file == shard.file)))
        for shard in {chosen_shard.file: chosen_shard for chosen_shard, _ in chosen}.values()
    }


def check_file(job: VerifyJob, check: FileCheck, *, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> FileVerdict:
    """Read and compare what `check` asks for. Problems are results; only what prevents looking is raised."""
    store = open_store(job.output, job.storage)
    problems: list[str] = []
    bytes_read = 0
    if check.digest is not None:
        problems += _digest_problems(store, check, advance, cancelled)
        bytes_read += check.identity.size
    if check.shard is not None and job.merge is not None:
        found, amount = _recomputed(job.merge, store, check, check.shard, cancelled)
        problems += found
        bytes_read += amount
    return FileVerdict(check.file, tuple(problems), bytes_read, len(check.tiles))


def _digest_problems(store: Store, check: FileCheck, advance: Callable[[int], None], cancelled: Callable[[], bool]) -> Iterator[str]:
    digests = StreamDigests([(tensor.start, tensor.stop) for tensor in check.tensors])
    for piece in stream_object(store, check.file, check.identity):
        if cancelled():
            raise Interrupted("stopped")
        digests.update(piece)
        advance(len(piece))
    if digests.whole == check.digest:
        return
    altered = [tensor.name for tensor, digest in zip(check.tensors, digests.of_ranges, strict=False) if digest != tensor.digest]
    if altered:
        yield from (f"{check.file}: the bytes of tensor {name!r} were altered" for name in altered)
    else:
        place = "the header was altered" if check.tensors else "its bytes were altered"
        yield f"{check.file}: {place}: the digest is not the committed one"


def _recomputed(job: MergeContext, store: Store, check: FileCheck, shard: Shard, cancelled: Callable[[], bool]) -> tuple[list[str], int]:
    """Compute tiles from the inputs again and compare; returns problems and bytes read."""
    wanted = _with_their_codes(shard, set(check.tiles), job.tile_size)
    problems, bytes_read = [], 0
    with tile_reader(job, shard) as reader, tile_pipeline(job, shard, reader) as pipeline:
        for made in pipeline.make(steps_of(wanted, tile_size=job.tile_size)):
            if cancelled():
                raise Interrupted("stopped")
            held = store.read_range(check.file, made.tile.start, made.tile.stop, identity=check.identity)
            bytes_read += len(held)
            if blake3(held).digest() != blake3(made.data).digest():  # comparing views goes byte by byte
                problems += [f"{check.file}: {where}: not what the inputs give" for where in _differing(made, held)]
        return problems, bytes_read + pipeline.reader.bytes_read


def _with_their_codes(shard: Shard, chosen: Collection[int], tile_size: int) -> list[Tile]:
    """The chosen tiles, and those that make the codes whose scales are in one of them."""
    found: list[Tile] = []
    scaled: set[int] = set()
    for number, tile in reversed(list(enumerate(cut_tiles(shard, tile_size=tile_size)))):  # scales come behind their codes
        tensors = {segment.span.parts[0].tensor.start for segment in tile.segments if segment.span.encoded is not None}
        if number in chosen or not scaled.isdisjoint(tensors):
            found.append(tile)
            scaled |= {segment.span.parts[0].tensor.start for segment in tile.segments if segment.span.trails}
    return found[::-1]


def _differing(made: MadeTile, held: memoryview) -> Iterator[str]:
    """The tensors of a tile whose bytes differ, and the elements looked at."""
    for segment in made.tile.segments:
        span = segment.span
        begin, end = (span.start + span.output_bytes(element) for element in (segment.first, segment.last))
        if span.encoded is not None or span.trails:
            name, _, _ = list(span.parts[0].tensor.arrays)[int(span.trails)]
            part = slice(begin - made.tile.start, end - made.tile.start)
            if held[part] != made.data[part]:
                yield f"tensor {name!r}, bytes [{begin}, {end}) of the file"
            continue
        width = DTYPES[span.dtype].itemsize
        for each in span.parts:
            start, stop = max(each.start, made.tile.start), min(each.start + each.elements * width, end)
            part = slice(start - made.tile.start, stop - made.tile.start)
            if start < stop and held[part] != made.data[part]:
                first, last = (each.first + (byte - each.start) // width for byte in (start, stop))
                yield f"tensor {each.tensor.name!r}, elements [{first}, {last})"
