"""Rank the rows of a store exactly.

In: query vectors, and a store. Out: rows and scores, best first. Every
requested row is scanned, block by block, in memory that does not grow with
the store. A float32 product selects the rows that may be among the best;
`scores` computes their scores and their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching.products import FEW, product, widened
from rn50feat.searching.scores import Scores, Vectors, contenders, in_order, score, tolerance
from rn50feat.store.reader import FeatureStore

Rows = NDArray[np.int64]
Ranking = tuple[Rows, Scores]
NO_ROWS: Rows = np.empty(0, np.int64)
BLOCK = 4096  # rows: 32 MB as float32
SLICE = 1024  # rows: 4 MB as float16, which stay in a cache from reading to scoring
_UNDERFLOW = 1e-30  # squared lengths below are not accurate
# The error of a cosine in float32: about 1e-7, or 8e-6 if all roundings of a sum in 16 lanes added up.
ROUNDING = 1e-5


def scan(
    queries: Vectors, own: Sequence[Rows], store: FeatureStore, k: int, metric: str, rows: Rows | None = None
) -> list[Ranking]:
    """Find the `k` best rows for each of `queries`, (m, 2048): rows and scores, best first.

    Scans `rows`, ascending, or all. `own` rows are left out, and so are
    damaged ones with NaN or infinity. Equal scores are ordered by id.
    """
    rankings = [best.ranking() for best in best_of(queries, own, store, store.column("ids"), k, metric, rows)]
    return [(ranked[:k], scores[:k]) for ranked, scores in rankings]


@np.errstate(invalid="ignore", over="ignore")  # from damaged rows, which are never hits
def best_of(
    queries: Vectors,
    own: Sequence[Rows],
    store: FeatureStore,
    ids: Rows,
    k: int,
    metric: str,
    rows: Rows | None = None,
) -> list[Best]:
    """Find the `k` best rows like `scan`, and all that tie with the last; `ids` are those of all rows."""
    wanted = prepared(queries, metric)
    count = len(ids) if rows is None else len(rows)
    multiply = product(wanted, store.dtype, count)
    lengths = np.sqrt(np.einsum("ij,ij->i", wanted, wanted))
    size = SLICE if len(queries) <= FEW else max(64, min(BLOCK, (1 << 22) // len(queries)))  # at most 16 MB of nearness
    bests = [Best(query, k, metric) for query in queries]
    for start in range(0, count, size):
        numbers = np.arange(start, min(start + size, count)) if rows is None else rows[start : start + size]
        features = store.features(numbers)
        nearness, errors = _nearness(*multiply(features), features, lengths, metric)
        for best, line, error, excluded in zip(bests, nearness, errors.tolist(), own):
            near = excluded[(excluded >= numbers[0]) & (excluded <= numbers[-1])]
            if len(near):
                line[np.isin(numbers, near)] = -np.inf
            at = best.promising(line, error)
            if len(at):
                best.add(numbers[at], ids[numbers[at]], features[at])
        store.give_way()
    return bests


class Best:
    """The `k` best rows for a query so far, and all that tie with the last of them."""

    def __init__(self, query: Vectors, k: int, metric: str) -> None:
        self._query, self._k, self._metric = query, k, metric
        self._square = float(np.square(query, dtype=np.float64).sum())
        self._least = float(np.finfo(np.float32).min)  # above the -inf of excluded rows
        self.rows, self._ids, self._scores = NO_ROWS, NO_ROWS, np.empty(0)

    def promising(self, nearness: NDArray[np.float32], error: float) -> Rows:
        """Return the positions in `nearness`, accurate to `error`, that may belong to the best rows."""
        at = np.flatnonzero(~(nearness < self._least - error))  # keeps NaN from overflows: `scores` decides
        if len(at) > 2 * self._k:
            last = float(np.partition(nearness[at], -self._k)[-self._k])
            at = at[~(nearness[at] < self._tied(last - error) - error)]
        return at

    def add(self, rows: Rows, ids: Rows, features: Vectors) -> None:
        """Score `rows`, with their `ids` and `features`, and keep the best."""
        scores = score(self._query, features, self._metric)
        whole = np.isfinite(scores)
        rows, ids = np.concatenate([self.rows, rows[whole]]), np.concatenate([self._ids, ids[whole]])
        scores = np.concatenate([self._scores, scores[whole]])
        kept = contenders(scores, ids, self._k, self._metric)
        self.rows, self._ids, self._scores = rows[kept], ids[kept], scores[kept]
        if len(kept) >= self._k:
            last = float(self._scores[self._k - 1])
            self._least = self._tied(self._square - last * last if self._metric == "l2" else last)

    def _tied(self, nearness: float) -> float:
        """Return the lowest nearness of a row that may tie with one of this `nearness`, or start a tie with it."""
        if self._metric != "l2":
            return nearness - 2 * float(tolerance(nearness))
        distance = math.sqrt(max(0.0, self._square - nearness))
        distance += 2 * float(tolerance(distance))
        return self._square - distance * distance

    def ranking(self) -> Ranking:
        """Return the rows and their scores, best first."""
        at, scores = in_order(self._scores, self._ids, self._metric)
        return self.rows[at], scores


@np.errstate(invalid="ignore", over="ignore")
def rank(query: Vectors, rows: Rows, store: FeatureStore, ids: Rows, metric: str) -> Ranking:
    """Score and order any number of `rows` for one query, (2048,); best first, without damaged ones."""
    parts = [score(query, store.features(rows[i : i + BLOCK]), metric) for i in range(0, len(rows), BLOCK)]
    scores = np.concatenate([np.empty(0), *parts])
    rows, scores = rows[np.isfinite(scores)], scores[np.isfinite(scores)]
    at, scores = in_order(scores, ids[rows], metric)
    return rows[at], scores


@np.errstate(invalid="ignore")
def prepared(vectors: Vectors, metric: str) -> NDArray[np.float32]:
    """Convert `vectors`, (n, 2048), to float32, and scale them to length 1 if `metric` is cosine."""
    unit: NDArray[np.float32] = widened(vectors, np.float32)
    if metric == "cosine":
        lengths = np.sqrt(np.einsum("ij,ij->i", unit, unit))  # np.linalg.norm squares a copy: 28 ms a block, and so 22
        unit = unit / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]  # `unit` may be `vectors` itself
    return unit


def _nearness(
    products: NDArray[np.float32],
    squares: NDArray[np.float32],
    rows: Vectors,
    lengths: NDArray[np.float32],
    metric: str,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Estimate how near `rows`, (n, 2048), are to queries: (m, n) in the order of `metric`, higher is nearer.

    `products` (m, n) and `squares` (n,) are those of `products.product`, `lengths` (m,) those of the queries. Also
    returns the largest error for each query, (m,). The nearness is -inf for rows with NaN or infinity, and NaN where
    float32 cannot tell: `scores` decides about these.
    """
    errors = np.full(len(products), ROUNDING, np.float32)
    if metric == "cosine":
        nearness = np.divide(products, np.sqrt(squares), dtype=np.float32)
    else:
        longest = float(np.sqrt(np.max(squares, initial=0, where=np.isfinite(squares))))
        errors *= longest * lengths
        nearness = products
        if metric == "l2":  # -|q - f|^2 without |q|^2, which is the same for all rows
            nearness = 2 * products - squares
            errors = 2 * errors + np.float32(ROUNDING * longest**2)
    odd = np.flatnonzero(~((squares > _UNDERFLOW) & (squares < np.inf)))  # far fewer to look at than all rows
    if len(odd):
        whole, zero = np.isfinite(rows[odd]).all(axis=1), ~rows[odd].any(axis=1)
        unclear = whole if metric == "cosine" else whole & ~(squares[odd] < np.inf)
        nearness[:, odd[~whole]], nearness[:, odd[unclear]] = -np.inf, np.nan
        if metric == "cosine":
            nearness[:, odd[zero]] = 0
    return nearness, errors
