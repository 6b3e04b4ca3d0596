"""The judges judged: every oracle gives the numbers that were worked out apart from it."""

import numpy as np
import pytest

from tests.methods import oracles
from tests.methods.golden import BASE, DELTAS, EXPECTED, KEEP, MODELS, assert_golden

ONES, UNEQUAL = [1.0, 1.0, 1.0], [0.5, 0.3, 0.2]


def dared(rescale):
    return [oracles.dare(delta, keep, 0.4, rescale) for delta, keep in zip(DELTAS, KEEP, strict=True)]


def ties_official():
    """As the authors' code trims: by "at least the k-th", which keeps one more."""
    trimmed = [oracles.only(delta, oracles.order(delta)[: delta.size // 2 + 1]) for delta in DELTAS]
    return oracles.consensus(BASE, trimmed, ONES, "count")


CUBED = BASE + 2000 * DELTAS[0] ** 3
RESULTS = {
    "input 0": lambda: MODELS[0],
    "input 1": lambda: MODELS[1],
    "input 2": lambda: MODELS[2],
    "linear": lambda: oracles.linear(MODELS, UNEQUAL),
    "task_arithmetic": lambda: oracles.task_arithmetic(BASE, DELTAS, ONES, 0.4),
    "expo": lambda: oracles.expo(MODELS[0], DELTAS[0], 0.3),
    "ties": lambda: oracles.ties(BASE, DELTAS, ONES, 0.5, "weight"),
    "ties weighted": lambda: oracles.ties(BASE, DELTAS, UNEQUAL, 0.5, "weight"),
    "ties official": ties_official,
    "dare_linear": lambda: oracles.task_arithmetic(BASE, dared("inverse_p"), ONES),
    "dare_linear l1": lambda: oracles.task_arithmetic(BASE, dared("l1"), ONES),
    "dare_ties l1": lambda: oracles.consensus(BASE, dared("l1"), ONES, "none"),
    "dare k": lambda: BASE + oracles.dare(DELTAS[0], KEEP[0], 0.4, k=0.5),
    "breadcrumbs": lambda: oracles.task_arithmetic(BASE, [oracles.breadcrumbs(delta, 0.5, 0.1) for delta in DELTAS], ONES),
    "breadcrumbs rows": lambda: oracles.task_arithmetic(BASE, [oracles.breadcrumbs_rows(d, 0.5, 0.125) for d in DELTAS], ONES, 0.3),
    "sce": lambda: oracles.sce(BASE, DELTAS),
    "sce half": lambda: oracles.sce(BASE, DELTAS, 0.5),
    "slerp": lambda: oracles.slerp(BASE, MODELS[0], 0.3),
    "nuslerp": lambda: BASE + oracles.nuslerp(*DELTAS[:2], [0.5, 0.3]),
    "nuslerp rows": lambda: BASE + oracles.nuslerp(*DELTAS[:2], [0.5, 0.3], -1),
    "nuslerp columns": lambda: BASE + oracles.nuslerp(*DELTAS[:2], [0.5, 0.3], 0),
    "model_stock": lambda: oracles.model_stock(BASE, DELTAS),
    "karcher": lambda: oracles.karcher(MODELS),
    "multislerp": lambda: BASE + oracles.multislerp(DELTAS, UNEQUAL),
    "arcee_fusion": lambda: oracles.arcee_fusion(BASE, CUBED),
    "nearswap": lambda: oracles.nearswap(BASE, MODELS[0], 0.02),
    "ram": lambda: oracles.ram(BASE, DELTAS, 0.03),
    "ramplus_tl": lambda: oracles.ram(BASE, DELTAS, 0.03, 0.1, 0.2),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_oracle_gives_the_golden_numbers(name):
    assert_golden(name, RESULTS[name]())


def test_della_keeps_by_the_golden_probabilities():
    expected = [0.335714, 0.507143, 0.55, 0.378571, 0.25, 0.464286, 0.292857, 0.421429]
    assert np.abs(oracles.della_probabilities(DELTAS[0], 0.4, 0.15)[0] - expected).max() < 1e-6
