"""Look up what a store knows about a file, without reading either again.

In: a store, as it was when a run began. Out: for the path, size, time or
digest of a file, the row or failure that belongs to it; for an archive, those
of all its members. Takes about 80 bytes of memory per row.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rn50feat.sources.archive import ArchiveRecord
from rn50feat.sources.location import archive_of
from rn50feat.sources.reference import UNKNOWN, Reference
from rn50feat.sources.selection import Selection
from rn50feat.store.reader import FailureRecord, FeatureStore

_KEY = np.dtype([("high", ">u8"), ("low", ">u8")])
_PAIR = struct.Struct(">QQ")


@dataclass(frozen=True)
class KnownArchive:
    """An archive that has not changed: the rows of its images, int64, its failures, and how many are no images."""

    rows: NDArray[np.int64]
    failures: Sequence[FailureRecord]
    others: int

    @property
    def failed(self) -> int:
        """How many of its images failed."""
        return len(self.failures)


class Catalogue:
    """The rows and failures of a store by path, size and digest; empty for None.

    Members that `selection` excludes do not count as known members of their
    archives. In ``met``, bool of shape (N,), a run notes for each row whether
    it has found the row's image.
    """

    def __init__(
        self, store: FeatureStore | None, selection: Selection | None = None, damaged: frozenset[int] = frozenset()
    ) -> None:
        """Read what `store` knows; what it knows of its `damaged` rows does not count."""
        self._store, self._selection, self._damaged = store, selection, list(damaged)
        self._sizes = self._mtimes = np.empty(0, np.int64)
        self._digest_of_row: NDArray[np.uint8] = np.empty((0, 16), np.uint8)
        self._paths = self._digests = _Lookup(self._digest_of_row)
        self.failures: dict[str, FailureRecord] = {}
        self._archives: dict[str, ArchiveRecord] = {}
        self._members: dict[str, array[int]] = {}  # the rows of each archive
        if store is not None:
            with store.reading():
                self._sizes, self._mtimes = store.column("size"), store.column("mtime_ns")
                self._digest_of_row = store.column("digest")
                self._digest_of_row[self._damaged] = 0  # unknown: neither unchanged nor the original of a copy
                self._digests = _Lookup(self._digest_of_row)
                self._archives = {archive.path: archive for archive in store.archives()}
                self._paths = _Lookup(self._path_keys(store), self._damaged)
                self.failures = {failure.path: failure for failure in store.failures()}
        self._failed: dict[tuple[str, int], list[FailureRecord]] = {}  # by archive and its time
        for path, failure in self.failures.items():
            if archive := self._archive_of(path):
                self._failed.setdefault((archive, failure.mtime_ns), []).append(failure)
        self._known_sizes = np.unique(self._sizes)
        self.met = np.zeros(len(self._sizes), bool)
        self._moved: set[int] = set()

    def _path_keys(self, store: FeatureStore, block: int = 8192) -> NDArray[np.uint8]:
        """Return the keys of all paths, uint8 of shape (N, 16), and note the rows of archives on the way."""
        keys = []
        for first in range(0, len(store), block):
            paths = store.paths(first, first + block)
            keys.append(b"".join(map(path_key, paths)))
            for row, path in enumerate(paths, first) if self._archives else ():
                if archive := self._archive_of(path):
                    self._members.setdefault(archive, array("q")).append(row)
        return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)

    def _archive_of(self, path: str) -> str:
        """Return the archive that a stored path names a member of; "" for another path, and for an excluded member."""
        archive = archive_of(path)
        if archive and self._store and self._selection and self._selection.rule(self._store.locate(path)):
            return ""
        return archive

    def __len__(self) -> int:
        return len(self._sizes)

    def row(self, path: str) -> int | None:
        """Return the row of a stored path, or None."""
        row = self._paths.get(path_key(path)) if len(self._sizes) else None
        return None if row in self._moved else row

    def doubles(self) -> list[int]:
        """Return the rows, ascending, whose path is that of another row, which the run has met; for its end."""
        pairs = self._paths.repeated()
        found = [row for first, row in pairs if self.met[first] and first not in self._moved and not self.met[row]]
        return sorted(found)

    def note_moved(self, row: int) -> None:
        """Note that the path of a row is no longer its own: a file that appears there is new."""
        self._moved.add(row)

    def unchanged(self, row: int, reference: Reference) -> bool:
        """Check whether a file has the size and time that it had when its row was made."""
        same = self._sizes[row] == reference.size and self._mtimes[row] == reference.mtime_ns
        return bool(same) and self.digest(row) != UNKNOWN

    def as_new(self, row: int | None, mtime_ns: int) -> bool:
        """Check whether there is a row, and its file was not older than a time."""
        return row is not None and bool(self._mtimes[row] >= mtime_ns)

    def failure(self, path: str, reference: Reference) -> FailureRecord | None:
        """Return the failure of a file that still has the size and time that it had then, else None."""
        failure = self.failures.get(path)
        same = failure is not None and (failure.size, failure.mtime_ns) == (reference.size, reference.mtime_ns)
        return failure if same else None

    def archive(self, path: str, reference: Reference) -> KnownArchive | None:
        """Look up an archive that has not changed; None when some of its images may not be known."""
        record = self._archives.get(path)
        if record is None or (record.size, record.mtime_ns) != (reference.size, reference.mtime_ns):
            return None
        rows = np.array(self._members.get(path, ()), np.int64)
        rows = rows[(self._mtimes[rows] == reference.mtime_ns) & ~np.isin(rows, self._damaged)]
        failures = self._failed.get((path, reference.mtime_ns), ())
        whole = len(rows) + len(failures) == record.pictures
        return KnownArchive(rows, failures, record.others) if whole else None

    def may_hold_copy(self, size: int) -> bool:
        """Check whether any row's file has `size` bytes: only then is a digest worth computing."""
        if not len(self._known_sizes):
            return False
        i = int(np.searchsorted(self._known_sizes, size))
        return i < len(self._known_sizes) and bool(self._known_sizes[i] == size)

    def digest(self, row: int) -> bytes:
        """Return the digest of the file that a row was made from."""
        return bytes(self._digest_of_row[row])

    def row_of_copy(self, digest: bytes) -> int | None:
        """Return a row whose file had the bytes of `digest`, or None; an unknown digest equals nothing."""
        return None if digest == UNKNOWN else self._digests.get(digest)

    def rows_of_copies(self, digest: bytes) -> list[int]:
        """Return all rows whose files had the bytes of a known `digest`, in ascending order."""
        return self._digests.all(digest)


def path_key(path: str) -> bytes:
    """Return the 16 bytes that represent a stored path in memory."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()


class _Lookup:
    """A fixed map from keys of 16 bytes to row numbers: 24 bytes per key, a tenth of a dict.

    Of equal keys, the first row is found.
    """

    def __init__(self, keys: NDArray[np.uint8], last: Sequence[int] = ()) -> None:
        """Map row i of `keys`, uint8 of shape (N, 16), to i; rows in `last` come after all others."""
        records = np.ascontiguousarray(keys).view(_KEY).reshape(-1)
        self._order = np.argsort(records["high"], kind="stable")
        if last:
            self._order = self._order[np.lexsort((np.isin(self._order, last), records["high"][self._order]))]
        self._high = records["high"][self._order].astype(np.uint64)
        self._low = records["low"][self._order].astype(np.uint64)
        # Their items are plain ints: a lookup takes 2 µs, and 10 with np.searchsorted.
        self._views = self._high.data, self._low.data, self._order.data

    def all(self, key: bytes) -> list[int]:
        high, low = np.frombuffer(key, ">u8").astype(np.uint64)
        found = slice(*(np.searchsorted(self._high, high, side) for side in ("left", "right")))
        return [int(row) for row in self._order[found][self._low[found] == low]]

    def repeated(self) -> list[tuple[int, int]]:
        """Return the rows that `get` does not find, each after the one that it finds for the same key."""
        same = np.flatnonzero(self._high[1:] == self._high[:-1])  # in order of the first half; the others tell
        keys = [(int(self._high[i]), int(self._low[i])) for i in np.union1d(same, same + 1)]
        packed = [_PAIR.pack(*key) for key in dict.fromkeys(keys)]
        rows = [(self.get(key), row) for key in packed for row in self.all(key)]
        return [(first, row) for first, row in rows if first is not None and first != row]

    def get(self, key: bytes) -> int | None:
        high, low = _PAIR.unpack(key)
        highs, lows, order = self._views
        for i in range(bisect_left(highs, high), len(highs)):
            if highs[i] != high:
                break
            if lows[i] == low:
                return int(order[i])
        return None
