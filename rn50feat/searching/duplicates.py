"""Find groups of near-identical images in a store.

In: a store and a threshold. Out: `Group`s, each with its largest file first.

Starting with the largest file, each image that is not in a group yet claims
all other ungrouped images whose cosine with it is at least the threshold. So
every member is that similar to the first one, no image is in two groups, and
two scenes are never joined by a chain of images in between. Exact copies are
found by their digests, without comparing vectors; a file whose digest is
unknown is never a copy.

Finally, every file of a group is looked up on disk: several paths may lead to
the same file, and a file may be gone or have changed. Deleting such a path
would free nothing, or lose an original.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import QueryError, StoreError
from rn50feat.searching import exact as exact_search
from rn50feat.searching.exact import BLOCK, ROUNDING, Rows
from rn50feat.searching.nearest import Nearest, OpenIndex, open_index
from rn50feat.searching.scores import TIE, in_order, reaches
from rn50feat.sources.presence import Identity, identity
from rn50feat.sources.presence import state as file_state
from rn50feat.sources.reference import Reference
from rn50feat.store.reader import FeatureStore

# Near-identical images were reported to stay above 0.95 with imagenet-v1 (pytorch/vision issue 8382). With random
# weights all cosines are near 1: for 1,000 drawn scenes, copies (re-encoded, smaller, cropped) are above 0.99987,
# images of different scenes below 0.99975.
THRESHOLD = 0.95
RANDOM_THRESHOLD = 0.9998
_LEADERS = 1024  # images per query of the index
_NEIGHBOURS = 16  # that are checked first; more if all of them are near
Near = Iterator[tuple[int, Rows]]  # a row, and rows that may be near it
State = Literal["present", "same file", "missing", "changed", "unchecked"]
_FILES = ("present", "unchecked")  # the states of members that are separate files


@dataclass(frozen=True)
class GroupImage:
    """An image in a group.

    ``path`` is the stored path, ``location`` opens the image, ``size`` is the
    file's size in bytes. ``similarity`` is the cosine with the first member.
    ``exact`` is true if the files had the same bytes when they were extracted.
    ``state`` says what is at the path now: the extracted file, the same file
    as an earlier member's, no file, or a file of another size or time.
    Objects in remote storage stay unchecked unless requested.
    """

    path: str
    location: str
    id: int
    size: int
    similarity: float
    exact: bool
    state: State = "present"

    @property
    def is_copy(self) -> bool:
        """Whether this is a separate file with the same bytes as the first member; true for the first itself."""
        return self.exact and self.state in _FILES


@dataclass(frozen=True)
class Group:
    """Two or more near-identical images: the largest file, then the others, most similar first.

    Among exact copies of the largest file, one that still exists comes first.
    """

    members: tuple[GroupImage, ...]

    @property
    def redundant(self) -> int:
        """The number of redundant copies, without paths to the same file and files that are gone or changed."""
        return max(0, sum(member.state in _FILES for member in self.members) - 1)


def duplicates(
    store: FeatureStore | str | os.PathLike[str],
    *,
    threshold: float | None = None,
    exact: bool = False,
    scan: bool = False,
    check: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Group]:
    """Group the images of `store` whose cosine with the group's first image is at least `threshold`.

    The default is `default_threshold`. `exact` finds only byte-for-byte
    copies. A cosine index is used if there is one, unless `scan` is set:
    then all pairs of rows are compared. `check` also checks members in remote
    storage. `on_progress` gets (images done, images in total). Raises
    `QueryError` for a threshold that is not a cosine above 0, `IndexingError`
    for an index that is damaged or belongs to another store, and `StoreError`
    if rows are replaced or removed while this runs.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    threshold = default_threshold(store) if threshold is None else threshold
    if not 0 < threshold <= 1:
        raise QueryError(f"the threshold {threshold:g} is not a similarity: use one above 0 and at most 1")
    files = _Files(store)
    groups = _Groups(store, files, threshold)
    if not exact:
        index = None if scan else open_index(store)
        if index is not None and index.facts.metric == "cosine":
            near = _by_index(store, files, groups.free, threshold, index, on_progress)
        else:
            near = _by_scan(store, files, groups.free, threshold, on_progress)
        for first, rows in near:
            groups.claim(first, rows)
    with files.reading():
        finished = groups.finished()
    return [_with_states(group, check) for group in finished]


def _with_states(group: list[tuple[GroupImage, Reference]], check: bool) -> Group:
    """Look up the state of each member; put a copy of the first member that still exists first."""
    members = [replace(member, state=file_state(known, check=check)) for member, known in group]
    lead = next((i for i, member in enumerate(members) if member.is_copy), 0)
    members.insert(0, members.pop(lead))
    seen: set[Identity] = set()
    for i, member in enumerate(members):
        if (own := identity(member.location)) in seen:
            members[i] = replace(member, state="same file")
        elif own is not None:
            seen.add(own)
    return Group(tuple(members))


def default_threshold(store: FeatureStore) -> float:
    """Return the lowest cosine of near-identical images for the weights of `store`."""
    return RANDOM_THRESHOLD if store.provenance.random else THRESHOLD


class _Files:
    """The distinct files of a store, largest first, and the copies of each."""

    def __init__(self, store: FeatureStore) -> None:
        with store.reading():
            self.ids, self.sizes, self.times = (store.column(name) for name in ("ids", "size", "mtime_ns"))
            digests = np.ascontiguousarray(store.column("digest"))
        self._store = store
        keys = np.zeros(len(digests), [("digest", "V16"), ("row", np.int64)])
        keys["digest"] = digests.view("V16").reshape(-1)
        keys["row"] = np.where(
            digests.any(axis=1), 0, np.arange(1, len(digests) + 1)
        )  # unknown digests are never equal
        _, number = np.unique(keys.view("V24"), return_inverse=True)
        self._by_file = np.lexsort((self.ids, number))
        self._bounds = np.concatenate([[0], np.cumsum(np.bincount(number))])
        first = self._by_file[self._bounds[:-1]]
        self.order: Rows = first[np.lexsort((self.ids[first], -self.sizes[first]))]
        self.rank = np.full(len(keys), len(keys))
        self.rank[self.order] = np.arange(len(self.order))
        self._number = number

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read the store in a block of work; raise `StoreError` if rows were replaced or removed. New rows are fine."""
        with self._store.reading():
            if not np.array_equal(self._store.column("ids")[: len(self.ids)], self.ids):
                raise StoreError(
                    f"another run replaced or removed rows of {self._store.path}: wait until it ends, then try again"
                )
            yield

    def copies(self, row: int) -> Rows:
        """Return the rows of the same file, ordered by id; the first one is in `order`."""
        number = self._number[row]
        return self._by_file[self._bounds[number] : self._bounds[number + 1]]

    def with_copies(self) -> list[int]:
        """Return the rows of files that the store holds more than once."""
        return [row for row in self.order.tolist() if len(self.copies(row)) > 1]


class _Groups:
    """Groups of distinct files as they form; ``free`` marks the rows that are not in one yet."""

    def __init__(self, store: FeatureStore, files: _Files, threshold: float) -> None:
        self._store, self._files, self._threshold = store, files, threshold
        self._members: dict[int, list[tuple[int, float]]] = {}
        self.free = np.zeros(len(files.sizes), bool)
        self.free[files.order] = True

    def claim(self, first: int, rows: Rows) -> None:
        """Let `first` claim the free, smaller and truly near ones of `rows`; to be called for the largest file first.

        A larger file that is near and still free had its turn but did not find `first`: it claims `first` now.
        """
        if not self.free[first]:
            return
        rows = rows[rows < len(self.free)]  # the others were added meanwhile
        rows = rows[self.free[rows] & (rows != first)]
        if len(rows):
            query = self._store.features(np.array([first]))[0]
            rows, scores = exact_search.rank(query, rows, self._store, self._files.ids, "cosine")
            rows, scores = rows[reaches(scores, self._threshold)], scores[reaches(scores, self._threshold)]
            taken = list(zip(rows.tolist(), scores.tolist()))
            leader, score = min(taken, key=lambda one: self._files.rank[one[0]], default=(first, 1.0))
            if self._files.rank[leader] < self._files.rank[first]:
                first, taken = leader, [(first, score)]
            self._members.setdefault(first, []).extend(taken)
            self.free[[row for row, _ in taken]] = False

    def finished(self) -> list[list[tuple[GroupImage, Reference]]]:
        """Return the groups, largest file first, with the copies of all members and their files."""
        for row in self._files.with_copies():
            if self.free[row]:
                self._members.setdefault(row, [])
        return [self._group(first) for first in sorted(self._members, key=self._files.rank.__getitem__)
                if self._members[first] or len(self._files.copies(first)) > 1]  # fmt: skip

    def _group(self, first: int) -> list[tuple[GroupImage, Reference]]:
        taken = np.array([row for row, _ in self._members[first]], np.int64)
        order, scores = in_order(
            np.array([score for _, score in self._members[first]]), self._files.ids[taken], "cosine"
        )
        others = zip(taken[order].tolist(), scores.tolist())
        rows = [(row, 1.0, True) for row in self._files.copies(first).tolist()]
        rows += [(copy, score, False) for row, score in others for copy in self._files.copies(row).tolist()]
        self._store.require_sound(row for row, _, _ in rows)
        members = []
        for row, similarity, same in rows:
            path, size = self._store.path_of(row), int(self._files.sizes[row])
            known = Reference(self._store.locate(path), size, int(self._files.times[row]))
            members.append((GroupImage(path, known.location, int(self._files.ids[row]), size, similarity, same), known))
        return members


def _by_scan(
    store: FeatureStore,
    files: _Files,
    free: NDArray[np.bool_],
    threshold: float,
    on_progress: Callable[[int, int], None],
) -> Near:
    """Compare every free file with all smaller ones, block by block: takes 160 MB."""
    order = files.order
    for start in range(0, len(order), BLOCK):
        for other in range(start, len(order), BLOCK):
            leaders, rows = (part[free[part]] for part in (order[start : start + BLOCK], order[other : other + BLOCK]))
            with files.reading():
                left, right = (exact_search.prepared(store.features(part), "cosine") for part in (leaders, rows))
                near = left @ right.T >= threshold - TIE - ROUNDING
                for i in np.flatnonzero(near.any(axis=1)):
                    yield int(leaders[i]), rows[near[i]]
        on_progress(min(start + BLOCK, len(order)), len(order))


def _by_index(
    store: FeatureStore,
    files: _Files,
    free: NDArray[np.bool_],
    threshold: float,
    index: OpenIndex,
    on_progress: Callable[[int, int], None],
) -> Near:
    """Look up the neighbours of every file in the index, then yield the pairs, largest file first.

    A pair may be found from the smaller file only, so all pairs must be known before the first is claimed.
    """
    with files.reading():
        nearest = Nearest(store, "cosine", index)
    parts = [files.order[start : start + _LEADERS] for start in range(0, len(files.order), _LEADERS)]
    firsts, others, done = [exact_search.NO_ROWS], [exact_search.NO_ROWS], 0
    for part in parts:
        with files.reading():
            own = [part[i : i + 1] for i in range(len(part))]
            ranked = nearest.among(store.features(part), own, _NEIGHBOURS, 2 * _NEIGHBOURS, best=2 * _NEIGHBOURS)
        others += [some.rows[reaches(some.scores, threshold)] for some in ranked]
        firsts += [np.repeat(itself, len(near)) for itself, near in zip(own, others[-len(own) :])]
        done += len(part)
        on_progress(done, len(files.order))
    pairs = _Pairs(files, np.concatenate(firsts), np.concatenate(others))
    for part in parts:
        with files.reading():
            for first in part[free[part]].tolist():
                if free[first]:
                    crowded = pairs.count(first) >= _NEIGHBOURS
                    more = _neighbours(store, nearest, first, threshold) if crowded else exact_search.NO_ROWS
                    yield first, np.union1d(pairs.smaller(first), more)


def _neighbours(store: FeatureStore, nearest: Nearest, first: int, threshold: float) -> Rows:
    """Look up more and more neighbours of a file in the index, until some are not near."""
    own = np.array([first])
    query, k = store.features(own), 4 * _NEIGHBOURS
    while True:
        (ranked,) = nearest.among(query, [own], k, 2 * k, best=2 * k)
        near = ranked.rows[reaches(ranked.scores, threshold)]
        if len(near) < k:
            return near
        k *= 4


class _Pairs:
    """Pairs of near files, each found from one of them or from both."""

    def __init__(self, files: _Files, firsts: Rows, others: Rows) -> None:
        self._rank, self._counts = files.rank, np.bincount(firsts, minlength=len(files.rank))
        known = others < len(files.rank)  # the others were added meanwhile
        pairs = np.sort(np.stack([files.rank[firsts[known]], files.rank[others[known]]], axis=1))
        pairs = pairs[pairs[:, 1] < len(files.order)]  # without copies, which follow the first of them
        self._pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self._order = files.order

    def count(self, first: int) -> int:
        """Count the near files that were found from `first`."""
        return int(self._counts[first])

    def smaller(self, first: int) -> Rows:
        """Return the smaller files that are near `first`."""
        start, stop = np.searchsorted(self._pairs[:, 0], self._rank[first] + np.arange(2))
        smaller: Rows = self._order[self._pairs[start:stop, 1]]
        return smaller
