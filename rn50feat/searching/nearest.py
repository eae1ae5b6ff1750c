"""Find the nearest rows of a store, using its index if there is one.

In: query vectors, a store and perhaps its index. Out: rows and exact scores.
The index finds candidates, which are re-ranked with the rows in the store.
Rows that only the index has are dropped; rows that only the store has are
scanned. So results are correct, whichever of the two is newer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import exact, index_file, index_plan
from rn50feat.searching.best import NO_ROWS, Ranking, Rows
from rn50feat.searching.exact import BLOCK
from rn50feat.searching.index_file import IndexFacts
from rn50feat.searching.scores import Scores, Vectors, score, tolerance
from rn50feat.store.reader import FeatureStore

if TYPE_CHECKING:
    from rn50feat.searching.faiss_index import FaissIndex

logger = logging.getLogger(__name__)

AT = 10  # hits that an index is tuned for
_FIRST = 64  # candidates whose exact scores show how far off an index's estimates are
_DISTINCT = 16  # different scores among them, from which their spread says something about others
_FAR = 5.0  # standard deviations by which an estimate is never off: 4 lost 0.001 of the recall, 3 lost 0.02
_TAIL = 8  # candidates: equal rows may differ by a rounding in the index, so that other rows come between them


@dataclass(frozen=True)
class OpenIndex:
    """An index and its facts."""

    faiss: FaissIndex
    facts: IndexFacts


@dataclass(frozen=True)
class Ranked:
    """A query's candidates with exact scores, best first; ``settled`` if no other row can tie with the k-th."""

    rows: Rows
    scores: Scores
    settled: bool


@dataclass(frozen=True)
class _Candidates:
    """A query's candidates in the order of the index's own estimate of how near they are; ``all`` if it has no more."""

    rows: Rows
    nearness: NDArray[np.float32]
    all: bool


def open_index(store: FeatureStore) -> OpenIndex | None:
    """Open the index next to `store`; None if there is none, or only one that compares every row as a scan does.

    Such an index takes 8 ms to open for every 1,000 rows, and no less for a
    query. Raises `IndexingError` for an index that is damaged, or that belongs
    to another store or provenance.
    """

    def mapped(path: Path) -> FaissIndex:
        from rn50feat.searching.faiss_index import FaissIndex  # FAISS takes 30 ms to import, and most stores need none

        return FaissIndex.load(path, mapped=True)

    facts = index_file.read_facts(store.path)
    if facts is not None and facts.factory == index_plan.FLAT:
        index_file.require_same(store, facts)
        return None
    loaded = index_file.load(store.path, mapped)
    if loaded is None:
        return None
    index_file.require_same(store, loaded[1])
    return OpenIndex(*loaded)


class Nearest:
    """A search over the rows of a store; use it inside a single ``with store.reading():``."""

    def __init__(self, store: FeatureStore, metric: str, index: OpenIndex | None) -> None:
        """Search `store` by `metric`, using `index` unless it is for another metric."""
        if index is not None and index.facts.metric != metric:
            path = index_file.faiss_path(store.path)
            logger.warning("%s is for %s, not %s: scanning every row", path, index.facts.metric, metric)
            index = None
        self._store, self._metric, self._index = store, metric, index
        if index is not None:
            self._ids = self._sorted = store.column("ids")
            self._order: Rows | None = None  # the rows in the order of their ids, where that is another one
            if not (self._ids[1:] > self._ids[:-1]).all():
                self._order = np.argsort(self._ids, kind="stable")
                self._sorted = self._ids[self._order]
            self._recent = np.flatnonzero(self._ids >= index.facts.next_id)

    def find(self, queries: Vectors, own: Sequence[Rows], k: int) -> list[Ranking]:
        """Find the `k` nearest rows for each of `queries`, (m, 2048): rows and scores, best first.

        `own` rows are left out. Equal scores are ordered by id, also at the k-th place: if the index may hold more
        rows with that score than it returned, it is asked for more.
        """
        if self._index is None or not len(queries):
            return exact.scan(queries, own, self._store, k, self._metric)
        count = self._index.facts.candidates * max(1, math.ceil(k / AT))
        ranked = self.among(queries, own, k, count)
        for i, excluded in enumerate(own):
            wanted = count
            while not ranked[i].settled:
                wanted *= 4
                (ranked[i],) = self.among(queries[i : i + 1], [excluded], k, wanted)
        return [(some.rows[:k], some.scores[:k]) for some in ranked]

    def among(self, queries: Vectors, own: Sequence[Rows], k: int, count: int, *, best: int = 0) -> list[Ranked]:
        """Rank about `count` candidates from the index, and all rows that it lacks; at least `k` if there are any.

        Keeps the `best` of them, or `k`, and all that tie with the last.
        """
        assert self._index is not None
        best = max(k, best)
        candidates = self._candidates(exact.prepared(queries, self._metric), own, count)
        rows = [self._promising(*one, best) for one in zip(queries, candidates)]
        if len(self._recent):  # read once for all queries
            new = exact.best_of(queries, own, self._store, self._ids, best, self._metric, self._recent)
            rows = [np.union1d(old, some.rows) for old, some in zip(rows, new)]
        return [
            self._ranked(query, excluded, some, np.sort(union), k, best, last=count > BLOCK)
            for query, excluded, some, union in zip(queries, own, candidates, rows)
        ]

    def _ranked(
        self, query: Vectors, own: Rows, candidates: _Candidates, union: Rows, k: int, best: int, *, last: bool
    ) -> Ranked:
        """Rank `union`, which has a query's promising candidates; all rows if they are few, or at the `last` try."""
        rows, scores = self._ranking(query, own, union, best)
        indexed = len(self._ids) - len(self._recent) - len(np.setdiff1d(own, self._recent))
        settled = candidates.all or len(rows) < k or not self._ties(query, candidates.rows[-_TAIL:], scores[k - 1])
        # The probed lists have too few rows, or too few that are not damaged; or a full scan is faster.
        few = len(candidates.rows) < min(k, indexed) or len(rows) < min(k, len(candidates.rows))
        if few or (last and not settled):
            return Ranked(*self._ranking(query, own, None, best), True)
        return Ranked(rows, scores, settled)

    def _promising(self, query: Vectors, candidates: _Candidates, best: int) -> Rows:
        """Return the candidates that may be among the `best`, given how far off the estimates of the first ones are.

        Of 1,200 candidates, these are 420 on average with hard vectors: all in hubs of similar images, 64 elsewhere.
        """
        first = max(_FIRST, 2 * best)
        if len(candidates.rows) < 2 * first:
            return candidates.rows
        with np.errstate(invalid="ignore", over="ignore"):  # damaged rows: then no candidate is out of reach
            scores = score(query, self._store.features(candidates.rows[:first]), self._metric)
            exactly = -np.square(scores) if self._metric == "l2" else scores
            off = exactly - candidates.nearness[:first]
            off = off[np.unique(exactly, return_index=True)[1]]  # equal rows are equally far off
            if len(off) < _DISTINCT:
                return candidates.rows
            least = np.partition(exactly, -best)[-best]
            most = candidates.nearness + off.mean() + _FAR * off.std() + 5 * tolerance(least)  # enough for squares, too
        promising: Rows = candidates.rows[~(most < least) | (np.arange(len(most)) < first)]
        return promising

    def _ranking(self, query: Vectors, own: Rows, rows: Rows | None, k: int) -> Ranking:
        (best,) = exact.best_of(query[None], [own], self._store, self._ids, k, self._metric, rows)
        return best.ranking()

    def _ties(self, query: Vectors, rows: Rows, last: float) -> bool:
        """Check whether any of `rows` has the score `last`."""
        found = score(query, self._store.features(rows), self._metric)
        return bool((np.abs(found - last) <= tolerance(last)).any())

    def _candidates(self, queries: Vectors, own: Sequence[Rows], wanted: int) -> list[_Candidates]:
        """Find about `wanted` rows for each query, fewer only if the probed lists have no more."""
        assert self._index is not None
        candidates = [_Candidates(NO_ROWS, np.empty(0, np.float32), True)] * len(queries)
        open_queries = np.arange(len(queries))
        count = wanted + max(map(len, own))
        while len(open_queries):
            count = max(1, min(count, len(self._index.faiss)))
            left = []
            ids, nearness = self._index.faiss.candidates(queries[open_queries], count)
            for query, rows, near, last in zip(open_queries.tolist(), self._rows(ids), nearness, ids[:, -1]):
                kept = (rows >= 0) & ~np.isin(rows, own[query])
                rows = rows[kept]
                candidates[query] = _Candidates(rows, near[kept], last < 0 or count >= len(self._index.faiss))
                if len(rows) < wanted and not candidates[query].all:
                    left.append(query)  # the store no longer has many of its candidates
            open_queries, count = np.array(left, np.int64), count * 4
        return candidates

    def _rows(self, ids: Rows) -> Rows:
        """Look up the rows of ids; -1 for ids that the store does not have."""
        if not len(self._ids):
            return np.full(ids.shape, -1)
        at = np.minimum(np.searchsorted(self._sorted, ids), len(self._ids) - 1)
        return np.where(self._sorted[at] == ids, at if self._order is None else self._order[at], -1)
