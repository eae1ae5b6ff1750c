"""Find near pairs among the distinct files of a store.

In: distinct files and a threshold. Out: blocks of pairs that may be near, in
an order that suits `duplicates`: largest file first. Whoever takes a block
scores its pairs exactly.

All pairs are compared, in blocks (`by_scan`), or each file is looked up in the
index (`by_index`), which may miss some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import blocks
from rn50feat.searching.best import NO_ROWS, Rows
from rn50feat.searching.distinct import DistinctFiles
from rn50feat.searching.exact import BLOCK
from rn50feat.searching.nearest import Nearest, OpenIndex
from rn50feat.searching.rounded import centre_of, fastest, rounded
from rn50feat.searching.scores import TIE, reaches

_LEADERS = 1024  # images per query of the index
_DOUBTFUL = 1 << 18  # pairs to multiply again at once: with all that is known of them, 10 MB
_NEIGHBOURS = 16  # that are checked first; more if all of them are near
Report = Callable[[int, int], None]  # gets (images done, images in total)


@dataclass(frozen=True)
class NearBlock:
    """Whether each of m ``firsts``, largest first, may be ``near`` each of n other ``rows``: bool (m, n).

    A pair comes only once, except through an index. By the time a file is in ``firsts``, all its pairs with larger
    files have been yielded.
    """

    firsts: Rows
    rows: Rows
    near: NDArray[np.bool_]


def by_scan(files: DistinctFiles, threshold: float, on_progress: Report) -> Iterator[NearBlock]:
    """Compare every file with all smaller ones, block by block: takes 200 MB."""
    order = files.order
    precision = fastest(len(order) ** 2 // 2)
    for start in range(0, len(order), BLOCK):
        firsts, room = order[start : start + BLOCK], None
        with files.reading():
            features = files.store.features(firsts)
        centre = centre_of(features, "cosine")
        left, fine = (rounded(features, "cosine", kind, centre=centre, queries=True) for kind in (precision, "fp32"))
        limits = np.full(len(firsts), threshold - TIE)
        for other in range(start, len(order), BLOCK):
            rows = order[other : other + BLOCK]
            with files.reading():
                features = files.store.features(rows)
                right = rounded(features, "cosine", precision, centre=centre, room=room)
                products, bounds = blocks.multiply(left, right), blocks.Bounds(left, right, "cosine")
                near = blocks.reached(products, bounds.least(limits))
                doubtful = np.flatnonzero(near & ~blocks.reached(products, bounds.enough(limits)))
                for some in np.split(doubtful, range(_DOUBTFUL, len(doubtful), _DOUBTFUL)):
                    i, j = np.divmod(some, len(rows))
                    _, highest = blocks.sharper(fine, features, i, j, "cosine", centre)
                    near[i, j] = highest >= limits[i]
                yield NearBlock(firsts, rows, np.triu(near, 1) if start == other else near)
            room = right.values
        on_progress(min(start + BLOCK, len(order)), len(order))


def by_index(
    files: DistinctFiles, free: NDArray[np.bool_], threshold: float, index: OpenIndex, on_progress: Report
) -> Iterator[NearBlock]:
    """Look up the neighbours of every file in the index, then yield the pairs, largest file first.

    A pair may be found from the smaller file only, so all pairs must be known before the first is yielded. A file
    with many near ones is looked up again for all of them only if it is still `free`: it may begin a group.
    """
    with files.reading():
        nearest = Nearest(files.store, "cosine", index)
    parts = [files.order[start : start + _LEADERS] for start in range(0, len(files.order), _LEADERS)]
    pairs, done = _Pairs(files), 0
    for part in parts:
        with files.reading():
            own = [part[i : i + 1] for i in range(len(part))]
            features, k = files.store.features(part), _NEIGHBOURS
            ranked = nearest.among(features, own, k, 2 * k, best=2 * k)
        for first, some in zip(part.tolist(), ranked):
            pairs.add(first, some.rows[reaches(some.scores, threshold)])
        done += len(part)
        on_progress(done, len(files.order))
    pairs.sort()
    for part in parts:
        with files.reading():
            for first in part.tolist():
                rows = pairs.smaller(first)
                if free[first] and pairs.count(first) >= _NEIGHBOURS:
                    rows = np.union1d(rows, pairs.known(_neighbours(files, nearest, first, threshold)))
                if len(rows):
                    yield NearBlock(np.array([first]), rows, np.ones((1, len(rows)), bool))


def _neighbours(files: DistinctFiles, nearest: Nearest, first: int, threshold: float) -> Rows:
    """Look up more and more neighbours of a file in the index, until some are not near."""
    own = np.array([first])
    query, k = files.store.features(own), 4 * _NEIGHBOURS
    while True:
        (ranked,) = nearest.among(query, [own], k, 2 * k, best=2 * k)
        near = ranked.rows[reaches(ranked.scores, threshold)]
        if len(near) < k:
            return near
        k *= 4


class _Pairs:
    """Pairs of near files, each found from one of them or from both."""

    def __init__(self, files: DistinctFiles) -> None:
        self._files = files
        self._counts = np.zeros(len(files.rank), np.int64)
        self._found = [NO_ROWS]  # each pair as one number: the rank of the larger file, times all, and the other's

    def add(self, first: int, others: Rows) -> None:
        """Add what was found from `first`."""
        rank = self._files.rank
        known = rank[self.known(others)]
        self._counts[first] = len(others)
        self._found.append(np.minimum(known, rank[first]) * len(rank) + np.maximum(known, rank[first]))

    def known(self, rows: Rows) -> Rows:
        """Return the `rows` that are distinct files, without copies, which follow the first, and without new ones."""
        rows = rows[rows < len(self._files.rank)]
        return rows[self._files.rank[rows] < len(self._files.order)]

    def sort(self) -> None:
        """Order the pairs; to be called when all are there."""
        self._larger, self._smaller = np.divmod(np.unique(np.concatenate(self._found)), len(self._files.rank))

    def count(self, first: int) -> int:
        """Count the near files that were found from `first`."""
        return int(self._counts[first])

    def smaller(self, first: int) -> Rows:
        """Return the smaller files that are near `first`."""
        start, stop = np.searchsorted(self._larger, self._files.rank[first] + np.arange(2))
        smaller: Rows = self._files.order[self._smaller[start:stop]]
        return smaller
