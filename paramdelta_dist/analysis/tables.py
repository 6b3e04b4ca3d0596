"""The figures as Parquet: one row a tensor and delta, one a tensor and pair, and the same for groups.

Columns: `tensor` (its name) or, for groups, `component` and `layer` where null stands for all of them; `elements`;
`delta` (position in the recipe, from 0); `norm` ‖δ‖, `base_norm`, `relative_norm` = norm / base_norm, `max_abs`, `mean`,
`mean_abs`, `zero_share` (exactly zero), `histogram`: 64 counts of |δ| in [2^(b−48), 2^(b−47)), the first and the last with
what is beyond. Of pairs: `first` and `second` (a delta's position; beyond the deltas: the new base minus one of their
bases, named in `first_label`, `second_label`), `cosine` of the elements laid end to end, `mean_cosine` (groups: mean over
tensors), `sign_agreement` (same sign where neither is zero; deltas alone). What cannot be said is null.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paramdelta_dist._version import __version__
from paramdelta_dist.analysis.statistics import Figures, Statistics
from paramdelta_dist.kernels.measuring import BINS, Floats

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
    if pa.types.is_dictionary(dtype):
        return pa.array(values, pa.string()).dictionary_encode().cast(dtype)
    return pa.array(values, dtype)
