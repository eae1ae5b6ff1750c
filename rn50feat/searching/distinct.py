"""Tell the distinct files of a store from copies of them.

In: a store. Out: its distinct files, largest first, and the copies of each:
files with the same digest. A file whose digest is unknown is never a copy.
The store may grow meanwhile; if rows are replaced or removed, reading ends
with an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching.best import Rows
from rn50feat.sources.reference import Reference
from rn50feat.store.reader import FeatureStore
from rn50feat.store.snapshot import FixedRows

_READ = 8192  # rows at once


@dataclass(frozen=True)
class StoredImage:
    """An image of a store: its stored path, the ``location`` that opens it, its id, and its file's size in bytes."""

    path: str
    location: str
    id: int
    size: int


@dataclass(frozen=True)
class KnownFile:
    """The stored path and the id of a row, and its file as it was when it was extracted."""

    path: str
    id: int
    reference: Reference

    @property
    def image(self) -> StoredImage:
        """The file as results name it."""
        return StoredImage(self.path, self.reference.location, self.id, self.reference.size)


class DistinctFiles:
    """The distinct files of a store: ``order`` has a row for each, largest first, and ``rank`` their places in it.

    ``rank`` has a number for each row; for copies of another row, it is the number of rows.
    """

    def __init__(self, store: FeatureStore) -> None:
        with store.reading():
            self._fixed = FixedRows(store)
            self.ids, self.sizes = self._fixed.ids, store.column("size")
            digests = np.ascontiguousarray(store.column("digest"))
        self.store = store
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
        self._digests = digests.view("V16").reshape(-1)

    def reading(self) -> AbstractContextManager[None]:
        """Read the store in a block of work; raise `StoreError` if rows were replaced or removed. New rows are fine."""
        return self._fixed.reading()

    def copies(self, row: int) -> Rows:
        """Return the rows of the same file, ordered by id; the first one is in `order`."""
        number = self._number[row]
        return self._by_file[self._bounds[number] : self._bounds[number + 1]]

    def same_bytes(self, other: DistinctFiles) -> list[tuple[int, int]]:
        """Return the rows in `order` of this store and of `other` with files of the same digest."""
        (own, mine), (others, theirs) = self._known_digests(), other._known_digests()
        _, here, there = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
        return list(zip(own[here].tolist(), others[there].tolist()))

    def _known_digests(self) -> tuple[Rows, NDArray[np.void]]:
        """Return the rows in `order` whose digests are known, and these."""
        digests = self._digests[self.order]
        known = digests != np.zeros((), digests.dtype)
        return self.order[known], digests[known]

    def rows(self, ids: Sequence[int]) -> Rows:
        """Return the rows with `ids`."""
        order = np.argsort(self.ids, kind="stable")
        rows: Rows = order[np.searchsorted(self.ids, np.array(ids, self.ids.dtype), sorter=order)]
        return rows

    def with_copies(self) -> list[int]:
        """Return the rows of files that the store holds more than once."""
        return [row for row in self.order.tolist() if len(self.copies(row)) > 1]

    def known(self, rows: Sequence[int]) -> dict[int, KnownFile]:
        """Read what is known of the files of `rows`; raise `DamagedStoreError` if one is damaged."""
        wanted = np.unique(np.array(rows, np.int64))
        self.store.require_sound(wanted.tolist())
        found = {}
        for start in np.unique(wanted // _READ * _READ).tolist():
            paths, references = self.store.paths(start, start + _READ), self.store.references(start, _READ)
            for row in wanted[(wanted >= start) & (wanted < start + _READ)].tolist():
                found[row] = KnownFile(paths[row - start], int(self.ids[row]), references[row - start])
        return found
