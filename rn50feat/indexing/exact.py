"""Rank the rows of a store exactly.

In: query vectors, and a store. Out: rows and scores, the best first. Every
row that is asked about is looked at, in blocks, in memory that does not grow
with the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.store import FeatureStore

METRICS = ("cosine", "l2", "ip")
Vectors = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Ranking = tuple[Rows, Scores]
NO_ROWS: Rows = np.empty(0, np.int64)
BLOCK = 4096  # rows: 32 MB as float32


@np.errstate(invalid="ignore")  # of damaged rows, which are no hits
def scan(
    queries: Vectors, own: Sequence[Rows], store: FeatureStore, k: int, metric: str, rows: Rows | None = None
) -> list[Ranking]:
    """Return the rows and scores, the best first, of the `k` best rows for each of `queries`, (m, 2048).

    Looks at `rows`, ascending, or at all; `own` rows are left out, and damaged
    ones, that hold NaN or infinity. Equal scores stand in the order of their rows.
    """
    wanted = prepared(queries, metric)
    size = max(64, min(BLOCK, (1 << 22) // max(1, len(queries))))  # at most 16 MB of scores
    best = np.full((len(queries), 0), -np.inf, np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for numbers, features in _blocks(store, rows, size):
        nearness = _nearness(wanted, prepared(features, metric), metric)
        for i, excluded in enumerate(own):
            if len(excluded):
                nearness[i, np.isin(numbers, excluded)] = -np.inf
        best = np.concatenate([best, nearness], axis=1)
        found = np.concatenate([found, np.broadcast_to(numbers, nearness.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
    kept = [row[score > -np.inf] for row, score in zip(found, best)]
    return [rank(query, row, store, metric) for query, row in zip(queries, kept)]


def _blocks(store: FeatureStore, rows: Rows | None, size: int) -> Iterator[tuple[Rows, Vectors]]:
    """Yield (row numbers, their features), `size` at a time."""
    if rows is None:
        for first, features in store.blocks(size):
            yield np.arange(first, first + len(features)), features
    else:
        for start in range(0, len(rows), size):
            yield rows[start : start + size], store.features(rows[start : start + size])


@np.errstate(invalid="ignore")
def rerank(queries: Vectors, rows: Sequence[Rows], store: FeatureStore, k: int, metric: str) -> list[Ranking]:
    """Return the `k` best of `rows`, ascending for each of `queries`, (m, 2048), as `scan` does.

    Rows are read once for several queries: 100 take 1.4 ms, and the rest 0.5.
    """
    results: list[Ranking] = []
    start = 0
    while start < len(queries):
        ends = start + np.flatnonzero(np.cumsum([len(some) for some in rows[start:]]) <= 2 * BLOCK) + 1
        if not len(ends):
            results += scan(queries[start : start + 1], [NO_ROWS], store, k, metric, rows[start])
            start += 1
            continue
        stop = int(ends[-1])
        union = np.unique(np.concatenate(rows[start:stop]))
        features = store.features(union)
        vectors = prepared(features, metric)
        for query, some in zip(queries[start:stop], rows[start:stop]):
            at = np.searchsorted(union, some)
            nearness = _nearness(prepared(query[None], metric), vectors[at], metric)[0]
            best = np.argsort(-nearness, kind="stable")[:k]
            best = best[nearness[best] > -np.inf]
            results.append(_by_score(some[best], _scores(query, features[at[best]], metric), metric))
        start = stop
    return results


@np.errstate(invalid="ignore")
def prepared(vectors: Vectors, metric: str) -> NDArray[np.float32]:
    """Return `vectors`, (n, 2048), as `metric` compares them: of length 1 for cosine, else as they are."""
    if metric != "cosine":
        return np.asarray(vectors, np.float32)
    unit: NDArray[np.float32] = np.array(vectors, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", unit, unit))  # np.linalg.norm squares a copy: 28 ms a block, and so 22
    unit /= np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return unit


def _nearness(queries: NDArray[np.float32], rows: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    """Return (m, n) numbers that order `rows`, which are `prepared`, as `metric` does, more being nearer.

    It is -inf for rows that hold NaN or infinity.
    """
    nearness: NDArray[np.float32] = queries @ rows.T
    if metric == "l2":  # -|q - f|^2, less |q|^2, which is the same for all rows
        nearness = 2 * nearness - np.einsum("ij,ij->i", rows, rows)
    suspects = np.flatnonzero(~np.isfinite(nearness).all(axis=0))  # far fewer to look at than all rows
    nearness[:, suspects[~np.isfinite(rows[suspects]).all(axis=1)]] = -np.inf
    return nearness


def rank(query: Vectors, rows: Rows, store: FeatureStore, metric: str) -> Ranking:
    """Return `rows` and their scores in double precision, ordered by these: float32 leaves ties in doubt."""
    parts = [_scores(query, store.features(rows[i : i + BLOCK]), metric) for i in range(0, len(rows), BLOCK)]
    return _by_score(rows, np.concatenate([np.empty(0), *parts]), metric)


def _by_score(rows: Rows, scores: Scores, metric: str) -> Ranking:
    order = np.lexsort((rows, scores if metric == "l2" else -scores))
    return rows[order], scores[order]


def _scores(query: Vectors, rows: Vectors, metric: str) -> Scores:
    features, vector = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        distances: Scores = np.linalg.norm(features - vector, axis=1)
        return distances
    scores: Scores = features @ vector
    if metric == "cosine":
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(vector)
        scores = np.clip(scores / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    return scores
