"""Rank the rows of a store exactly.

In: query vectors, and a store. Out: rows and scores, best first. Every
requested row is scanned, block by block, in memory that does not grow with
the store. A float32 product selects the rows that may be among the best;
`scores` computes their scores and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import many_queries, rounded
from rn50feat.searching.best import Best, Ranking, Rows
from rn50feat.searching.many_queries import ManyQueries
from rn50feat.searching.products import FEW, product, widened
from rn50feat.searching.scores import Vectors, in_order, score
from rn50feat.store.reader import FeatureStore

BLOCK = 4096  # rows: 32 MB as float32
SLICE = 1024  # rows: 4 MB as float16, which stay in a cache from reading to scoring
MANY = 16  # queries: on 50,000 rows they take 0.55 s of a core together in bfloat16, and 0.95 by `products`
MOST_HITS = 1000  # of many queries: for more, what is known of each takes more memory than the products
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


def best_of(
    queries: Vectors,
    own: Sequence[Rows],
    store: FeatureStore,
    ids: Rows,
    k: int,
    metric: str,
    rows: Rows | None = None,
    on_block: Callable[[int], None] = lambda done: None,
) -> list[Best]:
    """Find the `k` best rows like `scan`, and all that tie with the last; `ids` are those of all rows.

    `on_block` gets the number of rows that were scanned, for many queries only.
    """
    if not len(queries):
        return []
    if len(queries) < MANY or k > MOST_HITS:
        return _best_of_few(queries, own, store, ids, k, metric, rows)
    bests, most = [], many_queries.most(k)
    for first in range(0, len(queries), most):
        part = slice(first, first + most)
        bests += _best_of_many(queries[part], own[part], store, ids, k, metric, rows, on_block)
    return bests


def _best_of_many(
    queries: Vectors,
    own: Sequence[Rows],
    store: FeatureStore,
    ids: Rows,
    k: int,
    metric: str,
    rows: Rows | None,
    on_block: Callable[[int], None],
) -> list[Best]:
    count, done = len(ids) if rows is None else len(rows), 0
    found = ManyQueries(queries, own, k, metric, rounded.fastest(len(queries) * count), ids, store.features)
    for numbers in _in_blocks(rows, count, many_queries.size_of_blocks(len(queries))):
        found.look_at(numbers, store.features(numbers))
        store.give_way()
        done += len(numbers)
        on_block(done)
    bests = found.bests()
    if len(rest := found.unclear):
        others = _best_of_few(queries[rest], [own[i] for i in rest], store, ids, k, metric, rows)
        for i, best in zip(rest.tolist(), others):
            bests[i] = best
    return bests


def _in_blocks(rows: Rows | None, count: int, size: int) -> Iterator[Rows]:
    """Divide `rows`, or the first `count` of a store, into blocks."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count)) if rows is None else rows[start : start + size]


@np.errstate(invalid="ignore", over="ignore")  # from damaged rows, which are never hits
def _best_of_few(
    queries: Vectors, own: Sequence[Rows], store: FeatureStore, ids: Rows, k: int, metric: str, rows: Rows | None
) -> list[Best]:
    wanted = prepared(queries, metric)
    count = len(ids) if rows is None else len(rows)
    multiply = product(wanted, store.dtype, count)
    lengths = np.sqrt(np.einsum("ij,ij->i", wanted, wanted))
    size = SLICE if len(queries) <= FEW else max(64, min(BLOCK, (1 << 22) // len(queries)))  # at most 16 MB of nearness
    bests = [Best(query, k, metric) for query in queries]
    for numbers in _in_blocks(rows, count, size):
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
