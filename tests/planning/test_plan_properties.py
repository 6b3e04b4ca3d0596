"""Properties of layout and tiles over models nobody would make: every byte once, every buffer bounded."""

import json
import math
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_dist.checkpoint import Checkpoint, Tensor, WeightFile
from paramdelta_dist.checkpoint.dtypes import DTYPES
from paramdelta_dist.checkpoint.encoded import with_logical_tensors
from paramdelta_dist.checkpoint.families import Tensors
from paramdelta_dist.checkpoint.header import ALIGNMENT, LENGTH_FIELD, parse_header
from paramdelta_dist.planning import build_plan
from paramdelta_dist.planning.requests import count_requests
from paramdelta_dist.planning.sources import Read
from paramdelta_dist.planning.spans import find_spans
from paramdelta_dist.planning.tiles import MAX_GAP, WASTE, coalesce, cut_tiles, source_ranges, steps_of, tile_reads
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.storage import Identity

FLOATS = ("BF16", "F16", "F32", "F64")
NAMES = [f"layers.{n}.weight" for n in range(12)]

shapes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
    st.integers(1, 5000).map(lambda n: (n,)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)


@st.composite
def model_sets(draw):
    """A base, a post and an old base with the same tensors, each in other dtypes, orders and files."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=12, unique=True))
    shape_of = {name: draw(shapes) for name in names}
    exact = {name: draw(st.sampled_from([None, None, None, "I64", "BOOL", "U8"])) for name in names}
    models = {}
    for url in ("/base", "/post", "/old"):
        order = draw(st.permutations(names))
        files = draw(st.integers(1, 3))
        tensors, ends = {}, [LENGTH_FIELD + draw(st.integers(0, 9)) for _ in range(files)]
        for name in order:
            dtype = exact[name] or draw(st.sampled_from(FLOATS))
            file = draw(st.integers(0, files - 1))
            size = DTYPES[dtype].nbytes(shape_of[name])
            tensors[name] = Tensor(dtype, shape_of[name], file, ends[file], ends[file] + size)
            ends[file] += size
        in_order = dict(sorted(tensors.items(), key=lambda item: (item[1].file, item[1].start)))
        weight_files = tuple(WeightFile(f"{n}.safetensors", Identity(end, "t")) for n, end in enumerate(ends))
        models[url] = Checkpoint(url, weight_files, in_order, {"model_type": "toy"}, {}, ())
    return models


def plan_of(models, *, shard_size=1 << 20, dtype=None):
    recipe = Recipe(base="/base", deltas=({"post": "/post", "base": "/old"},), output="/out", dtype=dtype)
    recipe = recipe.model_copy(update={"shard_size": shard_size})
    return build_plan(recipe, models, {})


def pieces(segment):
    """(tensor, first, last) of the tensors that a segment of a run is made of."""
    start = 0
    for part in segment.span.parts:
        first, last = max(segment.first - start, 0), min(segment.last - start, part.elements)
        if first < last:
            yield part.tensor.name, first, last
        start += part.elements


@settings(max_examples=150, deadline=None)
@given(model_sets(), st.integers(64, 60_000), st.integers(512, 40_000), st.sampled_from([None, "BF16", "F32"]))
def test_every_output_byte_is_made_exactly_once_and_in_order(models, shard_size, tile_size, dtype):
    plan = plan_of(models, shard_size=shard_size, dtype={"BF16": "bfloat16", "F32": "float32", None: None}[dtype])
    written = []
    for shard in plan.shards:
        position = len(shard.header)
        for tile in cut_tiles(shard, tile_size=tile_size):
            assert tile.start == position
            for segment in tile.segments:
                width = DTYPES[segment.span.dtype].itemsize
                assert segment.span.start + segment.first * width == position
                assert segment.first < segment.last <= segment.span.elements
                position += (segment.last - segment.first) * width
            assert tile.stop == position
        assert position == shard.size
        written += [tensor.name for tensor in shard.tensors]
    assert sorted(written) == sorted(models["/base"].tensors)


@settings(max_examples=100, deadline=None)
@given(model_sets(), st.integers(512, 40_000))
def test_every_buffer_of_a_tile_is_within_the_limit(models, tile_size):
    for shard in plan_of(models).shards:
        for tile in cut_tiles(shard, tile_size=tile_size):
            assert 0 < tile.stop - tile.start <= tile_size
            for model in range(3):
                assert sum(read.stop - read.start for read in tile_reads(tile, model)) <= tile_size * (1 + 1 / WASTE)


@settings(max_examples=100, deadline=None)
@given(model_sets(), st.integers(512, 40_000))
def test_reads_cover_the_exact_bytes_of_every_input(models, tile_size):
    plan = plan_of(models)
    seen = {}
    for shard in plan.shards:
        for tile in cut_tiles(shard, tile_size=tile_size):
            for model, url in enumerate(plan.models):
                reads = tile_reads(tile, model)
                for segment in tile.segments:
                    (wanted,) = source_ranges(segment, model)
                    assert any(r.file == wanted.file and r.start <= wanted.start and wanted.stop <= r.stop for r in reads)
                    file = shard.inputs[wanted.file]
                    assert file.model == model
                    position = wanted.start
                    for name, first, last in pieces(segment):
                        held = models[url].tensors[name]
                        width = DTYPES[held.dtype].itemsize
                        assert models[url].files[held.file] == file.file
                        assert held.start + first * width == position
                        position = held.start + last * width
                        assert position <= held.stop
                        seen[url, name] = seen.get((url, name), 0) + (last - first) * width
                    assert position == wanted.stop
                for read in reads:
                    assert read.stop <= shard.inputs[read.file].file.identity.size
    for url, model in models.items():
        for name, tensor in model.tensors.items():
            assert seen.get((url, name), 0) == tensor.stop - tensor.start
    assert plan.bytes_to_read == sum(model.nbytes for model in models.values())


@settings(max_examples=100, deadline=None)
@given(model_sets(), st.integers(64, 60_000))
def test_headers_are_valid_aligned_and_within_the_shard_size(models, shard_size):
    plan = plan_of(models, shard_size=shard_size)
    for shard in plan.shards:
        tensors, metadata = parse_header(shard.header[LENGTH_FIELD:], file_size=shard.size, where=shard.file)
        assert metadata == {"format": "pt"}
        assert len(shard.header) % ALIGNMENT == 0
        for planned in shard.tensors:
            info = tensors[planned.name]
            assert (info.start, info.stop, info.dtype) == (planned.start, planned.start + planned.nbytes, planned.dtype)
            assert info.start % DTYPES[info.dtype].itemsize == 0
        data = shard.size - len(shard.header)
        assert data <= shard_size or sum(tensor.nbytes > 0 for tensor in shard.tensors) == 1
    files = [shard.file for shard in plan.shards]
    assert files == (
        ["model.safetensors"] if len(files) == 1 else [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6), st.integers(0, 10**5)), max_size=30))
def test_coalescing_covers_every_range_and_wastes_little(pieces):
    reads = [Read(file, start, start + size) for file, start, size in pieces]
    joined = coalesce(reads)
    for read in reads:
        assert any(j.file == read.file and j.start <= read.start and read.stop <= j.stop for j in joined)
    needed = sum(stop - start for _, start, stop in reads)
    assert sum(stop - start for _, start, stop in joined) <= needed * (1 + 1 / WASTE)
    for one, two in pairwise(joined):
        assert one.file != two.file or two.start > one.stop


def test_neighbours_are_one_request_and_distant_ranges_are_not():
    assert coalesce([Read(0, 0, 100), Read(0, 100, 200)]) == [Read(0, 0, 200)]
    assert len(coalesce([Read(0, 0, 100), Read(1, 100, 200)])) == 2
    assert len(coalesce([Read(0, 0, 10**6), Read(0, 10**6 + MAX_GAP + 1, 10**8)])) == 2
    assert coalesce([Read(0, 0, 10**6), Read(0, 10**6 + 50, 10**7)]) == [Read(0, 0, 10**7)]


def toy(dtypes, url="/base"):
    tensors, end = {}, 16
    for name, (dtype, shape) in dtypes.items():
        size = DTYPES[dtype].nbytes(shape)
        tensors[name] = Tensor(dtype, shape, 0, end, end + size)
        end += size
    return Checkpoint(url, (WeightFile("model.safetensors", Identity(end, "t")),), tensors, {}, {}, ())


def three(dtypes):
    return {url: toy(dtypes, url) for url in ("/base", "/post", "/old")}


def test_integers_booleans_and_derived_buffers_are_copied_and_all_else_merged():
    plan = plan_of(
        three({"w": ("BF16", (4, 4)), "position_ids": ("I64", (8,)), "m.rotary_emb.inv_freq": ("F32", (8,)), "mask": ("BOOL", (3,))})
    )
    merged = {tensor.name for shard in plan.shards for tensor in shard.tensors if tensor.merged}
    assert merged == {"w"}
    assert (plan.merged, plan.copied) == (1, 3)


def test_tensors_that_cannot_be_merged_are_all_listed():
    from paramdelta_dist.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"(?s)3 tensors.*q1.*q2.*c") as raised:
        plan_of(three({"w": ("BF16", (4,)), "q1": ("F8_E4M3", (4,)), "q2": ("F4", (4,)), "c": ("C64", (4,))}))
    assert raised.value.exit_code == 3


def test_the_output_dtype_changes_floats_only():
    plan = plan_of(three({"w": ("F32", (4,)), "n": ("I64", (2,))}), dtype="bfloat16")
    assert {t.name: t.dtype for shard in plan.shards for t in shard.tensors} == {"w": "BF16", "n": "I64"}


def test_a_delta_of_weight_zero_is_not_read():
    models = three({"w": ("BF16", (100,))})
    recipe = Recipe(base="/base", deltas=({"post": "/post", "base": "/old", "weight": 0.0},), output="/out")
    plan = build_plan(recipe, models, {})
    assert plan.models == ("/base",)
    assert plan.bytes_to_read == 200


def test_a_delta_on_the_base_itself_reads_the_base_once():
    models = three({"w": ("BF16", (100,))})
    recipe = Recipe(base="/base", deltas=({"post": "/post"},), output="/out")
    plan = build_plan(recipe, models, {})
    assert plan.models == ("/base", "/post")
    assert plan.bytes_to_read == 400


def test_the_fingerprint_follows_what_decides_the_bytes():
    models = three({"w": ("BF16", (100,))})
    base = plan_of(models).fingerprint
    assert plan_of(models).fingerprint == base
    assert plan_of(models, dtype="float32").fingerprint != base
    changed = dict(models)
    changed["/old"] = Checkpoint("/old", (WeightFile("model.safetensors", Identity(216, "another")),), models["/old"].tensors, {}, {}, ())
    assert plan_of(changed).fingerprint != base


def test_a_plan_is_plain_values():
    document = plan_of(three({"w": ("BF16", (100,))})).as_document()
    assert json.loads(json.dumps(document)) == document


def test_planning_is_linear_in_tensors():
    """Counted, not timed: the tiles of n small tensors are read in as many requests as their bytes need."""
    for count in (100, 1000, 10_000):
        plan = plan_of(three({f"t{n}": ("BF16", (64,)) for n in range(count)}), shard_size=1 << 30)
        tiles = list(cut_tiles(plan.shards[0], tile_size=1 << 18))
        assert len(tiles) == math.ceil(count * 128 / (1 << 18))
        assert sum(len(tile_reads(tile, model)) for tile in tiles for model in range(3)) == 3 * len(tiles)


@settings(max_examples=100, deadline=None)
@given(model_sets(), st.integers(64, 60_000), st.integers(512, 40_000))
def test_requests_are_counted_as_the_tiles_make_them(models, shard_size, tile_size):
    for shard in plan_of(models, shard_size=shard_size).shards:
        made = sum(len(tile_reads(tile, model)) for tile in cut_tiles(shard, tile_size=tile_size) for model in range(3))
        assert count_requests(shard, tile_size=tile_size) == made


STORED = {
    "fp8": lambda rows, columns: {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (-(-rows // 16), -(-columns // 16)))},
    "one scale": lambda rows, columns: {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("F32", (1,))},
    "mxfp4": lambda rows, columns: {"weight_packed": ("U8", (rows, columns // 2)), "weight_scale": ("U8", (rows, columns // 32))},
    "plain": lambda rows, columns: {"weight": ("BF16", (rows, columns))},
}
"""The arrays of a matrix, by how it is stored."""
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}


@st.composite
def quantised_sets(draw):
    """The same three with matrices of few kinds, some of them stored in one way in one model and in another in the next; most of them
    lie in the same order in all."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(sorted(STORED)), st.sampled_from([1, 16, 40, 64, 200]), st.sampled_from([32, 96])),
                          min_size=1, max_size=3))  # fmt: skip
    order = [*draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=30))]
    models = {}
    for url in ("/base", "/post", "/old"):
        numbers = draw(st.one_of(st.just(range(len(order))), st.permutations(range(len(order)))))
        plain = draw(st.sampled_from([0, 0, 3]))
        files = draw(st.sampled_from([1, 1, 2]))
        tensors, ends = {}, [LENGTH_FIELD] * files
        for place, number in enumerate(numbers):
            scheme, rows, columns = order[number]
            for end, (dtype, shape) in STORED["plain" if plain and number % plain == 0 else scheme](rows, columns).items():
                file = place * files // len(order)
                size = DTYPES[dtype].nbytes(shape)
                tensors[f"layers.{number}.{end}"] = Tensor(dtype, shape, file, ends[file], ends[file] + size)
                ends[file] += size
        held = tuple(WeightFile(f"{n}.safetensors", Identity(end, "t")) for n, end in enumerate(ends))
        models[url] = with_logical_tensors(Checkpoint(url, held, Tensors(tensors), FP8, {}, ()))
    return models


def plan_of_quantised(models, shard_size, quantization="keep"):
    recipe = Recipe(base="/base", deltas=({"post": "/post", "base": "/old"},), output="/out", quantization=quantization)
    return build_plan(recipe.model_copy(update={"shard_size": shard_size}), models, {})


def made_requests(shard, tile_size):
    steps = steps_of(cut_tiles(shard, tile_size=tile_size), tile_size=tile_size)
    return sum(len(tile_reads(step.tile, model)) for step in steps for model in range(3))


@settings(max_examples=150, deadline=None)
@given(quantised_sets(), st.lists(st.integers(12_000, 80_000), min_size=3, max_size=3), st.sampled_from([1 << 15, 1 << 30]))
def test_requests_of_quantised_models_are_counted_as_the_tiles_make_them(models, tile_sizes, shard_size):
    for quantization in ("keep", "none"):
        for shard, tile_size in product(plan_of_quantised(models, shard_size, quantization).shards, tile_sizes):
            assert count_requests(shard, tile_size=tile_size) == made_requests(shard, tile_size)


def test_requests_of_matrices_that_are_alike_are_counted_at_every_tile_size():
    tensors, end = {}, LENGTH_FIELD
    for number in range(12):
        for name, (dtype, shape) in STORED["fp8"](40, 16).items():
            size = DTYPES[dtype].nbytes(shape)
            tensors[f"layers.{number}.{name}"] = Tensor(dtype, shape, 0, end, end + size)
            end += size
    files = (WeightFile("model.safetensors", Identity(end, "t")),)
    held = [with_logical_tensors(Checkpoint(url, files, Tensors(tensors), FP8, {}, ())) for url in ("/base", "/post", "/old")]
    (shard,) = plan_of_quantised({model.url: model for model in held}, 1 << 30).shards
    for tile_size in range(700, 4000):
        assert count_requests(shard, tile_size=tile_size) == made_requests(shard, tile_size), tile_size


@settings(max_examples=100, deadline=None)
@given(model_sets())
def test_runs_hold_every_tensor_once_and_follow_on_everywhere(models):
    for shard in plan_of(models).shards:
        spans = list(find_spans(shard))
        assert [part.tensor for run in spans for part in run.parts] == [tensor for tensor in shard.tensors if tensor.elements]
        for run in spans:
            assert run.elements == sum(part.elements for part in run.parts)
            for one, two in pairwise(run.parts):
                assert (one.merged, one.tensor.dtype, one.start + one.tensor.nbytes) == (two.merged, two.tensor.dtype, two.start)
                for a, b in zip(one.sources, two.sources, strict=True):
                    assert (a.file, a.dtype, a.start + one.elements * DTYPES[a.dtype].itemsize) == (b.file, b.dtype, b.start)
            for element in {0, run.elements - 1, run.elements // 2}:
                part, place = run.part_at(element)
                width = DTYPES[run.dtype].itemsize
                assert part.tensor.start + place * width == run.start + element * width
                assert place < part.tensor.elements


def test_neighbours_in_all_models_are_one_run_whatever_their_number():
    plan = plan_of(three({f"t{n}": ("BF16", (64,)) for n in range(5000)}))
    assert len(list(find_spans(plan.shards[0]))) == 1


@settings(max_examples=60, deadline=None)
@given(model_sets(), st.integers(512, 40_000))
def test_every_segment_finds_its_own_bytes_among_what_was_fetched(models, tile_size):
    from paramdelta_dist.shards.reader import FetchedTile

    for shard in plan_of(models).shards:
        for tile in cut_tiles(shard, tile_size=tile_size):
            reads = [tile_reads(tile, model) for model in range(3)]
            content = [[memoryview(bytes((r.file + n) % 251 for n in range(r.start, r.stop))) for r in of_model] for of_model in reads]
            fetched = FetchedTile(tile, list(zip(reads, content, strict=True)))
            for segment in tile.segments:
                for model in range(3):
                    (wanted,) = source_ranges(segment, model)
                    assert bytes(*fetched.arrays(segment, model)) == bytes(
                        (wanted.file + n) % 251 for n in range(wanted.start, wanted.stop)
                    )
