"""Counting the requests that the tiles of a shard take, without making all of the tiles: models have few kinds of matrices, and giants
very many of each, so that what is found out of one of a kind is not asked of the next."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from enum import Enum

from paramdelta_dist.planning.plan import Shard
from paramdelta_dist.planning.sources import Source
from paramdelta_dist.planning.spans import Span, Whole, spans_or_wholes
from paramdelta_dist.planning.tiles import Cutter, Stretch, Tile, is_streamed, reduction_tiles, reductions_of, tile_reads


def count_requests(shard: Shard, *, tile_size: int) -> int:
    """The number of reads that the tiles of a shard take, with the reductions before them."""
    over_model, over_tensors = reductions_of(shard)
    reads = _Reads(over_model)
    counter, before = _Counter(tile_size, reads), 0
    streamed: dict[Hashable, int] = {}
    for unit in spans_or_wholes(shard):
        counter.add(unit)
        if not over_tensors:
            continue
        if isinstance(unit, Span):
            before += _of_reductions(unit, tile_size, reads)
            continue
        if unit.form not in streamed:
            streamed[unit.form] = _of_reductions(unit.spans[0], tile_size, reads)
        before += streamed[unit.form]
    return counter.all() + before


def _of_reductions(span: Span, tile_size: int, reads: _Reads) -> int:
    """Requests for looking at a span that is streamed, before it is made."""
    if not is_streamed(span, tile_size):
        return 0
    return span.reductions * sum(reads.of(tile) for tile in reduction_tiles(span, tile_size=tile_size))


class _Reads:
    """The number of requests for a tile; of tiles with codes of one tensor, which are much alike, known from the first."""

    def __init__(self, over_model: int) -> None:
        """All that is merged is read so many times more for reductions over the model."""
        self._over_model = over_model
        self._known: dict[Hashable, int] = {}

    def of_all(self, stretches: Iterable[Stretch]) -> int:
        """That of some tiles, with what reductions over the model read."""
        return sum([count * self._whole(tile) for tile, count in stretches])

    def _whole(self, tile: Tile) -> int:
        found = self.of(tile)
        if self._over_model:
            found += self._over_model * self.of(tile._replace(segments=tuple(s for s in tile.segments if s.span.merged)))
        return found

    def of(self, tile: Tile) -> int:
        """That of one tile."""
        layout = _layout(tile)
        if layout is None:
            return _requests(tile)
        if layout not in self._known:
            self._known[layout] = _requests(tile)
        return self._known[layout]


def _requests(tile: Tile) -> int:
    models = range(len(tile.segments[0].span.sources)) if tile.segments else ()
    return sum([len(tile_reads(tile, model)) for model in models])


def _layout(tile: Tile) -> Hashable:
    """All that the number of requests for a tile depends on, where it has codes of one tensor; None for other tiles."""
    codes = [segment for segment in tile.segments if not segment.span.trails]
    if len(codes) != 1 or codes[0].span.encoded is None:
        return None
    ((span, first, last),) = codes
    return first, last, span.block, tuple([None if source is None else source.layout for source in span.sources])


class _Otherwise(Enum):
    """The fate of a tensor that does not go into an open tile as a whole."""

    BEGINS = "begins"
    """It begins a tile of its own."""
    CUT = "cut"
    """Its codes go into the open tile, and its scales not or not all of them."""


class _Open:
    """A tile that is being filled with tensors of some forms, one after the other; of the first of them it may have the end alone."""

    def __init__(self, cutter: Cutter, closed: int = 0) -> None:
        self.cutter = cutter
        """Its state, reached with some tensors of these forms."""
        self.closed = closed
        """Requests for the tiles that its first tensor fills before it."""
        self.next: dict[Hashable, _Open | _Otherwise] = {}
        """The same tile with one more tensor, by the form of that."""
        self.requests: dict[Hashable, int] = {}
        """Requests for it as it is, by the places of its tensors, told from those of the first."""

    def after(self, unit: Whole) -> _Open | _Otherwise:
        """The tile with one more tensor."""
        if unit.form not in self.next:
            self.next[unit.form] = self._after(unit.spans)
        return self.next[unit.form]

    def _after(self, spans: tuple[Span, Span]) -> _Open | _Otherwise:
        if not self.cutter.takes(spans[0]):
            return _Otherwise.BEGINS
        cutter = self.cutter.copy()
        return _Otherwise.CUT if _add(cutter, spans) else _Open(cutter)


def _add(cutter: Cutter, spans: Iterable[Span]) -> list[Stretch]:
    return [stretch for span in spans for stretch in cutter.add(span)]


class _Counter:
    """The requests for the tiles of a shard, from one unit to the next.

    While a tile has tensors of known forms alone, it is the tile of these forms, `_open`. Any other unit is cut for itself, by
    `_cutter`, until a tensor of a known form begins a tile again.
    """

    def __init__(self, tile_size: int, reads: _Reads) -> None:
        self._total = 0
        """Requests for the tiles that are full."""
        self._tile_size, self._reads = tile_size, reads
        self._alone: dict[Hashable, _Open] = {}
        """The last tile of a tensor that begins one, by its form."""
        self._open: _Open | None = None
        self._held: list[Whole] = []
        """The tensors of that tile."""
        self._cutter = Cutter(tile_size, 0)

    def add(self, unit: Span | Whole) -> None:
        """Count the tiles that are full with the next unit."""
        if isinstance(unit, Span):
            self._cut((unit,))
        elif self._open is None:
            if self._cutter.takes((spans := unit.spans)[0]):
                self._cut(spans)
            else:
                self._begin(unit)
        elif isinstance(after := self._open.after(unit), _Open):
            self._open = after
            self._held.append(unit)
        elif after is _Otherwise.CUT:
            self._cut(unit.spans)
        else:
            self._begin(unit)

    def all(self) -> int:
        """The requests for all tiles, when no unit is left."""
        self._close()
        return self._total

    def _begin(self, unit: Whole) -> None:
        """Close the tile that is being filled, and begin one with a tensor."""
        self._close()
        if unit.form not in self._alone:
            cutter = Cutter(self._tile_size, 0)
            self._alone[unit.form] = _Open(cutter, self._reads.of_all(_add(cutter, unit.spans)))
        self._open, self._held = self._alone[unit.form], [unit]
        self._total += self._open.closed

    def _cut(self, spans: Iterable[Span]) -> None:
        """Cut spans for themselves, behind what is in the tile that is being filled."""
        if self._open is not None:
            self._cutter, self._open = self._again(), None
        self._total += self._reads.of_all(_add(self._cutter, spans))

    def _close(self) -> None:
        if self._open is None:
            self._total += self._reads.of_all(self._cutter.rest())
            return
        places = _places(self._held)
        if places not in self._open.requests:
            self._open.requests[places] = self._reads.of_all(self._again().rest())
        self._total += self._open.requests[places]
        self._open = None

    def _again(self) -> Cutter:
        """The tile of known forms, filled with the very tensors that are in it."""
        cutter = Cutter(self._tile_size, 0)
        for unit in self._held:
            _add(cutter, unit.spans)
        return cutter


def _places(units: Sequence[Whole]) -> Hashable:
    """The places of tensors in all models, told from those of the first."""
    if len(units) == 1:
        return ()
    return tuple(
        [
            (source.file - begin.file, source.start - begin.start)
            for unit in units[1:]
            for source, begin in zip(unit.part.sources, units[0].part.sources, strict=True)
            if isinstance(source, Source) and isinstance(begin, Source)
        ]
    )
