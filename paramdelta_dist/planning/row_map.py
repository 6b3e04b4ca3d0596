"""Row maps: which row of which model becomes which row of a vocabulary tensor, as runs of rows and not row by row.

A vocabulary tensor (embeddings, output head) has a row for each token. Where the vocabularies of models differ, it is
no longer one tensor that lies alike everywhere but many parts, each of them rows that follow one another in every
model they come from. A part is planned and made as any small tensor is.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ABSENT = -1


class Way(NamedTuple):
    """How rows that the same models have are made."""

    merged: bool
    """Whether they are computed; else they come whole from the one model that is not None."""
    models: tuple[int | None, ...]
    """For each model, the one whose rows take its part: itself, another where it lacks them, None where it has none."""


class RowRun(NamedTuple):
    """Rows [first, first + rows) of the output."""

    first: int
    rows: int
    merged: bool
    sources: tuple[tuple[int, int] | None, ...]
    """For each model, (model whose rows are read, first row there); None for a model that is not read."""


@dataclass(frozen=True, slots=True)
class RowMap:
    """Every row of one output tensor and where it comes from. Compact: a few numbers for each run of rows."""

    rows: int
    """Of the output."""
    ways: tuple[Way, ...]
    table: bytes
    """For each run 64-bit integers: how many rows, which way, and the first row in each model or ABSENT."""

    def runs(self) -> Iterator[RowRun]:
        """The runs of rows, in the order of the output."""
        models = len(self.ways[0].models) if self.ways else 0
        numbers, first = memoryview(self.table).cast("q"), 0
        for place in range(0, len(numbers), 2 + models):
            count, way = numbers[place], self.ways[numbers[place + 1]]
            begins = numbers[place + 2 : place + 2 + models]
            yield RowRun(first, count, way.merged, tuple(None if m is None else (m, begins[m]) for m in way.models))
            first += count

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.table) // (8 * (2 + len(self.ways[0].models))) if self.ways else 0

    @property
    def plain(self) -> bool:
        """Whether every row is merged with the row of the same number in every model: a tensor like any other."""
        return self.count == 1 and all(run.merged and all(s in (None, (m, 0)) for m, s in enumerate(run.sources)) for run in self.runs())


def map_rows(columns: Sequence[Sequence[int]], way_of: Callable[[tuple[bool, ...]], Way]) -> RowMap:
    """The map of an output whose row r is row `columns[m][r]` in model m, or in none where that is ABSENT.

    `way_of` says how rows are made that exactly those models have; it may raise.
    """
    ways: dict[tuple[bool, ...], int] = {}
    made: list[Way] = []
    table = array("q")
    begins: tuple[int, ...] = ()
    following: tuple[int, ...] = ()
    count = 0

    def close() -> None:
        present = tuple(begin != ABSENT for begin in begins)
        if present not in ways:
            ways[present] = len(made)
            made.append(way_of(present))
        table.extend((count, ways[present], *begins))

    for here in zip(*columns, strict=True):
        if count and here == following:
            count += 1
        else:
            if count:
                close()
            begins, count = here, 1
        following = tuple([row + 1 if row >= 0 else ABSENT for row in here])
    if count:
        close()
    return RowMap(len(columns[0]), tuple(made), table.tobytes())
