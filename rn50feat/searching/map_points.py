"""Describe the points of a map: their neighbours, near-identical groups, and clusters.

In: a store and its layout. Out: a `Points`, with at most `MOST` rows of the
store, evenly chosen. Neighbours are those in the store's own 2048 dimensions,
found among the rows that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import exact
from rn50feat.searching.best import Rows
from rn50feat.searching.duplicates import default_threshold
from rn50feat.searching.map_layout import Layout
from rn50feat.searching.projection import Report, Single, evenly
from rn50feat.searching.scores import reaches
from rn50feat.store.reader import FeatureStore

MOST = 100_000
NEIGHBOURS = 8
_CLUSTERS = 24  # at most
_ROUNDS = 30  # of k-means
_QUERIES = 4096  # rows whose neighbours are looked for at once


@dataclass(frozen=True)
class Points:
    """The n rows on a map: stored paths, positions (n, 2), and what belongs together.

    ``neighbours``, int64 (n, k), are places in these lists, nearest first, -1
    where there are fewer. ``groups``, int64 (n,), number the near-identical
    images from 1 on, and ``clusters``, int64 (n,), the clusters from 0 on, the
    largest first. The store has ``total`` rows.
    """

    paths: list[str]
    xy: Single
    neighbours: NDArray[np.int64]
    groups: NDArray[np.int64]
    clusters: NDArray[np.int64]
    total: int


def points(store: FeatureStore, layout: Layout, on_progress: Report = lambda stage, done, total: None) -> Points:
    """Describe the rows of `store` that have a place in `layout`."""

    def work() -> Points:
        xy = layout.at(store.column("ids"))
        placed = np.flatnonzero(~np.isnan(xy[:, 0]))
        rows = placed[evenly(len(placed), MOST)]
        neighbours, scores = _neighbours(store, rows, on_progress)
        paths = store.paths()
        return Points(
            [paths[row] for row in rows.tolist()],
            xy[rows],
            neighbours,
            near_groups(neighbours, reaches(scores, default_threshold(store)), store.column("size")[rows]),
            clusters(xy[rows]),
            len(placed),
        )

    return store.steadily(work)


def _neighbours(store: FeatureStore, rows: Rows, on_progress: Report) -> tuple[Rows, NDArray[np.float64]]:
    """Find the nearest others of each of `rows`: places in `rows`, and cosines, both (n, k)."""
    found = np.full((len(rows), NEIGHBOURS), -1)
    cosines = np.full(found.shape, -1.0)
    for start in range(0, len(rows), _QUERIES):
        own = [rows[i : i + 1] for i in range(start, min(start + _QUERIES, len(rows)))]
        queries = store.features(np.concatenate(own))
        for i, (near, scores) in enumerate(exact.scan(queries, own, store, NEIGHBOURS, "cosine", rows), start):
            found[i, : len(near)], cosines[i, : len(near)] = np.searchsorted(rows, near), scores
        on_progress("finding neighbours", min(start + _QUERIES, len(rows)), len(rows))
    return found, cosines


def near_groups(neighbours: Rows, near: NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group points by the rule of `duplicates`, as far as their neighbours tell: (n,), 0 for those in no group.

    From the largest file on, each that is in no group claims the ones in no
    group that are `near` it, (n, k).
    """
    firsts, places = np.nonzero(near & (neighbours >= 0))
    others = neighbours[firsts, places]
    firsts, others = np.concatenate([firsts, others]), np.concatenate([others, firsts])
    order = np.lexsort((others, firsts))
    firsts, others = firsts[order], others[order]
    starts = np.searchsorted(firsts, np.arange(len(sizes) + 1))
    groups = np.zeros(len(sizes), np.int64)
    count = 0
    for first in np.argsort(-sizes, kind="stable").tolist():
        if groups[first] == 0:
            claimed = others[starts[first] : starts[first + 1]]
            claimed = claimed[groups[claimed] == 0]
            if len(claimed):
                count += 1
                groups[claimed] = groups[first] = count
    return groups


def clusters(xy: Single) -> NDArray[np.int64]:
    """Divide positions, (n, 2), into clusters by k-means, numbered by size, the largest first: (n,)."""
    count = min(_CLUSTERS, max(1, int(np.sqrt(len(xy) / 2))))
    centres = xy[[0]].astype(np.float64)
    apart = np.full(len(xy), np.inf)
    while len(centres) < count:  # each start is far from all others
        apart = np.minimum(apart, np.square(xy - centres[-1]).sum(axis=1))
        centres = np.concatenate([centres, xy[[int(apart.argmax())]]])
    for _ in range(_ROUNDS):
        squares = np.square(centres).sum(axis=1) - 2 * xy @ centres.T
        labels = squares.argmin(axis=1)
        sizes = np.bincount(labels, minlength=count)
        sums = np.stack([np.bincount(labels, xy[:, i], count) for i in range(2)], axis=1)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
    rank = np.empty(count, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(count)
    numbered: NDArray[np.int64] = rank[labels]
    return numbered
