"""Merging, decoding and encoding of quantised tiles on one thread, against a copy of the same bytes."""

from __future__ import annotations

import time
from math import prod
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.harness import Figures
from paramdelta_dist.kernels.codecs.decode import decode
from paramdelta_dist.kernels.codecs.encode import Stored, encode
from paramdelta_dist.kernels.codecs.merge import merge_scaled
from paramdelta_dist.kernels.encodings import Scaled

SHAPE = (512, 7168)
"""Of a tile, as of an expert's matrix of DeepSeek-V3."""
TILES = 12
"""Tiles that are taken in turn, of base, post, old and output each: more bytes than any cache has."""
SECONDS = 0.5
"""What one measurement takes at least."""
SCHEMES = {
    "fp8 128 × 128, F32": (Scaled("e4m3", 128, 128, "F32"), 0.5),
    "fp8 128 × 128, E8M0": (Scaled("e4m3", 128, 128, "E8M0"), 0.5),
    "mxfp4": (Scaled("e2m1", 1, 32, "E8M0"), 0.35),
    "int4, groups of 32, BF16": (Scaled("int4", 1, 32, "BF16"), 0.35),
}
"""Each with the part of the speed of a copy that is to be reached."""

Arrays = list[memoryview]


def measure() -> dict[str, Any]:
    cases = [_case(name, encoding) for name, (encoding, _) in SCHEMES.items()]
    targets = [
        harness.target(f"of the speed of a copy, {case['scheme']}, 1 delta, 1 thread", case["ratio"], at_least=SCHEMES[case["scheme"]][1])
        for case in cases
    ]
    return {
        "what": {"tile": SHAPE, "tiles": TILES, "copy": "numpy.copyto of the bytes that a merge reads and writes"},
        "cases": cases,
        "targets": targets,
    }


def show(document: dict[str, Any]) -> None:
    columns = ("merge", "decode", "encode", "copy", "ratio")
    rows = [(case["scheme"], *(case[column] for column in columns)) for case in document["cases"]]
    harness.table(("GB/s of stored bytes", *columns), rows)
    print(f"  medians of {harness.ROUNDS} in turn; one delta with weight 1 on another base, so that every block has new codes")


def _case(name: str, encoding: Scaled) -> dict[str, Any]:
    harness.progress(name)
    elements = prod(SHAPE)
    weights = np.random.default_rng(0).normal(size=elements) * 0.02
    differences = [np.random.default_rng(seed).normal(size=elements) * by for seed, by in ((1, 0.0), (2, 0.002), (3, 0.001))]
    models = [_encoded(encoding, weights + difference) for difference in differences]
    tiles = [[_copy(arrays) for arrays in (*models, models[0])] for _ in range(TILES)]
    moved = sum(data.nbytes for arrays in tiles[0] for data in arrays)
    numbers = np.empty(elements, np.float64 if encoding.numbers == "F64" else np.float32)
    changed = numbers.copy()
    decode(encoding, models[0], SHAPE, 0, elements, memoryview(changed).cast("B"))
    kept = Stored(models[0], memoryview(changed.copy()).cast("B"))
    changed *= 0.999

    def merge(turn: int) -> None:
        base, post, old, out = tiles[turn % TILES]
        merge_scaled(encoding, SHAPE, 0, elements, base, [(post, old)], [1.0], *out)

    def decoding(turn: int) -> None:
        decode(encoding, tiles[turn % TILES][0], SHAPE, 0, elements, memoryview(numbers).cast("B"))

    def encoding_(turn: int) -> None:
        encode(encoding, memoryview(changed).cast("B"), SHAPE, 0, elements, kept, [], *tiles[turn % TILES][3])

    def copy(turn: int) -> None:
        base, post, old, out = tiles[turn % TILES]
        for to, of in zip([*out, *post], [*base, *old], strict=True):  # what posts are is all the same to the time of a merge
            np.copyto(np.frombuffer(to, np.uint8), np.frombuffer(of, np.uint8))

    runs = {
        "merge": lambda: _rate(merge, moved),
        "decode": lambda: _rate(decoding, moved // 4),
        "encode": lambda: _rate(encoding_, moved // 4),
        "copy": lambda: _rate(copy, moved),
    }
    merge(0), decoding(0), encoding_(0)  # which compiles them
    rates = {which: figures["rate"] for which, figures in harness.medians(harness.in_turn(runs)).items()}
    rounded = {which: round(rate, 3) for which, rate in rates.items()}
    return {"scheme": name, **rounded, "ratio": round(rates["merge"] / rates["copy"], 3)}


def _copy(arrays: Arrays) -> Arrays:
    return [memoryview(bytearray(data)) for data in arrays]


def _encoded(encoding: Scaled, weights: Any) -> Arrays:
    """Codes and scales of weights, each scale the least that does not clip."""
    arrays = [memoryview(bytearray(stop - start)) for start, stop in encoding.ranges(SHAPE, 0, len(weights))]
    numbers = weights.astype(np.float64 if encoding.numbers == "F64" else np.float32)
    none = Stored(_copy(arrays), memoryview(np.full_like(numbers, np.nan)).cast("B"))
    encode(encoding, memoryview(numbers).cast("B"), SHAPE, 0, len(weights), none, [], *arrays)
    return arrays


def _rate(work: Any, moved: int) -> Figures:
    """GB/s of processor time; `work(turn)` moves so many bytes."""
    turns, began = 0, time.thread_time()
    while time.thread_time() - began < SECONDS:
        work(turns)
        turns += 1
    return {"rate": turns * moved / (time.thread_time() - began) / 1e9}
