"""Find groups of near-identical images in a store.

In: a store and a threshold. Out: `Groups`, each with its largest file first.

Starting with the largest file, each image that is not in a group yet claims
all other ungrouped images whose cosine with it is at least the threshold. So
every member is that similar to the first one, no image is in two groups, and
two scenes are never joined by a chain of images in between. Near pairs that
this rule separates are listed. Exact copies are found by their digests,
without comparing vectors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.errors import QueryError
from rn50feat.searching import exact as exact_search
from rn50feat.searching.best import Rows
from rn50feat.searching.distinct import DistinctFiles, KnownFile
from rn50feat.searching.groups import Groups, Member, Pair, PairImage, described
from rn50feat.searching.near_pairs import NearBlock, by_index, by_scan
from rn50feat.searching.nearest import open_index
from rn50feat.searching.regrouping import Regrouping
from rn50feat.searching.scores import in_order, reaches
from rn50feat.store.reader import FeatureStore

if TYPE_CHECKING:
    from rn50feat.searching.relations import Relations

# Near-identical images were reported to stay above 0.95 with imagenet-v1 (pytorch/vision issue 8382). With random
# weights all cosines are near 1: for 1,000 drawn scenes, copies (re-encoded, smaller, cropped) are above 0.99987,
# images of different scenes below 0.99975.
THRESHOLD = 0.95
RANDOM_THRESHOLD = 0.9998
MOST_PAIRS = 100_000  # across groups: 30,000 nearly equal images, in groups of a few, have 450 million


def duplicates(
    store: FeatureStore | str | os.PathLike[str],
    *,
    threshold: float | None = None,
    exact: bool = False,
    scan: bool = False,
    check: bool = False,
    verify: bool = False,
    keep: str = "",
    rehash: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Groups:
    """Group the images of `store` whose cosine with the group's first image is at least `threshold`.

    The default is `default_threshold`. `exact` finds only byte-for-byte
    copies. A cosine index is used if there is one and it saves work, unless
    `scan` is set: then all pairs of rows are compared. `check` also checks
    members in remote storage. `verify` compares pixels, and leaves out images
    that do not come from the first; it remembers relations next to the store.
    `keep` says which image comes first: one of `KEEP`, or a pattern for stored
    paths as in the shell; the default is the largest file. `rehash` hashes what is in ``Group.rest``, and
    the first images of these groups, again: files whose bytes have changed stay.
    `on_progress` gets (stage, done, in total): images, or groups for "hashing".
    Returns a list of `Group`; its ``pairs`` are near images in different
    groups. Raises `QueryError` for a threshold that is not a cosine above 0, a
    pattern that matches nothing, and `verify` without OpenCV, `IndexingError`
    for an index that is damaged or belongs to another store, and `StoreError`
    if rows are replaced or removed while this runs.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    threshold = least_cosine(store, threshold)
    files = DistinctFiles(store)
    forming = _Forming(files, threshold)
    comparing = partial(on_progress, "comparing")
    if not exact:
        index = None if scan else open_index(store)
        if index is not None and index.facts.metric == "cosine" and not index.faiss.compares_all:
            blocks = by_index(files, forming.free, threshold, index, comparing)
        else:
            blocks = by_scan(files, threshold, comparing)
        for block in blocks:
            forming.add(block)
    with files.reading():
        groups, pairs = forming.finished()
    uncompared = 0
    with closing(open_relations(store, check)) if verify else nullcontext() as relations:
        if verify or keep:
            regrouping = Regrouping(files, threshold, keep, relations, check)
            groups, uncompared = regrouping.apply(groups, on_progress)
            pairs = _renumbered(pairs, groups)
    found = described(groups, check=check, rehash=rehash, on_progress=on_progress)
    return Groups(found, pairs, forming.more_pairs, uncompared)


def open_relations(store: FeatureStore, check: bool) -> Relations:
    """Open the relations next to `store`, to compare pixels; raise `QueryError` without OpenCV."""
    try:
        from rn50feat.searching.relations import Relations
    except ImportError as error:
        raise QueryError("--verify needs OpenCV: pip install 'rn50feat[verify]'") from error
    return Relations(store.path, check=check)


def _renumbered(pairs: Sequence[Pair], groups: Sequence[Sequence[Member]]) -> list[Pair]:
    """Return pairs with the numbers of the groups that their images are in now."""
    numbers = {member.file.id: number for number, group in enumerate(groups, 1) for member in group}
    renumbered = []
    for pair in pairs:
        larger, smaller = (replace(image, group=numbers.get(image.id)) for image in pair.images)
        if larger.group is None or larger.group != smaller.group:
            renumbered.append(replace(pair, images=(larger, smaller)))
    return renumbered


def default_threshold(store: FeatureStore) -> float:
    """Return the lowest cosine of near-identical images for the weights of `store`."""
    return RANDOM_THRESHOLD if store.provenance.random else THRESHOLD


def least_cosine(store: FeatureStore, threshold: float | None) -> float:
    """Return `threshold`, by default that for `store`; raise `QueryError` if it is not a cosine above 0."""
    threshold = default_threshold(store) if threshold is None else threshold
    if not 0 < threshold <= 1:
        raise QueryError(f"the threshold {threshold:g} is not a similarity: use one above 0 and at most 1")
    return threshold


class _Forming:
    """Groups of distinct files as they form; ``free`` marks the rows that no other has claimed."""

    def __init__(self, files: DistinctFiles, threshold: float) -> None:
        self._files, self._threshold = files, threshold
        self._members: dict[int, list[tuple[int, float]]] = {}
        self._leader: Rows = np.arange(len(files.rank))
        self._apart: dict[tuple[int, int], float] = {}
        self.more_pairs = 0
        self.free = np.zeros(len(files.rank), bool)
        self.free[files.order] = True

    def add(self, block: NearBlock) -> None:
        """Let the free ones of the firsts claim others, then note the near pairs that stay apart.

        Whether a pair has one leader is known by then: all files larger than its first have had their turn. Only the
        index may find out later: `finished` leaves these pairs out.
        """
        firsts, rows, near = block.firsts, block.rows, block.near
        some = near.any(axis=1)
        for i in np.flatnonzero(some & self.free[firsts]).tolist():
            self._claim(int(firsts[i]), rows[near[i]])
        for i in np.flatnonzero(some).tolist():
            others = rows[near[i]]
            self._note(int(firsts[i]), others[self._leader[others] != self._leader[firsts[i]]])

    def _claim(self, first: int, rows: Rows) -> None:
        """Let `first` claim the free, smaller and truly near ones of `rows`; to be called for the largest file first.

        A larger file that is near and still free had its turn but did not find `first`: it claims `first` now.
        """
        if not self.free[first]:
            return
        taken = self._near(first, rows[self.free[rows]])
        leader, similarity = min(taken, key=lambda one: self._files.rank[one[0]], default=(first, 1.0))
        if self._files.rank[leader] < self._files.rank[first]:
            first, taken = leader, [(first, similarity)]
        if taken:
            self._members.setdefault(first, []).extend(taken)
            claimed = [row for row, _ in taken]
            self.free[claimed], self._leader[claimed] = False, first

    def _note(self, first: int, rows: Rows) -> None:
        """Keep the pairs of `first` with the truly near ones of `rows`, or count them if there are too many."""
        kept = max(0, MOST_PAIRS - len(self._apart))
        self.more_pairs += len(rows[kept:])
        for row, similarity in self._near(first, rows[:kept]):
            larger, smaller = sorted((first, row), key=self._files.rank.__getitem__)
            self._apart[larger, smaller] = similarity

    def _near(self, first: int, rows: Rows) -> list[tuple[int, float]]:
        """Return those of `rows` that are truly near `first`, and their similarities, highest first."""
        if not len(rows):
            return []
        store = self._files.store
        query = store.features(np.array([first]))[0]
        rows, scores = exact_search.rank(query, rows, store, self._files.ids, "cosine")
        near = reaches(scores, self._threshold)
        return list(zip(rows[near].tolist(), scores[near].tolist()))

    def finished(self) -> tuple[list[list[Member]], list[Pair]]:
        """Return the groups, largest file first, with the copies of all members, and the pairs across groups."""
        files = self._files
        leaders = set(self._members) | {row for row in files.with_copies() if self.free[row]}
        numbers = {first: i for i, first in enumerate(sorted(leaders, key=files.rank.__getitem__), 1)}
        groups = [self._rows(first) for first in numbers]
        apart = {pair: score for pair, score in self._apart.items() if self._leader[pair[0]] != self._leader[pair[1]]}
        known = files.known([row for group in groups for row, _, _ in group] + [row for pair in apart for row in pair])
        members = [[Member(known[row], similarity, same) for row, similarity, same in group] for group in groups]
        return members, self._pairs(apart, numbers, known)

    def _rows(self, first: int) -> list[tuple[int, float, bool]]:
        """Return the rows of a group, with their similarities and whether they are copies of the first."""
        claimed = dict(self._members.get(first, []))
        taken = np.array(list(claimed), np.int64)
        order, scores = in_order(np.array(list(claimed.values())), self._files.ids[taken], "cosine")
        others = zip(taken[order].tolist(), scores.tolist())
        rows = [(row, 1.0, True) for row in self._files.copies(first).tolist()]
        return rows + [(copy, score, False) for row, score in others for copy in self._files.copies(row).tolist()]

    def _pairs(
        self, apart: dict[tuple[int, int], float], numbers: dict[int, int], known: dict[int, KnownFile]
    ) -> list[Pair]:
        """Return pairs of rows as pairs of images, most similar first."""
        rows = np.array(list(apart), np.int64).reshape(-1, 2)
        order, scores = in_order(np.array(list(apart.values())), self._files.ids[rows[:, 0]], "cosine")
        pairs = []
        for (larger, smaller), similarity in zip(rows[order].tolist(), scores.tolist()):
            one, other = (
                PairImage(**vars(file.image), group=numbers.get(leader))
                for file, leader in ((known[row], int(self._leader[row])) for row in (larger, smaller))
            )
            pairs.append(Pair(similarity, (one, other)))
        return pairs
