"""Memory as arithmetic: what a process will need at its peak, and the tile size that keeps it under the budget."""

from __future__ import annotations

from dataclasses import dataclass

from paramdelta_dist.errors import OverBudget
from paramdelta_dist.kernels.blocks import METHOD_BLOCK
from paramdelta_dist.methods import Method
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.planning.spans import Span, find_kinds
from paramdelta_dist.planning.tiles import LARGEST_REQUEST, SLACK, WASTE, is_streamed, needs_of
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

BLOCK_BYTES = METHOD_BLOCK * 8
"""One scratch block of the kernel at its widest."""

DECODED = 3
"""Blocks of encoded numbers that a thread holds besides one of each model: the result, what no codes may equal, and a matrix before it
is turned."""
KERNELS = 8 << 20
"""Bytes that kernels which draw numbers or add in float64 keep in each thread."""
RESERVED = 384 << 20
"""The interpreter with torch, the storage clients and their threads: measured 250 to 350 MiB, see the memory test."""
TENSOR_RECORD = 1 << 10
"""Bytes of the record of one tensor of one model while a plan is made and carried out: measured 850."""
RESERVED_BY_RAY = 128 << 20
"""Bytes that a Ray worker adds to that."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The memory plan of one process."""

    budget: int
    shards_at_once: int
    """Shards that the process makes at a time."""
    threads_per_shard: int
    """Threads that make tiles of one shard."""
    tile_size: int
    tiles_in_flight: int
    """Tiles of one shard that are being fetched, being made, or wait for either."""
    projected: int
    """Peak resident memory of the process, in bytes, as calculated."""

    def as_document(self) -> dict[str, int]:
        """The plan as plain values, under the names that documents have had from the first version on."""
        return {
            "budget": self.budget,
            "workers": self.shards_at_once,
            "threads": self.threads_per_shard,
            "tile_size": self.tile_size,
            "tiles_in_flight": self.tiles_in_flight,
            "projected": self.projected,
        }


def plan_memory(
    plan: MergePlan,
    method: Method,
    *,
    budget: int,
    shards_at_once: int,
    threads_per_shard: int,
    remote_inputs: bool,
    remote_output: bool,
    reserved: int,
    points: int = 1,
    least: int = 0,
) -> WorkerMemory:
    """The largest tiles and the most requests in flight that fit `budget` bytes for a process that makes `shards_at_once`, each
    with `threads_per_shard` threads each.

    Where the method reduces tensors first, tiles are as large as it takes, within the budget, to have as many tensors as
    possible in one piece, because those are read once. `reserved` bytes are taken before the first tile. `points` outputs
    are made at a time from what is read once; `least` bytes are needed before the first shard or after the last.

    Raises OverBudget, naming the two ways out, when even the smallest do not.
    """
    models = max((sum(source is not None for source in tensor.sources) for shard in plan.shards for tensor in shard.tensors), default=1)
    header = max(len(shard.header) for shard in plan.shards)
    needs = _needs(plan, method)
    tiles = [max(tile, needs.smallest) for tile in (REMOTE_TILE if remote_inputs or remote_output else LOCAL_TILE,)]
    tiles = sorted({*tiles, *(size for size in needs.wholes if size > tiles[0])}, reverse=True)

    def wanted(tile: int) -> int:
        requests = models * -(-tile // LARGEST_REQUEST)
        return (-(-REQUESTS_IN_FLIGHT // requests) if remote_inputs else LOCAL_READERS) + OUTPUTS * threads_per_shard

    def projected(tile: int, in_flight: int) -> int:
        copies = REMOTE_COPIES if remote_inputs else 1
        buffers = int(in_flight * models * copies * (tile + tile // WASTE + SLACK))
        output = OUTPUTS * threads_per_shard * tile + (_parts(plan, tile) if remote_output else WRITE_MEMORY)
        sets = 1 if method.compute_float64 else 2  # of blocks: in float64, and in float32 where there are tensors of 16 bits
        blocks = (1 + method.scratch_blocks + method.temporary_blocks) * needs.block * sets
        scratch = threads_per_shard * (blocks + needs.decoded + needs.kernels) + needs.scales + 2 * header
        return max(least, reserved + shards_at_once * (buffers + points * (output + scratch + needs.statistics(tile, threads_per_shard))))

    for tile in tiles:  # the largest that fits at all
        if projected(tile, 2) <= budget:
            break
    in_flight = wanted(tile)
    while projected(tile, in_flight) > budget:
        if in_flight > 2:
            in_flight -= 1
        elif tile > max(SMALLEST_TILE, needs.smallest):
            tile = max(tile // 2, needs.smallest)
        else:
            needed = projected(tile, in_flight)
            count = shards_at_once * threads_per_shard
            fewer = f"fewer workers than {count} (--workers), or " if count > 1 else ""
            because, without = "", ""
            if needs.row:
                name, length = needs.row
                because = f"; {needs.why}, and one of {name!r} has {length:,} elements"
                without = ", or leave that tensor out (`exclude:`)"
            raise OverBudget(
                f"{models} models need at least {format_memory(needed)} in a process of {count} worker{'s' * (count > 1)}, "
                f"the budget is {format_memory(budget)}{because}: allow {fewer}more memory (--memory {-(-needed >> 20)}MiB){without}"
            )
    return WorkerMemory(budget, shards_at_once, threads_per_shard, tile, in_flight, projected(tile, in_flight))


@dataclass(frozen=True)
class _Needs:
    """Memory that a method's view of tensors needs beyond that of every merge."""

    block: int = BLOCK_BYTES
    """Bytes of a scratch block."""
    kernels: int = 0
    """Bytes that kernels keep in each thread."""
    smallest: int = 0
    """Bytes of the smallest tile that holds a block of every tensor."""
    row: tuple[str, int] | None = None
    """The tensor with the longest row, and its elements, where that and nothing else makes blocks large."""
    wholes: frozenset[int] = frozenset()
    """Tile sizes from which on one more tensor is streamed in one piece."""
    partials: tuple[tuple[Span, int, bool], ...] = ()
    """Of each kind of tensor that is streamed: one of them, the bytes of its partials, and whether they are added up as they come."""
    why: str = ""
    """The reason for that, in words."""
    decoded: int = 0
    """Bytes of the decoded numbers that each thread keeps: a block of every model and of the result."""
    scales: int = 0
    """Bytes of the scales that wait for the end of the codes they belong to."""

    def statistics(self, tile: int, threads_per_shard: int) -> int:
        """Bytes of what reductions have found and what is on its way to being added up."""
        most = 0
        for span, size, exact in self.partials:
            tiles = OUTPUTS * threads_per_shard + 1 if is_streamed(span, tile) else threads_per_shard
            held = 2 if exact or not is_streamed(span, tile) else 1 + tile // min(filter(None, needs_of(span, span.block)))
            most = max(most, (1 + tiles * held) * size)
        return most


def _needs(plan: MergePlan, method: Method) -> _Needs:
    spans = [*find_kinds(plan.shards)] if plan.is_encoded else ()
    if method.spans_tensors and not spans and not any(call.reductions for call in plan.calls):
        return _Needs()
    block, smallest, decoded, wholes, row, why = METHOD_BLOCK, 0, 0, set(), None, ""
    partials: dict[tuple[int, int, bool], tuple[Span, int, bool]] = {}
    for span in spans or find_kinds(plan.shards):
        if not span.is_plain:
            decoded = max(decoded, min(span.block, span.elements) * 8 * (DECODED + len(span.sources)))
        elif not span.merged:
            continue
        if min(span.block, span.elements) > block:
            block, row = min(span.block, span.elements), (span.parts[0].tensor.name, min(span.block, span.elements))
            why = f"{method.name} works on whole rows" if span.is_plain else "encoded numbers are computed by whole bands of rows"
        smallest = max(smallest, *needs_of(span, min(span.block, span.elements)))
        if not span.merged:
            continue
        if span.reductions:
            wholes.add(max(needs_of(span, span.elements)))
        call = plan.calls[span.call]
        for reduction in call.reductions:
            shape = span.parts[0].tensor.shape
            size = reduction.partial_bytes(len(call.terms), shape)
            largest = partials.get(key := (span.call, size, reduction.exact))
            if largest is None or largest[0].elements < span.elements:
                partials[key] = (span, size, reduction.exact)
    scales = 2 * max((span.elements for span in spans if span.trails), default=0)
    return _Needs(block * 8, KERNELS, smallest, row, frozenset(wholes), tuple(partials.values()), why, decoded, scales)


def _parts(plan: MergePlan, tile: int) -> int:
    """Bytes an upload holds: parts under way and being filled, and the copies of tiles they are cut from."""
    largest = max(shard.size for shard in plan.shards)
    return (PARTS_IN_FLIGHT + 2) * part_size(largest) + 2 * tile
