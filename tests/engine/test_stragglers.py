"""Late units on a real Ray: they get copies, and whatever the loser does, what is in the output is what the result says."""

import time
from contextlib import closing
from pathlib import Path

import pytest
import ray

from paramdelta_dist.engine.ray.executor import RayExecutor
from paramdelta_dist.engine.schedule import TIMES, Times
from paramdelta_dist.output.hold import RUN, new_mark, write_plan
from paramdelta_dist.output.kept_shards import require_shards
from paramdelta_dist.storage import StorageConfig, open_store
from tests.acting_units import Board, Piece, act, wait


@pytest.fixture(scope="module")
def cluster(shared_ray):
    ray.init(address=shared_ray, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def board(cluster, tmp_path):
    return Board(str(tmp_path / "out"))


class Run:
    """What a run over the pieces gave: result by file, the bytes that were reported, seconds, and how often each file was begun."""

    def __init__(self, board, pieces, workers, times=TIMES):
        self.bytes, began = 0, time.monotonic()
        self.executor = RayExecutor(workers, memory=1 << 20, times=times)
        with closing(self.executor.run(act, board, pieces, advance=self.advance)) as results:
            self.receipts = {receipt.file: receipt for receipt in results}
        self.seconds = time.monotonic() - began
        assert set(self.receipts) == {piece.file for piece in pieces}
        assert self.bytes == sum(piece.size for piece in pieces)

    def advance(self, size):
        self.bytes += size


def pieces(count, *acts, size=1000):
    """The last of them is the one that acts: nothing waits in the queue when it begins, so that it gets a copy and no restart."""
    return [Piece(f"{number:03}.safetensors", acts if number == count - 1 else (), size) for number in range(count)]


@pytest.mark.parametrize(
    ("acts", "told_by"),
    [
        (("stop",), "attempt 1"),
        (("late",), "attempt 0"),
        (("hang",), "attempt 1"),
        (("stuck",), "attempt 1"),
    ],
)
def test_a_late_unit_gets_a_copy_and_the_loser_cannot_spoil_the_result(acts, told_by, board):
    run = Run(board, pieces(12, *acts), workers=2, times=Times(stop=2.0))
    assert run.executor.stats.copies == 1
    assert run.executor.stats.retries == 0
    assert run.receipts["011.safetensors"].worker == told_by
    store = open_store(board.folder, StorageConfig())
    hold = write_plan(store, {RUN: new_mark()}, None)
    before = store.list()
    held = require_shards(store, hold, run.receipts)
    time.sleep(0.7)
    after = store.list()
    assert {file: receipt.identity for file, receipt in held.items()} == {file: after[file] for file in held}
    assert {name: after[name] for name in held} == {name: before[name] for name in held}, "nobody writes after the results are known"
    if acts != ("hang",):
        assert held == run.receipts, "nothing had to be read again to find that out"


def test_a_unit_that_waits_behind_a_long_one_moves_to_an_idle_worker(board):
    first, *others = pieces(12)
    long = Piece(first.file, ("last",) * 3, others=len(others))
    run = Run(board, [long, *others], workers=2)
    assert run.executor.stats.retries == 0


def test_results_larger_than_a_message_of_ray_come_back(cluster, tmp_path):
    run = Run(Board(str(tmp_path / "out"), padding=1 << 20), pieces(6), workers=2)
    assert {len(receipt.tensors["padding"]) for receipt in run.receipts.values()} == {1 << 20}


def test_a_run_that_is_abandoned_publishes_nothing_more(board):
    stuck = Piece("stuck.safetensors", ("stop", "stop", "stop"))
    executor = RayExecutor(2, memory=1 << 20)
    with closing(executor.run(act, board, [stuck, *pieces(4)], advance=lambda size: None)) as results:
        next(results)
        began(board, "stuck.safetensors")
    assert stuck.file not in (open_store(board.folder, StorageConfig()).list() or {})


def began(board, file):
    """Wait until some worker is at a file."""
    wait(lambda: Path(f"{board.folder}.notes/{file}.0").exists())
