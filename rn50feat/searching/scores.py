"""Score rows and order them by score; every ranking of the program uses this.

In: features. Out: cosines, inner products or Euclidean distances in float64,
and the order of the hits. A score depends on the two vectors only: equal rows
have equal scores, whatever the block, position, batch or processor. Scores
that differ by at most `tolerance` are equal: the difference between cosines
of 0.9999996 and 0.9999999 says nothing about the images. Equal scores are
ordered by id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rn50feat.searching.products import widened

METRICS = ("cosine", "l2", "ip")
TIE = 1e-6  # scores that differ by less are equal; for scores above 1, relative to the score
Vectors = NDArray[np.floating[Any]]
Scores = NDArray[np.float64]
_PART = 256  # rows at once: 4 MB in float64 fit in the cache


def tolerance(scores: ArrayLike) -> Scores:
    """Return how far other scores may be from `scores` and still be equal to them; same shape."""
    allowed: Scores = TIE * np.maximum(1, np.abs(scores))
    return allowed


def reaches(scores: Scores, threshold: float) -> NDArray[np.bool_]:
    """Check which similarities are at least `threshold`, or equal to it within `tolerance`."""
    return scores >= threshold - tolerance(threshold)


def score(query: Vectors, rows: Vectors, metric: str) -> Scores:
    """Score each of `rows`, (n, 2048), against `query`, (2048,): float64 (n,), NaN or infinity for damaged rows.

    A BLAS product would sum the last rows of a block, or a single row, in another order than the rest.
    """
    vector = query.astype(np.float64)
    parts = [_score(vector, widened(rows[i : i + _PART], np.float64), metric) for i in range(0, len(rows), _PART)]
    return np.concatenate([np.empty(0), *parts])


def _score(query: Scores, rows: Scores, metric: str) -> Scores:
    if metric == "l2":
        return _lengths(rows - query)
    products: Scores = np.einsum("ij,j->i", rows, query)
    if metric == "ip":
        return products
    lengths = _lengths(rows) * _lengths(query[None])
    cosines: Scores = np.clip(products / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    return cosines


def _lengths(vectors: Scores) -> Scores:
    lengths: Scores = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return lengths


def in_order(scores: Scores, ids: NDArray[np.int64], metric: str) -> tuple[NDArray[np.int64], Scores]:
    """Order `scores`, best first and equal ones by `ids`; return the order and the ordered scores.

    From the best down, each score absorbs the lower ones that are equal to it, and all of them become that score.
    Unlike a fixed grid, this separates two near scores only if another one lies right above them.
    """
    sign = 1 if metric == "l2" else -1
    costs = sign * scores
    by_cost = np.argsort(costs, kind="stable")
    costs = costs[by_cost]
    limits = costs + tolerance(costs)
    stop = 0
    for start in np.flatnonzero(costs[1:] <= limits[:-1]).tolist():
        if start >= stop:
            stop = int(np.searchsorted(costs, limits[start], "right"))
            costs[start:stop] = costs[start]
    by_id = np.lexsort((ids[by_cost], costs))
    return by_cost[by_id], sign * costs[by_id]


def contenders(scores: Scores, ids: NDArray[np.int64], k: int, metric: str) -> NDArray[np.int64]:
    """Return the positions of all `scores` that can still be among the first `k` of `in_order` when more are added.

    Only the first `k` ids of a score can, so a thousand copies take no memory.
    """
    costs = scores if metric == "l2" else -scores
    by_cost = np.lexsort((ids, costs))
    costs = costs[by_cost]
    if len(costs) <= k:
        return by_cost
    last = costs[k - 1]
    kept = (costs <= last + 2 * tolerance(last)) & (np.arange(len(costs)) - np.searchsorted(costs, costs) < k)
    positions: NDArray[np.int64] = by_cost[kept]
    return positions
