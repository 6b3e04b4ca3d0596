"""Units of work that publish a file and its receipt as a shard does, and behave meanwhile as a test says. Imported by Ray's workers."""

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from paramdelta_dist.engine.metrics import METER, WRITTEN_BYTES
from paramdelta_dist.errors import Interrupted
from paramdelta_dist.output.receipts import Receipt, receipt_name
from paramdelta_dist.storage import StorageConfig, open_store


@dataclass(frozen=True)
class Piece:
    file: str
    acts: tuple[str, ...] = ()
    """What each attempt does, in the order they begin; those beyond it just work.

    `stop`: waits to be told to stop, and stops. `late`: waits to be told, then publishes all the same. `hang`: publishes its file
    when told to stop, and is stuck then. `stuck`: is stuck before. `last`: waits until all other files of the board are there.
    """
    size: int = 1000
    others: int = 0
    """How many other files there will be, for `last`."""

    @property
    def bytes_moved(self) -> int:
        return self.size


@dataclass(frozen=True)
class Board:
    """Where the units publish, and where they note what they do."""

    folder: str
    storage: StorageConfig = field(default_factory=StorageConfig)
    padding: int = 0
    """Bytes to make a receipt larger by."""


def act(board: Board, piece: Piece, *, advance, cancelled) -> Receipt:
    notes = Path(board.folder + ".notes")
    attempt = begin(notes, piece.file)
    what = piece.acts[attempt] if attempt < len(piece.acts) else "work"
    store = open_store(board.folder, board.storage)
    if what in ("stop", "late", "hang", "stuck"):
        wait(cancelled)
    if what == "stuck":
        time.sleep(1000)
    if what == "last":
        wait(lambda: len(list(Path(board.folder).glob("*.safetensors"))) == piece.others)
    if what == "work":
        time.sleep(0.05)
    if what == "stop":
        raise Interrupted("stopped")
    if what == "late":
        time.sleep(0.5)
    data = piece.file.encode() * (piece.size // len(piece.file))
    identity = store.put(piece.file, [data], size=len(data))
    if what == "hang":
        time.sleep(1000)
    receipt = Receipt(
        file=piece.file,
        fingerprint="",
        size=identity.size,
        tag=identity.tag,
        digest=blake3(data).hexdigest(),
        tensors={"padding": "0" * board.padding},
        bytes_read=0,
        bytes_written=len(data),
        requests=0,
        nonfinite=0,
        seconds=0.0,
        peak_memory=0,
        worker=f"attempt {attempt}",
    )
    store.write(receipt_name(piece.file), receipt.to_json())
    advance(piece.size)
    return receipt


def begin(notes: Path, file: str) -> int:
    """Which attempt this is, from 0."""
    notes.mkdir(exist_ok=True)
    for number in range(100):
        try:
            os.close(os.open(notes / f"{file}.{number}", os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            continue
    raise AssertionError(f"{file} began a hundred times")


def wait(condition) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@dataclass(frozen=True)
class Nap:
    """A unit that takes its time on whatever node it is given to, in steps."""

    file: str
    seconds: float = 0.1
    size: int = 1000
    says: str = ""
    """What it warns of."""
    enough: str = ""
    """A file; once it is there, the unit takes no time."""

    @property
    def bytes_moved(self) -> int:
        return self.size


def nap(job: None, unit: Nap, *, advance, cancelled) -> tuple[str, str]:
    """The file, and the id of the node it was made on."""
    import ray

    if unit.says:
        logging.getLogger("paramdelta_dist.tests").warning(unit.says)
    for _ in range(20):
        if cancelled():
            raise Interrupted("stopped")
        time.sleep(0 if unit.enough and Path(unit.enough).exists() else unit.seconds / 20)
        METER.add(WRITTEN_BYTES, unit.size // 20)
        advance(unit.size // 20)
    return unit.file, ray.get_runtime_context().get_node_id()
