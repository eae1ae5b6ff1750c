"""Measure the recall of an index, and set how many lists it probes.

In: a store's new index, and rows that it was not trained on. Out: the recall
of a search with these rows, and the number of lists (nprobe).
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
# Fewer than 8 lists save nothing: probing 8 takes 0.3 ms, reading the candidates' rows 1.4.
FIRST = 8


@dataclass(frozen=True)
class Recall:
    """The measured recall@10, None if there was nothing to compare, and the number of lists probed."""

    recall: float | None
    nprobe: int | None


def tune(store: FeatureStore, index: FaissIndex, facts: IndexFacts, held_out: Rows, target: float) -> Recall:
    """Search with the rows `held_out`, given by id, and let `index` probe as few lists as reach `target`.

    The measured recall must lie halfway between the target and 1, because
    another sample of queries would have another recall. The ground truth is
    an exact scan of all rows.
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
            hits = nearest.find(queries, own, AT)
            recall = _recall([scores for _, scores in truth], [scores for _, scores in hits], facts.metric)
            if recall is None or recall >= (1 + target) / 2:
                break
        return Recall(recall, probes)

    return store.steadily(work)


def _steps(lists: int) -> list[int | None]:
    """List the numbers of lists to try, ascending; None for an index without lists."""
    if not lists:
        return [None]
    steps: list[int | None] = [min(FIRST, lists)]
    while (last := steps[-1]) is not None and last < lists:
        steps.append(min(2 * last, lists))
    return steps


def _recall(truth: list[Scores], found: list[Scores], metric: str) -> float | None:
    """Compute the share of true neighbours that were found; any row as near as the last true one counts as true."""
    hits = total = 0
    sign = -1 if metric == "l2" else 1
    for true, given in zip(truth, found):
        if len(true):
            bound = sign * true[-1]
            hits += min(len(true), int((sign * given >= bound - tolerance(bound)).sum()))
            total += len(true)
    return hits / total if total else None
