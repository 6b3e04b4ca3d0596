"""Memory as arithmetic: what a process will need at its peak, and the tile size that keeps it under the budget."""

from __future__ import annotations

from dataclasses import dataclass

from paramdelta_dist.errors import OverBudget
from paramdelta_dist.methods import Method
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.planning.tiles import SLACK, WASTE
from paramdelta_dist.sizes import format_memory
from paramdelta_dist.storage import PARTS_IN_FLIGHT, WRITE_MEMORY, part_size

REMOTE_TILE = 16 << 20
"""Tile size where a request costs a round trip: what object stores serve well. Larger ones use a connection better, but
clearing fresh memory for them costs more than that gains."""
LOCAL_TILE = 4 << 20
"""Tile size on local disks, where small pieces stay in the processor's caches."""
SMALLEST_TILE = 256 << 10

REMOTE_COPIES = 1.25
"""Times the bodies under way are in memory: with those that were freed and not yet given back."""

REQUESTS_IN_FLIGHT = 16
"""Requests a shard keeps under way to a remote store, memory permitting."""
LOCAL_READERS = 2
"""Reads a shard keeps under way from local disks."""
OUTPUTS = 2
"""Output buffers for each thread that makes tiles: one being filled, one being written."""

BLOCK_BYTES = (1 << 18) * 8
"""One scratch block of the kernel at its widest; a test holds it to the kernel's own constant."""

RESERVED = 384 << 20
"""The interpreter with torch, the storage clients and their threads: measured 250 to 350 MiB, see the memory test."""
TENSOR_RECORD = 1 << 10
"""What is known of one tensor of one model while a plan is made and carried out: measured 850 bytes."""
RESERVED_BY_RAY = 128 << 20
"""What a Ray worker adds to that."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The memory plan of one process."""

    budget: int
    workers: int
    """Shards it makes at a time."""
    threads: int
    """That make tiles of one shard."""
    tile_size: int
    tiles_in_flight: int
    """Tiles of one shard that are being fetched, being made, or wait for either."""
    projected: int
    """Peak resident memory of the process, in bytes, as calculated."""


def plan_memory(
    plan: MergePlan,
    method: Method,
    *,
    budget: int,
    workers: int,
    threads: int,
    remote_inputs: bool,
    remote_output: bool,
    reserved: int,
) -> WorkerMemory:
    """The largest tiles and the most requests in flight that fit `budget` bytes for a process that makes `workers` shards
    at a time with `threads` threads each.

    `reserved` bytes are taken before the first tile.

    Raises OverBudget, naming the two ways out, when even the smallest do not.
    """
    models = max((sum(source is not None for source in tensor.sources) for shard in plan.shards for tensor in shard.tensors), default=1)
    header = max(len(shard.header) for shard in plan.shards)
    wanted = -(-REQUESTS_IN_FLIGHT // models) if remote_inputs else LOCAL_READERS
    wanted += OUTPUTS * threads
    tile = REMOTE_TILE if remote_inputs or remote_output else LOCAL_TILE

    def projected(tile: int, in_flight: int) -> int:
        copies = REMOTE_COPIES if remote_inputs else 1
        buffers = int(in_flight * models * copies * (tile + tile // WASTE + SLACK))
        output = OUTPUTS * threads * tile + (_parts(plan, tile) if remote_output else WRITE_MEMORY)
        scratch = threads * (1 + method.scratch) * BLOCK_BYTES * 2 + 2 * header
        return reserved + workers * (buffers + output + scratch)

    in_flight = wanted
    while projected(tile, in_flight) > budget:
        if in_flight > 2:
            in_flight -= 1
        elif tile > SMALLEST_TILE:
            tile //= 2
        else:
            needed = projected(tile, in_flight)
            count = workers * threads
            fewer = f"fewer workers than {count} (--workers), or " if count > 1 else ""
            raise OverBudget(
                f"{models} models need at least {format_memory(needed)} in a process of {count} worker{'s' * (count > 1)}, "
                f"the budget is {format_memory(budget)}: allow {fewer}more memory (--memory {-(-needed >> 20)}MiB)"
            )
    return WorkerMemory(budget, workers, threads, tile, in_flight, projected(tile, in_flight))


def _parts(plan: MergePlan, tile: int) -> int:
    """Bytes an upload holds: parts under way and being filled, and the copies of tiles they are cut from."""
    largest = max(shard.size for shard in plan.shards)
    return (PARTS_IN_FLIGHT + 2) * part_size(largest) + 2 * tile
