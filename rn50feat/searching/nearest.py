"""Find the nearest rows of a store, through its index where there is one.

In: query vectors, a store and perhaps its index. Out: rows and exact scores.
The index gives candidates, which are ranked by the rows in the store. What it
has and the store has not is passed over; what the store has and the index has
not is scanned. So results are right whatever is newer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.searching import exact, index_file
from rn50feat.searching.exact import BLOCK, NO_ROWS, Ranking, Rows
from rn50feat.searching.index_file import IndexFacts
from rn50feat.searching.scores import Scores, Vectors
from rn50feat.store.reader import FeatureStore

if TYPE_CHECKING:
    from rn50feat.searching.faiss_index import FaissIndex

logger = logging.getLogger(__name__)

CANDIDATES = 100  # that are ranked exactly, for up to 10 hits; reading them takes 1.4 ms
_TAIL = 8  # candidates: equal rows are at most a rounding apart in the index, so that others may stand between them


@dataclass(frozen=True)
class OpenIndex:
    """An index and what is known of it."""

    faiss: FaissIndex
    facts: IndexFacts


@dataclass(frozen=True)
class Found:
    """Candidates of a query, the best first; ``settled`` where no more rows can tie with the k-th."""

    rows: Rows
    scores: Scores
    settled: bool


@dataclass(frozen=True)
class _Likely:
    """Candidates as the index gives them, the best by its estimate first; ``all`` where it has no more."""

    rows: Rows
    all: bool


def open_index(store: FeatureStore) -> OpenIndex | None:
    """Return the index beside `store`, None where there is none.

    Raises `IndexingError` for an index that is damaged, or of another store
    or provenance.
    """

    def mapped(path: Path) -> FaissIndex:
        from rn50feat.searching.faiss_index import FaissIndex  # FAISS takes 30 ms to import, and most stores need none

        return FaissIndex.load(path, mapped=True)

    found = index_file.load(store.path, mapped)
    if found is None:
        return None
    index_file.require_same(store, found[1])
    return OpenIndex(*found)


class Nearest:
    """The rows of a store, ready to be searched; use it inside one ``with store.reading():``."""

    def __init__(self, store: FeatureStore, metric: str, index: OpenIndex | None) -> None:
        """Search `store` by `metric`, through `index` unless that is for another metric."""
        if index is not None and index.facts.metric != metric:
            path = index_file.faiss_path(store.path)
            logger.warning("%s is for %s, not %s: every row is looked at", path, index.facts.metric, metric)
            index = None
        self._store, self._metric, self._index = store, metric, index
        if index is not None:
            self._ids = store.column("ids")
            self._order = np.argsort(self._ids, kind="stable")
            self._sorted = self._ids[self._order]
            self._recent = np.flatnonzero(self._ids >= index.facts.next_id)

    def find(self, queries: Vectors, own: Sequence[Rows], k: int) -> list[Ranking]:
        """Return the rows and scores, the best first, of the `k` nearest rows for each of `queries`, (m, 2048).

        `own` rows are left out. Equal scores stand in the order of their ids, at the k-th place, too: where the index
        may hold more of them than it gave candidates, it is asked for more.
        """
        if self._index is None or not len(queries):
            return exact.scan(queries, own, self._store, k, self._metric)
        count = max(CANDIDATES, 10 * k)
        found = self.among(queries, own, k, count)
        for i, excluded in enumerate(own):
            wanted = count
            while not found[i].settled:
                wanted *= 4
                (found[i],) = self.among(queries[i : i + 1], [excluded], k, wanted)
        return [(some.rows[:k], some.scores[:k]) for some in found]

    def among(self, queries: Vectors, own: Sequence[Rows], k: int, count: int) -> list[Found]:
        """Rank about `count` candidates of the index, and all rows that it lacks; see that there are `k` at least."""
        assert self._index is not None
        likely = self._likely(exact.prepared(queries, self._metric), own, count)
        rows = [some.rows for some in likely]
        if len(self._recent):
            new = exact.best_of(queries, own, self._store, self._ids, k, self._metric, self._recent)
            rows = [np.union1d(old, best.rows) for old, best in zip(rows, new)]
        rankings = exact.rerank(queries, rows, self._store, self._ids, self._metric)
        results = []
        for query, excluded, old, ranking in zip(queries, own, likely, rankings):
            indexed = len(self._ids) - len(self._recent) - len(np.setdiff1d(excluded, self._recent))
            settled = old.all or not _tied(ranking, old.rows[-_TAIL:], k)
            # The lists that it looks into hold too few, or too few that are not damaged; or it is faster so.
            if (
                len(old.rows) < min(k, indexed)
                or len(ranking[0]) < min(k, len(old.rows))
                or (not settled and count > BLOCK)
            ):
                (best,) = exact.best_of(query[None], [excluded], self._store, self._ids, k, self._metric)
                ranking, settled = best.ranking(), True
            results.append(Found(*ranking, settled))
        return results

    def _likely(self, queries: Vectors, own: Sequence[Rows], wanted: int) -> list[_Likely]:
        """Return about `wanted` rows for each query, fewer only where the lists that it looks into hold no more."""
        assert self._index is not None
        found = [_Likely(NO_ROWS, True)] * len(queries)
        open_queries = np.arange(len(queries))
        count = wanted + max(map(len, own))
        while len(open_queries):
            count = max(1, min(count, len(self._index.faiss)))
            left = []
            ids = self._index.faiss.candidates(queries[open_queries], count)
            for query, rows, last in zip(open_queries.tolist(), self._rows(ids), ids[:, -1]):
                rows = rows[(rows >= 0) & ~np.isin(rows, own[query])]
                found[query] = _Likely(rows, last < 0 or count >= len(self._index.faiss))
                if len(rows) < wanted and not found[query].all:
                    left.append(query)  # many of its candidates are gone from the store
            open_queries, count = np.array(left, np.int64), count * 4
        return found

    def _rows(self, ids: Rows) -> Rows:
        """Return the rows of ids, -1 for those that the store has not."""
        if not len(self._ids):
            return np.full(ids.shape, -1)
        at = np.minimum(np.searchsorted(self._sorted, ids), len(self._ids) - 1)
        return np.where(self._sorted[at] == ids, self._order[at], -1)


def _tied(ranking: Ranking, rows: Rows, k: int) -> bool:
    """Tell whether some of `rows` have the score of the k-th."""
    found, scores = ranking
    return len(found) > k and bool(np.isin(found[scores == scores[k - 1]], rows).any())
