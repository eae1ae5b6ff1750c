"""Keep the best rows for a query while more are found.

In: rows with their features. Out: the best of them, with scores and in order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching.scores import Scores, Vectors, contenders, in_order, score, tolerance

Rows = NDArray[np.int64]
Ranking = tuple[Rows, Scores]
NO_ROWS: Rows = np.empty(0, np.int64)


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

    @property
    def limit(self) -> float:
        """The lowest score (for a distance, its negative) with which a row could still be among the best or tie."""
        if len(self.rows) < self._k:
            return -math.inf
        last = float(self._scores[self._k - 1])
        return (-last if self._metric == "l2" else last) - 2 * float(tolerance(last))

    def ranking(self) -> Ranking:
        """Return the rows and their scores, best first."""
        at, scores = in_order(self._scores, self._ids, self._metric)
        return self.rows[at], scores
