"""Measure what an index finds of what there is, and let it look into as many lists as that takes.

In: a new index of a store, and rows that it was not trained on. Out: the
recall of a search with these rows, and the number of lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rn50feat.searching import exact
from rn50feat.searching.exact import Rows
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.index_file import IndexFacts
from rn50feat.searching.nearest import Nearest, OpenIndex
from rn50feat.searching.scores import Scores, tolerance
from rn50feat.store.reader import FeatureStore

AT = 10  # recall@10
# Below 8 lists nothing is saved: looking into them takes 0.3 ms, reading the candidates' rows 1.4.
FIRST = 8


@dataclass(frozen=True)
class Recall:
    """What was measured: recall@10, None where there was nothing to compare, by looking into so many lists."""

    recall: float | None
    nprobe: int | None


def tune(store: FeatureStore, index: FaissIndex, facts: IndexFacts, held_out: Rows, target: float) -> Recall:
    """Search with the rows of the ids `held_out`, and let `index` probe as few lists as reach `target`.

    Half of what the target leaves must be to spare, since another sample of
    queries would have another recall. The truth is a scan of all rows.
    """

    def work() -> Recall:
        rows = np.flatnonzero(np.isin(store.column("ids"), held_out))
        queries, own = store.features(rows), [rows[i : i + 1] for i in range(len(rows))]
        nearest = Nearest(store, facts.metric, OpenIndex(index, facts))
        truth = exact.scan(queries, own, store, AT, facts.metric)
        recall, probes = None, None
        for probes in _steps(index.lists):
            if probes is not None:
                index.probe(probes)
            found = nearest.find(queries, own, AT)
            recall = _recall([scores for _, scores in truth], [scores for _, scores in found], facts.metric)
            if recall is None or recall >= (1 + target) / 2:
                break
        return Recall(recall, probes)

    return store.steadily(work)


def _steps(lists: int) -> list[int | None]:
    """Return how many lists to try to look into, ascending; None for an index without."""
    if not lists:
        return [None]
    steps: list[int | None] = [min(FIRST, lists)]
    while (last := steps[-1]) is not None and last < lists:
        steps.append(min(2 * last, lists))
    return steps


def _recall(truth: list[Scores], found: list[Scores], metric: str) -> float | None:
    """Return the part of the true neighbours that were found; those as near as the last true one count as true."""
    hits = total = 0
    sign = -1 if metric == "l2" else 1
    for true, given in zip(truth, found):
        if len(true):
            bound = sign * true[-1]
            hits += min(len(true), int((sign * given >= bound - tolerance(bound)).sum()))
            total += len(true)
    return hits / total if total else None
