"""Measure the recall of an index, and set how a search uses it.

In: a store's index, and rows to search with. Out: the number of lists to probe
(nprobe) and of candidates to rank exactly that reach a target at the least
cost, and the recall measured with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import exact
from rn50feat.searching.best import NO_ROWS, Rows
from rn50feat.searching.exact import prepared
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.nearest import AT
from rn50feat.store.reader import FeatureStore

# Fewer than 8 lists save nothing: probing 8 takes 0.3 ms, reading the candidates' rows 1.4.
FIRST = 8
CANDIDATES = (100, 150, 200, 300, 400, 600, 800, 1000, 1200, 1500, 2000, 3000, 4000)
# Microseconds on a core of a Xeon with AMX: to compare a query with one code of 272 bytes, and to rank one candidate.
_CODE, _CODE_SIZE, _CANDIDATE = 0.13, 272, 4.0
_BLOCK = 1 << 20  # ids
_SURE = 1.0  # standard error by which the measured recall must exceed the target: other queries have other recalls


@dataclass(frozen=True)
class Tuning:
    """How to search: lists to probe (None without lists), candidates to rank, and the recall@10 measured with both.

    ``recall`` is None if there was nothing to compare.
    """

    nprobe: int | None
    candidates: int
    recall: float | None


@dataclass(frozen=True)
class _Point:
    """A way to search, its cost in microseconds per query, its recall, and the standard error of that."""

    nprobe: int | None
    candidates: int
    cost: float
    recall: float
    error: float

    def surely(self, target: float) -> bool:
        """Check whether the recall reaches `target`, also with other queries."""
        return self.recall - _SURE * self.error >= target


def tune(store: FeatureStore, index: FaissIndex, metric: str, chosen: Rows, target: float) -> Tuning:
    """Find the cheapest way to search `index` with a recall of `target`, or else the best, and let `index` use it.

    The queries are the rows with the ids `chosen`. None of them counts as a
    neighbour, whether in the index or not. The ground truth is an exact scan
    of all other rows.
    """

    def work() -> Tuning:
        ids = store.column("ids")
        rows = _rows_of(ids, chosen)
        queries = store.features(rows)
        bests = exact.best_of(queries, [rows] * len(queries), store, ids, AT, metric)
        truth = [_nearest(ids, *best.ranking()) for best in bests]
        if not any(map(len, truth)):
            return Tuning(None, CANDIDATES[0], None)
        best = _choose(list(_points(index, prepared(queries, metric), ids[rows], truth, target)), target)
        if best.nprobe is not None:
            index.probe(best.nprobe)
        return Tuning(best.nprobe, best.candidates, best.recall)

    return store.steadily(work)


def _rows_of(ids: Rows, chosen: Rows) -> Rows:
    """Return the rows of the ids `chosen`, ascending, in memory that does not grow with `ids`."""
    blocks = ((first, ids[first : first + _BLOCK]) for first in range(0, len(ids), _BLOCK))
    return np.concatenate([NO_ROWS, *(first + np.flatnonzero(np.isin(block, chosen)) for first, block in blocks)])


def _nearest(ids: Rows, rows: Rows, scores: NDArray[np.float64]) -> Rows:
    """Return the ids of the `AT` nearest rows, and of those that tie with the last."""
    if len(rows) > AT:
        rows = rows[: np.flatnonzero(scores == scores[AT - 1])[-1] + 1]
    return ids[rows]


def _points(
    index: FaissIndex, queries: NDArray[np.float32], own: Rows, truth: list[Rows], target: float
) -> Iterator[_Point]:
    """Measure each number of lists with each number of candidates, until more lists cannot be the cheapest way."""
    cheapest = math.inf
    counts = [count for count in CANDIDATES if count < len(index)] or [min(CANDIDATES[0], len(index))]
    wanted = np.array([min(AT, len(true)) for true in truth])
    for nprobe in _steps(index.lists):
        codes = len(index) * (nprobe / index.lists if nprobe else 1) * _CODE * index.row_size / _CODE_SIZE
        if codes >= cheapest:
            return
        if nprobe is not None:
            index.probe(nprobe)
        found, _ = index.candidates(queries, min(len(index), counts[-1] + len(own)))
        # Where each true neighbour is among the candidates, without the queries themselves.
        places = [np.flatnonzero(np.isin(some[~np.isin(some, own)], true)) for some, true in zip(found, truth)]
        for count in counts:
            hits = np.minimum([(place < count).sum() for place in places], wanted)
            shares = hits[wanted > 0] / wanted[wanted > 0]
            error = float(shares.std() / len(shares) ** 0.5)
            point = _Point(nprobe, count, codes + count * _CANDIDATE, float(shares.mean()), error)
            if point.surely(target):
                cheapest = min(cheapest, point.cost)
            yield point


def _choose(points: list[_Point], target: float) -> _Point:
    """Choose the cheapest point that surely reaches `target`, else the cheapest of about the highest recall."""
    if sure := [point for point in points if point.surely(target)]:
        return min(sure, key=lambda point: point.cost)
    most = max(point.recall for point in points)
    return min((point for point in points if point.recall >= most - 0.001), key=lambda point: point.cost)


def _steps(lists: int) -> Sequence[int | None]:
    """List the numbers of lists to try, ascending: 8, 12, 16, 24, 32, ...; None for an index without lists."""
    if not lists:
        return [None]
    powers = [FIRST << i for i in range(lists.bit_length())]
    return sorted({min(step, lists) for power in powers for step in (power, power * 3 // 2)})
