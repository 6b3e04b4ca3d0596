"""The figures as Parquet: one row a tensor and delta, one a tensor and pair, and the same for groups.

Columns: `tensor` (its name) or, for groups, `component` and `layer` where null stands for all of them; `elements`;
`delta` (position in the recipe, from 0); `norm` ‖δ‖, `base_norm`, `relative_norm` = norm / base_norm, `max_abs`, `mean`,
`mean_abs`, `zero_share` (exactly zero), `histogram`: 64 counts of |δ| in [2^(b−48), 2^(b−47)), the first and the last with
what is beyond. Of pairs: `first` and `second` (a delta's position; beyond the deltas: the new base minus one of their
bases, named in `first_label`, `second_label`), `cosine` of the elements laid end to end, `mean_cosine` (groups: mean over
tensors), `sign_agreement` (same sign where neither is zero; deltas alone). What cannot be said is null.

Of the points of a sweep: `point` (its name), a column for each swept parameter (a number, or its text), `tensor` or group as
above, `elements`, `base_norm`, `added_norm` ‖output − base‖, `relative_norm` = added_norm / base_norm, `max_abs`
max |output − base|, `unchanged_share` (exactly the base's), `distances` ‖output − input‖ from each model named in the metadata,
the base first. Of pairs of points: `first`, `second`, `distance`, `relative_distance` to the base's norm.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paramdelta_dist._version import __version__
from paramdelta_dist.analysis.probes import EVERY
from paramdelta_dist.analysis.statistics import Figures, Statistics
from paramdelta_dist.analysis.sweep_comparison import Comparison, Rows
from paramdelta_dist.kernels.measure import BINS, Floats
from paramdelta_dist.planning.chunks import MEASURE_CHUNK

PLACE = [pa.field("component", pa.dictionary(pa.int8(), pa.string())), pa.field("layer", pa.int32())]
DELTA = [
    pa.field("elements", pa.int64(), nullable=False),
    pa.field("delta", pa.int32(), nullable=False),
    *(pa.field(name, pa.float64()) for name in ("norm", "base_norm", "relative_norm", "max_abs", "mean", "mean_abs", "zero_share")),
    pa.field("histogram", pa.list_(pa.int64(), BINS), nullable=False),
]
PAIR = [
    pa.field("elements", pa.int64(), nullable=False),
    pa.field("first", pa.int32(), nullable=False),
    pa.field("second", pa.int32(), nullable=False),
    pa.field("first_label", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    pa.field("second_label", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    pa.field("cosine", pa.float64()),
    pa.field("mean_cosine", pa.float64()),
    pa.field("sign_agreement", pa.float64()),
]
POINT = [
    pa.field("elements", pa.int64(), nullable=False),
    *(pa.field(name, pa.float64()) for name in ("base_norm", "added_norm", "relative_norm", "max_abs", "unchanged_share")),
]
TENSOR = pa.field("tensor", pa.string(), nullable=False)


def tables(statistics: Statistics) -> Mapping[str, pa.Table]:
    """Every table by the name of its file."""
    names = np.array([tensor.name for tensor in statistics.tensors], dtype=object)
    places = [(place.component.value, place.layer) for place in statistics.places]
    groups = [(group.component.value if group.component else None, group.layer) for group in statistics.groups]
    means = np.array([statistics.mean_cosines[group] for group in statistics.groups])
    return {
        "tensors.parquet": _deltas(statistics, statistics.of_tensors, places, names),
        "tensor-pairs.parquet": _pairs(statistics, statistics.of_tensors, places, names, None),
        "groups.parquet": _deltas(statistics, statistics.of_groups, groups, None),
        "group-pairs.parquet": _pairs(statistics, statistics.of_groups, groups, None, means),
    }


def point_tables(comparison: Comparison) -> Mapping[str, pa.Table]:
    """Every table of a sweep by the name of its file."""
    names = np.array([tensor.name for tensor in comparison.tensors], dtype=object)
    places = [(place.component.value, place.layer) for place in comparison.places]
    groups = [(group.component.value if group.component else None, group.layer) for group in comparison.groups]
    return {
        "tensors.parquet": _point_rows(comparison, comparison.of_tensors, places, names),
        "groups.parquet": _point_rows(comparison, comparison.of_groups, groups, None),
        "pairs.parquet": _point_pairs(comparison),
    }


def _point_rows(comparison: Comparison, rows: Rows, places: Places, names: Any) -> pa.Table:
    points, count, inputs = rows.distance.shape
    columns = {
        "component": [component for component, _ in places] * points,
        "layer": [layer for _, layer in places] * points,
        "elements": np.tile(rows.elements, points),
        "base_norm": np.tile(rows.base_norm, points),
        "added_norm": rows.distance[:, :, 0],
        "relative_norm": rows.relative[:, :, 0],
        "max_abs": rows.peak,
        "unchanged_share": rows.unchanged,
        "distances": pa.FixedSizeListArray.from_arrays(_array(rows.distance, pa.float64()), inputs),
    }
    fields = [*PLACE, *POINT, pa.field("distances", pa.list_(pa.float64(), inputs))]
    if names is not None:
        columns["tensor"] = np.tile(names, points)
        fields = [TENSOR, *fields]
    swept, values = _swept_columns(comparison, [place for place in range(points) for _ in range(count)])
    return _points_table(comparison, values | columns, [*swept, *fields])


def _swept_columns(comparison: Comparison, points: Sequence[int]) -> tuple[list[pa.Field], dict[str, Any]]:
    """The name of the point of each row, and what was swept there;"""
    fields = [pa.field("point", pa.dictionary(pa.int8(), pa.string()), nullable=False)]
    columns: dict[str, Any] = {"point": [comparison.points[place].name for place in points]}
    for key in comparison.points[0].values:
        values = [point.values.get(key) for point in comparison.points]
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        fields.append(pa.field(key, pa.float64() if numeric else pa.string()))
        columns[key] = [float(values[place]) if numeric else str(values[place]) for place in points]  # type: ignore[arg-type]
    return fields, columns


def _point_pairs(comparison: Comparison) -> pa.Table:
    pairs = list(combinations(range(len(comparison.points)), 2))
    names = [point.name for point in comparison.points]
    distance = np.array([comparison.apart[pair] for pair in pairs], np.float64)
    label = pa.dictionary(pa.int8(), pa.string())
    fields = [pa.field("first", label, nullable=False), pa.field("second", label, nullable=False)]
    fields += [pa.field("distance", pa.float64()), pa.field("relative_distance", pa.float64())]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = distance / comparison.of_groups.base_norm[comparison.whole]
    columns = {
        "first": [names[a] for a, _ in pairs],
        "second": [names[b] for _, b in pairs],
        "distance": distance,
        "relative_distance": relative,
    }
    return _points_table(comparison, columns, fields)


def _points_table(comparison: Comparison, columns: Mapping[str, Any], fields: Sequence[pa.Field]) -> pa.Table:
    metadata = {"paramdelta-dist": __version__, "sampled": f"one block of {MEASURE_CHUNK} elements in {EVERY}"}
    metadata |= {f"input {number}": each.url for number, each in enumerate(comparison.inputs)}
    metadata |= {f"output {number}": point.output for number, point in enumerate(comparison.points)}
    schema = pa.schema(fields, metadata={key: value.encode(errors="replace") for key, value in metadata.items()})
    return pa.table([_array(columns[field.name], field.type) for field in fields], schema=schema)


def render(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


Places = Sequence[tuple[str | None, int | None]]


def _deltas(statistics: Statistics, figures: Figures, places: Places, names: Any) -> pa.Table:
    rows, deltas = figures.norm.shape
    columns = _place_columns(places, names, deltas) | {
        "elements": np.repeat(figures.elements, deltas),
        "delta": np.tile(np.arange(deltas, dtype=np.int32), rows),
        "norm": figures.norm,
        "base_norm": figures.base_norm,
        "relative_norm": figures.relative_norm,
        "max_abs": figures.peak,
        "mean": figures.mean,
        "mean_abs": figures.mean_magnitude,
        "zero_share": figures.zero_share,
        "histogram": pa.FixedSizeListArray.from_arrays(pa.array(figures.histograms.reshape(-1)), BINS),
    }
    return _table(statistics, columns, [*([TENSOR] if names is not None else []), *PLACE, *DELTA])


def _pairs(statistics: Statistics, figures: Figures, places: Places, names: Any, means: Floats | None) -> pa.Table:
    couples = statistics.subject.vectors.couples
    pairs = [(a, b) for a, b in statistics.subject.vectors.dots if a != b]
    first, second = (np.array([pair[side] for pair in pairs], np.intp) for side in (0, 1))
    rows, labels = len(figures.elements), statistics.subject.labels
    agreement = np.full((rows, len(pairs)), np.nan)
    if couples:
        agreement[:, [pairs.index(couple) for couple in couples]] = figures.sign_agreement
    fields = [field for field in PAIR if field.name != "mean_cosine" or means is not None]
    columns = _place_columns(places, names, len(pairs)) | {
        "elements": np.repeat(figures.elements, len(pairs)),
        "first": np.tile(first.astype(np.int32), rows),
        "second": np.tile(second.astype(np.int32), rows),
        "first_label": [labels[a] for a in first] * rows,
        "second_label": [labels[b] for b in second] * rows,
        "cosine": figures.cosines[:, first, second],
        "sign_agreement": agreement,
    }
    if means is not None:
        columns["mean_cosine"] = means[:, first, second]
    return _table(statistics, columns, [*([TENSOR] if names is not None else []), *PLACE, *fields])


def _place_columns(places: Places, names: Any, times: int) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "component": [component for component, _ in places for _ in range(times)],
        "layer": [layer for _, layer in places for _ in range(times)],
    }
    return columns if names is None else {"tensor": np.repeat(names, times), **columns}


def _table(statistics: Statistics, columns: Mapping[str, Any], fields: Sequence[pa.Field]) -> pa.Table:
    subject = statistics.subject
    metadata = {"paramdelta-dist": __version__, "base": subject.base}
    for number, delta in enumerate(subject.deltas):
        metadata |= {f"delta {number} post": delta.post, f"delta {number} base": delta.base, f"delta {number} weight": repr(delta.weight)}
    schema = pa.schema(fields, metadata={key: value.encode(errors="replace") for key, value in metadata.items()})
    arrays = [_array(columns[field.name], field.type) for field in fields]
    return pa.table(arrays, schema=schema)


def _array(values: Any, dtype: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values.reshape(-1), dtype, mask=~np.isfinite(values.reshape(-1)))
    if pa.types.is_dictionary(dtype):  # by hand: pyarrow's way takes as long to import as writing all tables
        known = list(dict.fromkeys(value for value in values if value is not None))
        place = {value: number for number, value in enumerate(known)}
        indices = pa.array([place.get(value) for value in values], dtype.index_type)
        return pa.DictionaryArray.from_arrays(indices, pa.array(known, pa.string()))
    return pa.array(values, dtype)
