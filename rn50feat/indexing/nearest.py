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

from rn50feat.indexing import exact, index_file
from rn50feat.indexing.exact import NO_ROWS, Ranking, Rows, Vectors
from rn50feat.indexing.index_file import Facts
from rn50feat.store import FeatureStore

if TYPE_CHECKING:
    from rn50feat.indexing.faiss_index import FaissIndex

logger = logging.getLogger(__name__)

CANDIDATES = 100  # that are ranked exactly, for up to 10 hits; reading them takes 1.4 ms


@dataclass(frozen=True)
class OpenIndex:
    """An index and what is known of it."""

    faiss: FaissIndex
    facts: Facts


def open_index(store: FeatureStore) -> OpenIndex | None:
    """Return the index beside `store`, None where there is none.

    Raises `IndexingError` for an index that is damaged, or of another store
    or provenance.
    """

    def mapped(path: Path) -> FaissIndex:
        from rn50feat.indexing.faiss_index import FaissIndex  # FAISS takes 30 ms to import, and most stores need none

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
            ids = store.column("ids")
            self._order = np.argsort(ids, kind="stable")
            self._ids = ids[self._order]
            self._recent = np.flatnonzero(ids >= index.facts.next_id)

    def find(self, queries: Vectors, own: Sequence[Rows], k: int, *, candidates: int | None = None) -> list[Ranking]:
        """Return the rows and scores, the best first, of the `k` nearest rows for each of `queries`, (m, 2048).

        `own` rows are left out. `candidates` of the index are ranked exactly.
        """
        if self._index is None or not len(queries):
            return exact.scan(queries, own, self._store, k, self._metric)
        wanted = max(k, candidates or max(CANDIDATES, 10 * k))
        likely = self._likely(exact.prepared(queries, self._metric), own, wanted)
        recent = [NO_ROWS] * len(queries)
        if len(self._recent):
            scanned = exact.scan(queries, own, self._store, k, self._metric, self._recent)
            recent = [rows for rows, _ in scanned]
        results = exact.rerank(
            queries, [np.union1d(*both) for both in zip(likely, recent)], self._store, k, self._metric
        )
        for i, (old, excluded) in enumerate(zip(likely, own)):
            indexed = len(self._ids) - len(self._recent) - len(np.setdiff1d(excluded, self._recent))
            # The lists that it looks into hold too few, or too few that are not damaged.
            if len(old) < min(k, indexed) or len(results[i][0]) < min(k, len(old)):
                results[i : i + 1] = exact.scan(queries[i : i + 1], [excluded], self._store, k, self._metric)
        return results

    def _likely(self, queries: Vectors, own: Sequence[Rows], wanted: int) -> list[Rows]:
        """Return about `wanted` rows for each query, fewer only where the lists that it looks into hold no more."""
        assert self._index is not None
        found = [NO_ROWS] * len(queries)
        open_queries = np.arange(len(queries))
        count = wanted + max(map(len, own))
        while len(open_queries):
            count = min(count, len(self._index.faiss))
            left = []
            ids = self._index.faiss.candidates(queries[open_queries], max(1, count))
            for query, rows, last in zip(open_queries.tolist(), self._rows(ids), ids[:, -1]):
                found[query] = np.setdiff1d(rows[rows >= 0], own[query])
                if len(found[query]) < wanted and last >= 0 and count < len(self._index.faiss):
                    left.append(query)  # many of its candidates are gone from the store
            open_queries, count = np.array(left, np.int64), count * 4
        return found

    def _rows(self, ids: Rows) -> Rows:
        """Return the rows of ids, -1 for those that the store has not."""
        if not len(self._ids):
            return np.full(ids.shape, -1)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[at] == ids, self._order[at], -1)
