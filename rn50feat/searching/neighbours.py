"""Find the nearest neighbours of every row of a store.

In: a snapshot of a store. Out: the ids and cosines of each row's nearest other
rows, exact, and ordered as hits are. The store may be written to meanwhile:
new rows are left out, and where rows are replaced or removed, reading ends
with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import exact, many_queries
from rn50feat.searching.best import Best
from rn50feat.searching.exact import MOST_HITS
from rn50feat.store.snapshot import Snapshot

MOST = MOST_HITS  # neighbours of a row


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of n rows, best first: ids, int64 (n, k), and cosines, float64 (n, k).

    Where a row has fewer, the ids are -1 and the cosines NaN.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __getitem__(self, part: slice) -> Neighbours:
        return Neighbours(self.ids[part], self.scores[part])


class NeighbourSearch:
    """The `k` nearest neighbours of the rows of a snapshot, from its first row to its last."""

    def __init__(self, snapshot: Snapshot, k: int, on_progress: Callable[[int], None]) -> None:
        """Prepare a search; `on_progress` gets the number of rows done, several times in a second or two."""
        self.k = k
        self._snapshot, self._on_progress = snapshot, on_progress
        self._found = [_arranged([], snapshot, k)]
        self._done = 0

    def take(self, count: int) -> Neighbours:
        """Return the neighbours of the next `count` rows; raise `StoreError` if rows moved since the snapshot."""
        while sum(len(part.ids) for part in self._found) < count:
            self._found.append(self._next())
        joined = Neighbours(
            *(np.concatenate([getattr(part, name) for part in self._found]) for name in ("ids", "scores"))
        )
        self._found = [joined[count:]]
        return joined[:count]

    def _next(self) -> Neighbours:
        snapshot, total = self._snapshot, len(self._snapshot)
        rows = np.arange(self._done, min(self._done + many_queries.most(self.k), total))

        def work() -> list[Best]:
            snapshot.require_unmoved()
            queries, own = snapshot.store.features(rows), [rows[i : i + 1] for i in range(len(rows))]
            return exact.best_of(
                queries, own, snapshot.store, snapshot.ids, self.k, "cosine",
                on_block=lambda scanned: self._on_progress(int(rows[0]) + len(rows) * scanned // total),
            )  # fmt: skip

        found = snapshot.store.steadily(work)
        self._done += len(rows)
        return _arranged(found, snapshot, self.k)


def _arranged(bests: list[Best], snapshot: Snapshot, k: int) -> Neighbours:
    found = Neighbours(np.full((len(bests), k), -1), np.full((len(bests), k), np.nan))
    for i, best in enumerate(bests):
        rows, scores = best.ranking()
        found.ids[i, : len(rows)], found.scores[i, : len(rows)] = snapshot.ids[rows[:k]], scores[:k]
    return found
