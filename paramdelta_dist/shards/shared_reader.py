"""One reading for many: several pipelines over the same tiles, each of which is fetched once and kept until the last is done with it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from paramdelta_dist.errors import Interrupted
from paramdelta_dist.planning.tiles import Tile
from paramdelta_dist.shards.reader import Fetching, TileReader


@dataclass
class _Live:
    """A tile that somebody still needs."""

    fetching: Fetching
    wanted: int
    """Readers that have not released it."""


@dataclass
class SharedTiles:
    """Tiles in the order in which every one of `readers` readers asks for them.

    At most `tiles_in_flight` of them are in memory: a reader that is ahead waits for the slowest. That one never waits,
    since no pipeline asks for more than `tiles_in_flight` tiles before it is done with the first of them.
    """

    reader: TileReader
    readers: int
    tiles_in_flight: int
    _live: dict[int, _Live] = field(default_factory=dict)
    """By position in the order."""
    _aborted: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def abort(self) -> None:
        """Let nobody wait for a reader that has given up: `start` raises Interrupted from here on."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def take(self, position: int, tile: Tile) -> tuple[Fetching, bool]:
        """The tile at a position, and whether this call has begun to fetch it. Raises Interrupted."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or position in self._live or self._has_room(position))
            if self._aborted:
                raise Interrupted("stopped")
            begun = position not in self._live
            if begun:
                self._live[position] = _Live(self.reader.start(tile), self.readers)
            fetching = self._live[position].fetching
            if fetching.tile != tile:
                raise AssertionError(f"tile {position} is not the same for every reader")
            return fetching, begun

    def give_back(self, position: int) -> None:
        with self._changed:
            live = self._live[position]
            live.wanted -= 1
            if not live.wanted:
                del self._live[position]
                self.reader.release(live.fetching)
                self._changed.notify_all()

    def _has_room(self, position: int) -> bool:
        return not self._live or position - min(self._live) < self.tiles_in_flight


class _SharedFetching(Fetching):
    """A tile in the hands of one of its readers, who must not cancel what the others wait for."""

    def __init__(self, position: int, shared: Fetching) -> None:
        super().__init__(shared.tile, shared.reads, shared.futures, shared.buffers)
        self.position = position

    def cancel(self) -> None:
        pass


class SharedReader:
    """One of the readers of shared tiles, for one pipeline."""

    def __init__(self, tiles: SharedTiles) -> None:
        self._tiles, self._position = tiles, 0
        self.pool = tiles.reader.pool
        self.bytes_read = self.requests = 0
        """Of what was fetched because this reader was the first to ask: over all readers, what was read."""

    def start(self, tile: Tile) -> Fetching:
        """Ask for the next tile; waits while this reader is too far ahead of the slowest. Raises Interrupted."""
        fetching, begun = self._tiles.take(self._position, tile)
        if begun:
            self.bytes_read += sum(read.stop - read.start for of_model in fetching.reads for read in of_model)
            self.requests += sum(len(of_model) for of_model in fetching.reads)
        self._position += 1
        return _SharedFetching(self._position - 1, fetching)

    def release(self, fetching: Fetching) -> None:
        assert isinstance(fetching, _SharedFetching)
        self._tiles.give_back(fetching.position)

    def stop(self) -> None:
        """Nothing: others may wait for the same reads, which end by themselves."""
