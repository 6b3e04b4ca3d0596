"""Row maps hold every row once, in as few runs as there are breaks, and their parts lie where the rows do."""

from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.planning.plan import Shard, TensorPlan, parts_of
from paramdelta_dist.planning.resolve import MethodCall
from paramdelta_dist.planning.row_map import ABSENT, RowSource, map_rows
from paramdelta_dist.planning.sources import Source
from paramdelta_dist.planning.tiles import MOST_SEGMENTS, cut_tiles, tile_reads

COPIED, MERGED = RowSource(False, (None, 1)), RowSource(True, (0, 1))


def source_of(present):
    return MERGED if all(present) else RowSource(False, (0, None) if present[0] else (None, 1))


columns = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 80), min_size=n, max_size=n),  # the first model has every row
        st.lists(st.integers(ABSENT, 80), min_size=n, max_size=n),
    )
)


@given(columns)
def test_every_row_comes_from_where_the_columns_say(given_columns):
    made = map_rows(given_columns, source_of)
    row = 0
    for run in made.spans():
        assert run.first == row
        for _ in range(run.rows):
            first, second = given_columns[0][row], given_columns[1][row]
            step = row - run.first
            expected = ((0, first), (1, second)) if second != ABSENT else ((0, first), None)
            assert run.merged == (second != ABSENT)
            assert tuple(None if source is None else (source[0], source[1] + step) for source in run.sources) == expected
            row += 1
    assert row == made.rows == len(given_columns[0])


def test_equal_columns_are_one_run_and_plain():
    same = map_rows([list(range(5000))] * 2, source_of)
    assert same.count == 1
    assert same.plain
    assert not map_rows([list(range(5000)), list(range(1, 5001))], source_of).plain
    assert not map_rows([list(range(5000)), [ABSENT] * 5000], source_of).plain


def shard_of(rows, width):
    header = bytes(64)
    size = rows.rows * width * 2
    sources = (Source(0, 8, "BF16"), Source(1, 16, "F32"))
    tensor = TensorPlan("embed", True, "BF16", (rows.rows, width), rows.rows * width, len(header), size, 0, sources, rows)
    return Shard("f", header, len(header) + size, (tensor,), (), (MethodCall("paramdelta", True, {}, ()),))


@settings(max_examples=60)
@given(columns, st.integers(1, 40), st.integers(512, 4000))
def test_parts_and_tiles_cover_the_tensor_and_read_the_rows(given_columns, width, tile_size):
    shard = shard_of(map_rows(given_columns, source_of), width)
    (tensor,) = shard.tensors
    end = tensor.start
    for part in parts_of(shard.tensors):
        assert part.start == end
        assert part.first * 2 == part.start - tensor.start
        end += part.elements * 2
        row = part.first // width
        for model, (source, item) in enumerate(zip(part.sources, (2, 4), strict=True)):
            if source is not None:
                assert source.start == tensor.sources[model].start + given_columns[model][row] * width * item
    assert end == shard.size
    assert shard.bytes_to_read == sum(width * 2 + (width * 4 if second != ABSENT else 0) for second in given_columns[1])
    assert sum(tile.stop - tile.start for tile in cut_tiles(shard, tile_size=tile_size)) == tensor.nbytes


def test_a_tile_of_rows_in_another_order_has_a_bounded_number_of_requests():
    """16,384 rows the other way round: runs, segments and requests are counted, not timed."""
    count = 1 << 14
    rows = map_rows([list(range(count)), list(range(count - 1, -1, -1))], source_of)
    assert rows.count == count
    assert len(rows.table) == count * 4 * 8
    tiles = list(cut_tiles(shard_of(rows, 64), tile_size=16 << 20))
    assert max(len(tile.segments) for tile in tiles) == MOST_SEGMENTS
    assert max(len(tile_reads(tile, model)) for tile in tiles for model in (0, 1)) == 1  # neighbours, though the other way round
