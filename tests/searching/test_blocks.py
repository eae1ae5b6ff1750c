"""blocks: the nearness of every pair is in the range that a product gives it, and limits let no pair go."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import clusters, hard

from rn50feat.searching import blocks, rounded
from rn50feat.searching.blocks import Bounds
from rn50feat.searching.rounded import Precision
from rn50feat.searching.scores import METRICS


def truth(queries: NDArray[np.generic], rows: NDArray[np.generic], metric: str) -> NDArray[np.float64]:
    """Return the nearness of all pairs in float64."""
    left, right = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(left[:, None] - right[None], axis=2)
    products = left @ right.T
    if metric == "cosine":
        products /= np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return products


def drawn(kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    if kind == "hard":
        return next(hard(150)).astype(np.float32)
    if kind == "alike":  # as with random weights
        return (1 + 0.01 * rng.standard_normal((150, 2048))).astype(np.float32)
    rows = clusters(150) * np.where(rng.random((150, 1)) < 0.5, 1, -1)
    return (rows * 10 ** rng.uniform(-4, 3, (150, 1))).astype(np.float32)


@pytest.mark.parametrize("kind", ["hard", "alike", "lengths"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_ranges_and_limits(precision: Precision, metric: str, kind: str) -> None:
    if precision == "bf16" and not rounded._adds_in_float32():
        pytest.skip("torch adds bfloat16 in bfloat16 here, and the program never uses it")
    vectors = drawn(kind)
    queries, rows = vectors[:50], vectors[30:]
    centre, expected = rounded.centre_of(queries, metric), truth(queries, rows, metric)
    left = rounded.rounded(queries, metric, precision, centre=centre, queries=True)
    right = rounded.rounded(rows, metric, precision, centre=centre)
    products, bounds = blocks.multiply(left, right), Bounds(left, right, metric)
    i, j = (places.reshape(-1) for places in np.indices(expected.shape))
    low, high = bounds.ranges(blocks.at(products, i, j), i)
    slack = 1e-12 * (1 + np.abs(expected[i, j]))
    assert (low <= expected[i, j] + slack).all()
    assert (high >= expected[i, j] - slack).all()
    limits = np.sort(expected, axis=1)[:, -10]
    reached = blocks.reached(products, bounds.least(limits))
    assert reached[expected >= limits[:, None]].all()
    if kind != "lengths" and metric != "ip":
        assert reached.mean() < 0.3  # it is of use
    assert (blocks.largest(products, 1) == blocks.at(products, np.arange(50), blocks_best(products))).all()
    if precision == "fp32":
        some = blocks.multiply_pairs(left, right, i[:200], j[:200]).astype(np.float64)
        low, high = bounds.ranges(some, i[:200])
        assert ((low <= expected[i, j][:200] + slack[:200]) & (high >= expected[i, j][:200] - slack[:200])).all()


def blocks_best(products: object) -> NDArray[np.int64]:
    return np.argmax(np.asarray(getattr(products, "float", lambda: products)()), axis=1)
