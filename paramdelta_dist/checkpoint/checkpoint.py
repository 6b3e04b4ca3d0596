"""A checkpoint: a model folder at a URL, known by its headers alone. Opening one reads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

from paramdelta_dist.checkpoint.beside import Beside
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import LENGTH_FIELD, Tensor, WeightFile, damaged, header_length, shown
from paramdelta_dist.checkpoint.index import INDEX_NAME, MAX_INDEX, SINGLE_NAME
from paramdelta_dist.checkpoint.parsing import Parser
from paramdelta_dist.checkpoint.places import refuse_absent, refuse_place, refuse_two_models
from paramdelta_dist.checkpoint.room import Room, json_cost
from paramdelta_dist.checkpoint.sidefiles import SIDE_FILE_NAMES, is_side_file, is_side_folder
from paramdelta_dist.checkpoint.standins import FIRST_BYTES, refuse_stand_in, require_own_files
from paramdelta_dist.checkpoint.tied import Tie, find_tie
from paramdelta_dist.errors import CheckpointError, CredentialsError, InputError, NotFound
from paramdelta_dist.kernels.encodings import Space
from paramdelta_dist.storage import NO_FILE, Identity, StorageConfig, Store, closed_folders, open_input, read_whole, scheme_of
from paramdelta_dist.threads import Threads

CONFIG_NAME = "config.json"
MAX_CONFIG = 16 << 20
MAX_NESTING = 64
"""Levels a config may have: far above any real one, far below what Python's recursion bears."""
FIRST_READ = 256 << 10
"""Bytes read of a file in the hope that they hold its whole header."""
HEADERS_IN_FLIGHT = 32
NOTHING_BESIDE = Beside({}, ())


class Companion(NamedTuple):
    """The place of a tensor that lies beside the model and is merged with it."""

    file: str
    name: str
    """Its name in that file."""


class Adapter(NamedTuple):
    """Mark of a folder that is an adapter: it holds what is added to a model, and no model."""

    base: str
    """URL of the model that it grew from, whose names its tensors have; what it does not have is not changed."""
    notes: tuple[str, ...] = ()


class Pairing(NamedTuple):
    """The outcome of looking for the tensors of a model under the names and shapes of the base's."""

    notes: tuple[str, ...] = ()
    """Relations that are not the identity, one for each kind."""
    problems: tuple[tuple[str, str], ...] = ()
    """Each with the way on."""
    told: frozenset[str] = frozenset()
    """Tensors of the base that the problems speak of."""
    absent: frozenset[str] = frozenset()
    """Tensors of the base in parts that the model goes without: they are the base's."""
    surplus: frozenset[str] = frozenset()
    """Tensors of the model in parts that the base goes without: they are left out."""


AS_IT_IS = Pairing()
"""All that the base has, under its names."""


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, known by its headers. Tensors are in the order of the files and, inside a file, of the bytes."""

    url: str
    files: tuple[WeightFile, ...]
    tensors: Tensors
    config: dict[str, Any] | None
    """Content of config.json; None where there is none."""
    side_files: dict[str, Identity]
    """config, tokenizer and other small files that are known to belong to a model, by relative name."""
    orphans: tuple[str, ...]
    """Weight files in the folder that the index does not name; never read."""
    closed: tuple[str, ...] = ()
    """Folders in it that may not be listed; none that a file of a model would be looked for in."""
    others: Mapping[str, Identity] = field(default_factory=dict)
    """Whatever else lies in the folder, by relative name."""
    beside: Beside = NOTHING_BESIDE
    """Those of them that go along with a merge, and those that stay behind; told of the base of a merge alone."""
    companions: Mapping[str, Companion] = field(default_factory=dict)
    """Of each tensor that lies beside the model and is merged with it, by the name that it has here."""
    tie: Tie | None = None
    """Copies of the input embeddings, where the config does not say that they are others."""
    adapter: Adapter | None = None
    """None for a model."""
    pairing: Pairing = AS_IT_IS
    """Told of a model that is merged onto another; its tensors then have the names and shapes of that one's."""

    @property
    def space(self) -> Space:
        """The meaning of its numbers: an adapter holds deltas, and what it lacks is a delta of zero."""
        return Space.WEIGHT if self.adapter is None else Space.DELTA

    @cached_property
    def nbytes(self) -> int:
        tensors = self.tensors.values()
        return sum([tensor.stop - tensor.start if tensor.encoded is None else tensor.nbytes for tensor in tensors])

    @cached_property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors.values())

    @property
    def architecture(self) -> str | None:
        names = (self.config or {}).get("architectures")
        return str(names[0]) if isinstance(names, list) and names else None

    @cached_property
    def tied_embeddings(self) -> bool:
        """Whether input and output embeddings are one tensor: as the config says, else as the tensors show."""
        config = self.config or {}
        for table in (config, config.get("text_config")):
            if isinstance(table, dict) and isinstance(table.get("tie_word_embeddings"), bool):
                return bool(table["tie_word_embeddings"])
        return not any(name.endswith(("lm_head.weight", "output.weight", "embed_out.weight")) for name in self.tensors)


def open_checkpoint(url: str, storage: StorageConfig) -> Checkpoint:
    """The checkpoint at a normalized URL, its headers read concurrently and fully validated.

    Raises CheckpointError when there is none, or when index, headers and file sizes do not agree.
    """
    return open_checkpoints([url], storage)[url]


def open_checkpoints(urls: Sequence[str], storage: StorageConfig, room: Room | None = None) -> dict[str, Checkpoint]:
    """Several at the same time, by URL, in as much memory as there is `room`, else OverBudget is raised. Where headers are the
    same, so are the objects that tell of their tensors."""
    parser = Parser(room)
    with Threads(max(1, len(urls))) as pool:
        return dict(zip(urls, pool.map(lambda url: _open(url, storage, parser), urls), strict=True))


def _open(url: str, storage: StorageConfig, parser: Parser) -> Checkpoint:
    try:
        return _read(url, storage, parser)
    except InputError as error:
        if type(error) in (InputError, NotFound):  # a file that is there and cannot be one of a checkpoint
            raise CheckpointError(str(error)) from error
        raise


def _read(url: str, storage: StorageConfig, parser: Parser) -> Checkpoint:
    store = open_input(url, storage)
    listed = store.list()
    if listed is not None and not listed:
        if scheme_of(url) == "hf":
            store.identify(CONFIG_NAME)  # which says whether there is such a repository
        refuse_absent(store, url)
    present = probed(store, (INDEX_NAME, SINGLE_NAME, *SIDE_FILE_NAMES)) if listed is None else listed
    weight_map = _weight_map(store, present, parser)
    names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_NAME]
    present |= probed(store, [name for name in names if name not in present])  # also what lies in a folder that may not be listed
    missing = [name for name in names if name not in present]
    for name in missing:
        if any(present.get(folder) == NO_FILE for folder in _folders(name)):
            store.identify(name)  # which says where the link leads that is there in place of a folder
    if missing:
        raise damaged(f"{store.url}: {INDEX_NAME} names files that are not there: {_some(missing)}")
    side_files, closed = _side_files(store, url, present)
    files = tuple(WeightFile(name, present[name]) for name in names)
    with Threads(HEADERS_IN_FLIGHT) as pool:
        texts = pool.map(lambda file: read_header(store, file, parser.room), files)
        headers = []
        for position, (file, text) in enumerate(zip(files, texts, strict=True)):
            headers.append(parser.header(text, file_size=file.identity.size, where=f"{store.url}/{file.name}", file=position))
            parser.room.give_back(len(text))
    tensors = parser.table(names, headers, weight_map)
    if tensors is None:
        _refuse(store.url, names, headers, weight_map or {})
    if not tensors:
        raise damaged(f"{store.url}: the checkpoint holds no tensors")
    config = read_config(store, CONFIG_NAME, present[CONFIG_NAME], parser.room) if CONFIG_NAME in present else None
    known = {*side_files, *names, INDEX_NAME}
    return Checkpoint(
        url=url,
        files=files,
        tensors=tensors,
        config=config,
        side_files=side_files,
        orphans=tuple(sorted(name for name in present if name.endswith(".safetensors") and name not in set(names))),
        closed=closed,
        others={name: identity for name, identity in present.items() if name not in known},
        tie=find_tie(store, files, tensors, config),
    )


def find_side_files(url: str, storage: StorageConfig) -> dict[str, Identity]:
    """The known small files of a folder that need not hold weights, by relative name.

    Raises CheckpointError when there are none.
    """
    store = open_input(url, storage)
    listed = store.list()
    present = probed(store, SIDE_FILE_NAMES) if listed is None else listed
    found, _ = _side_files(store, url, present)
    if not found:
        raise CheckpointError(
            f"{store.url}: no tokenizer or other model files here; name a folder that has them (`tokenizer_from`), or leave the key out"
        )
    return found


def _side_files(store: Store, url: str, present: Mapping[str, Identity]) -> tuple[dict[str, Identity], tuple[str, ...]]:
    """The side files among what is there, each of which can be read and is what it is called; and the folders that may not be listed."""
    closed = () if scheme_of(url) else closed_folders(url)
    hiding = [folder for folder in closed if is_side_folder(folder)]
    if hiding:
        raise CredentialsError(
            f"{store.url}/{hiding[0]}: permission denied, so that the files of the model in this folder cannot be listed; "
            "check its owner and mode"
        )
    for name, identity in present.items():
        if identity == NO_FILE and is_side_folder(name):
            store.identify(name)  # which says what it is in place of a folder
    found = {name: identity for name, identity in sorted(present.items()) if is_side_file(name)}
    require_own_files(store, found)
    return found, closed


def _folders(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def probed(store: Store, names: Iterable[str]) -> dict[str, Identity]:
    """Those of the names that there is an object of, where a store cannot list."""

    def probe(name: str) -> tuple[str, Identity] | None:
        try:
            return name, store.identify(name)
        except NotFound:
            return None

    with Threads(HEADERS_IN_FLIGHT) as pool:
        return dict(hit for hit in pool.map(probe, names) if hit is not None)


def _weight_map(store: Store, present: dict[str, Identity], parser: Parser) -> dict[str, str] | None:
    """The index's map; None for a single-file checkpoint."""
    if INDEX_NAME in present:
        identity, where = present[INDEX_NAME], f"{store.url}/{INDEX_NAME}"
        with parser.room.taken(identity.size, where):
            text = read_whole(store, INDEX_NAME, identity, limit=MAX_INDEX)
            refuse_stand_in(bytes(text[:FIRST_BYTES]), where=where)
            weight_map = parser.index(text, where=where)
        refuse_two_models(store, present, weight_map)
        return weight_map
    if SINGLE_NAME not in present:
        refuse_place(store, present)
    return None


def read_header(store: Store, file: WeightFile, room: Room) -> bytes:
    """The JSON of a file's header, in room that is the caller's to give back."""
    where, size = f"{store.url}/{file.name}", file.identity.size
    first = store.read_range(file.name, 0, min(FIRST_READ, size), identity=file.identity)
    length = header_length(first, file_size=size, where=where)
    stop = LENGTH_FIELD + length
    room.take(length, where)
    if stop > len(first):
        first = store.read_range(file.name, 0, stop, identity=file.identity)
    return bytes(first[LENGTH_FIELD:stop])


def _refuse(url: str, names: list[str], headers: list[dict[str, Tensor]], index: dict[str, str]) -> NoReturn:
    """Raise CheckpointError for the first place where index and headers differ."""
    for file, header in zip(names, headers, strict=True):
        for name in header:
            named = index.get(name)
            if named != file:
                if named is not None and name in headers[names.index(named)]:
                    raise damaged(f"{url}: tensor {shown(name)} is in {file} and again in {named}; the index names the second")
                problem = "does not name it" if named is None else f"says {named}"
                raise damaged(f"{url}: tensor {shown(name)} is in {file}, but {INDEX_NAME} {problem}")
    present = set().union(*headers)
    absent = [name for name in index if name not in present]
    raise damaged(
        f"{url}: {INDEX_NAME} names tensors that their files do not hold: {_some(absent)} (in {index[absent[0]]}); "
        "index and files are of different versions, or a file was replaced"
    )


def read_config(store: Store, name: str, identity: Identity, room: Room) -> dict[str, Any]:
    """The content of a config. Raises CheckpointError when it is no JSON object, InputChanged when it is another by now."""
    where = f"{store.url}/{name}"
    data = read_whole(store, name, identity, limit=MAX_CONFIG)
    room.take(len(data) + json_cost(data), where)
    try:
        value = json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: not valid JSON ({str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise damaged(f"{where}: not a JSON object")
    _refuse_deep_nesting(value, where)
    return value


def _refuse_deep_nesting(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [child for parent in level if isinstance(parent, (dict, list)) for child in _children(parent)]
    if level:
        raise damaged(f"{where}: nested more than {MAX_NESTING} levels deep; no config of a model is")


def _children(parent: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return parent.values() if isinstance(parent, dict) else parent


def dtype_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters by dtype, in the order of the dtype table."""
    counts = dict.fromkeys(DTYPES, 0)
    for tensor in checkpoint.tensors.values():
        counts[tensor.dtype] += tensor.parameters
    present = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return {name: count for name, count in counts.items() if name in present}


def _some(names: list[str]) -> str:
    first = ", ".join(map(shown, names[:3]))
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
