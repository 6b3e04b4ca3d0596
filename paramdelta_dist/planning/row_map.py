"""Row maps: which row of which model becomes which row of a vocabulary tensor, as spans of rows and not row by row.

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


class RowSource(NamedTuple):
    """The source of rows that the same models have."""

    merged: bool
    """Whether they are computed; else they come whole from the one model that is not None."""
    models: tuple[int | None, ...]
    """For each model, the one whose rows take its part: itself, another where it lacks them, None where it has none."""


class RowSpan(NamedTuple):
    """Rows [first, first + rows) of the output."""

    first: int
    rows: int
    merged: bool
    sources: tuple[tuple[int, int] | None, ...]
    """For each model, (model whose rows are read, first row there); None for a model that is not read."""


@dataclass(frozen=True, slots=True)
class RowMap:
    """Every row of one output tensor and where it comes from. Compact: a few numbers for each span of rows."""

    rows: int
    """Of the output."""
    sources: tuple[RowSource, ...]
    table: bytes
    """For each span 64-bit integers: how many rows, which source, and the first row in each model or ABSENT."""

    def spans(self) -> Iterator[RowSpan]:
        """The spans of rows, in the order of the output."""
        models = len(self.sources[0].models) if self.sources else 0
        numbers, first = memoryview(self.table).cast("q"), 0
        for place in range(0, len(numbers), 2 + models):
            count, source = numbers[place], self.sources[numbers[place + 1]]
            begins = numbers[place + 2 : place + 2 + models]
            yield RowSpan(first, count, source.merged, tuple(None if m is None else (m, begins[m]) for m in source.models))
            first += count

    @property
    def count(self) -> int:
        """The number of spans."""
        return len(self.table) // (8 * (2 + len(self.sources[0].models))) if self.sources else 0

    @property
    def plain(self) -> bool:
        """Whether every row is merged with the row of the same number in every model: a tensor like any other."""
        return self.count == 1 and all(
            span.merged and all(s in (None, (m, 0)) for m, s in enumerate(span.sources)) for span in self.spans()
        )


def map_rows(columns: Sequence[Sequence[int]], source_of: Callable[[tuple[bool, ...]], RowSource]) -> RowMap:
    """The map of an output whose row r is row `columns[m][r]` in model m, or in none where that is ABSENT.

    `source_of` says how rows are made that exactly those models have; it may raise.
    """
    sources: dict[tuple[bool, ...], int] = {}
    made: list[RowSource] = []
    table = array("q")
    begins: tuple[int, ...] = ()
    following: tuple[int, ...] = ()
    count = 0

    def close() -> None:
        present = tuple(begin != ABSENT for begin in begins)
        if present not in sources:
            sources[present] = len(made)
            made.append(source_of(present))
        table.extend((count, sources[present], *begins))

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
