"""Numbers that were worked out from the formulas once, apart from this package, and the inputs they belong to."""

import json
from pathlib import Path

import numpy as np

SHAPE = (4, 8)
EXPECTED = json.loads(Path(__file__).with_name("golden.json").read_text())


def numbers(seed, shape=SHAPE):
    """Uniform in [−0.5, 0.5): the top 53 bits of splitmix64's finaliser of (seed << 32) + index."""
    with np.errstate(over="ignore"):
        z = (np.uint64(seed) << np.uint64(32)) + np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5).reshape(shape)


BASE = numbers(1)
MODELS = [BASE + 0.1 * numbers(10 + t) for t in range(3)]
DELTAS = [model - BASE for model in MODELS]
KEEP = [((37 * np.arange(BASE.size) + 11 * t) % 100 < 60).reshape(SHAPE) for t in range(3)]
"""Stands in for what DARE draws at p = 0.4."""


def assert_golden(name, result):
    """That result − BASE has the elements, sum, norm and number of nonzeros that are expected of it."""
    expected, change = EXPECTED[name], np.asarray(result, dtype=np.float64).reshape(SHAPE) - BASE
    found = {
        "d00": change[0, 0],
        "d13": change[1, 3],
        "d37": change[3, 7],
        "sum": change.sum(),
        "l2": np.linalg.norm(change),
        "nnz": int((change != 0).sum()),
    }
    wrong = {key: (found[key], value) for key, value in expected.items() if abs(found[key] - value) > 1e-8}
    assert not wrong, f"{name}: (found, expected) {wrong}"
