"""Read a store block by block while runs may write to it, and detect moved rows.

In: a store. Out: its rows as they were at the start. Keeping the store open
all the time would delay a run's commits, so it is open for one block at a
time. Rows that are appended in the meantime are left out; if rows are
replaced or removed (the last rows then take their places), reading ends with
an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import StoreError
from rn50feat.sources.reference import Reference
from rn50feat.store.reader import FeatureStore

BLOCK = 1024  # rows in memory at once: 8 MB of float32


@dataclass(frozen=True)
class Block:
    """A block of n rows: ids, int64 (n,), stored paths, files, and features (n, 2048)."""

    ids: NDArray[np.int64]
    paths: list[str]
    references: list[Reference]
    features: NDArray[np.floating[Any]]


def state(store: FeatureStore) -> tuple[object, ...]:
    """Identify the content of `store`, in a ``with store.reading():``: while this is the same, there was no commit.

    Costs 0.1 ms, whatever the size of the store. The file's time shows commits by versions that leave no marks.
    """
    with store.reading():
        status = os.stat(store.path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, *store.history(-1)


class FixedRows:
    """The rows of a store by their numbers, to be read later: ``ids`` are those at the start."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        with store.reading():
            self.ids: NDArray[np.int64] = store.column("ids")
            self._state = state(store)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read the store in a block of work; raise `StoreError` if rows were replaced or removed. New rows are fine."""
        with self.store.reading():
            if (now := state(self.store)) != self._state:
                if not np.array_equal(self.store.column("ids", 0, len(self.ids)), self.ids):
                    raise StoreError(
                        f"another run replaced or removed rows of {self.store.path}: wait until it ends, then try again"
                    )
                self._state = now
            yield


class Snapshot:
    """The rows of a store at one moment, to be read later."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        with store.reading():
            self.ids: NDArray[np.int64] = store.column("ids")
            self.history = store.history()

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self, wanted: NDArray[np.bool_] | None = None) -> Iterator[Block]:
        """Yield all rows in order, or those `wanted` by a mask of shape (N,).

        Raises `StoreError` if rows have moved since the snapshot.
        """
        wanted = np.ones(len(self), bool) if wanted is None else wanted
        for first in range(0, len(self), BLOCK):
            rows = np.flatnonzero(wanted[first : first + BLOCK])
            if len(rows):
                yield self._block(first, rows)

    def require_unmoved(self, start: int = 0, stop: int | None = None) -> None:
        """Raise `StoreError` if any of the rows ``start:stop`` were replaced or removed since the snapshot."""
        ids = self.ids[start:stop]
        if not np.array_equal(self.store.column("ids", start, start + len(ids)), ids):
            raise StoreError(
                f"{self.store.path} changed while it was read (rows were replaced or removed):"
                " wait until the run that writes to it ends, then try again"
            )

    def _block(self, first: int, rows: NDArray[np.int64]) -> Block:
        store, ids = self.store, self.ids[first : first + BLOCK]
        with store.reading():
            self.require_unmoved(first, first + len(ids))
            store.require_sound((first + rows).tolist())
            paths, references = store.paths(first, first + len(ids)), store.references(first, len(ids))
            features, damage = store.block(first, len(ids))[rows], store.damage()
        known = [replace(references[row], damage=damage.get(int(ids[row]), "")) for row in rows]
        return Block(ids[rows], [paths[row] for row in rows], known, features)
