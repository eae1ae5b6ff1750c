"""Find the row of a stored path without reading the paths of all rows.

In: a store with an index, and stored paths. Out: their rows. The file
``out.faiss.paths`` is written with the index: one uint64 per row, ascending,
with the CRC-32 of the path in its upper half and the row in the lower one. It
is never trusted: a row that it names counts if the store has that path there,
and paths that it lacks are looked up in the store. So it may be older than the
store, damaged, or missing, and only takes time.
"""

from __future__ import annotations

import os
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rn50feat.durable.atomic import written
from rn50feat.durable.disk import open_regular
from rn50feat.errors import IndexingError
from rn50feat.store.paths import current
from rn50feat.store.reader import FeatureStore

LEAST = 50_000  # rows: reading fewer paths takes at most 35 ms
_BLOCK = 8192  # rows whose paths are in memory at once
_ENTRY = 8  # bytes
_SAMPLE = 20  # paths


def path_file(store: Path) -> Path:
    """Return the path of the file for a store's paths."""
    return store.with_suffix(".faiss.paths")


def save(store: FeatureStore) -> None:
    """Write the file for all rows of `store`, if there are `LEAST`: 1 s for a million; raise `IndexingError` if not."""
    if len(store) < LEAST:
        return
    entries = np.zeros(len(store), "<u8")  # 8 bytes a row, of which there may be 100 million: all in place
    for first in range(0, len(entries), _BLOCK):  # not all at once, so that a run can commit in between
        hashes = np.array([*map(_hash, store.paths(first, first + _BLOCK))], np.uint64)[: len(entries) - first]
        rows = np.arange(first, first + len(hashes), dtype=np.uint64)
        entries[first : first + len(hashes)] = hashes << np.uint64(32) | rows
    entries.sort()
    with written([path_file(store.path)], kind=IndexingError) as (file,):
        file.write(entries.data)


def fits(store: FeatureStore) -> bool:
    """Check whether the file finds some rows from all over `store`, or is not worth having."""
    with store.reading():
        some = range(0, len(store), max(1, len(store) // _SAMPLE))
        return len(store) < LEAST or None not in _named(store, [store.path_of(row) for row in some])


def rows_of(store: FeatureStore, paths: Sequence[str]) -> list[int | None]:
    """Look up rows like `FeatureStore.rows_of`: 1 ms for each path, or 0.7 s per million rows for any it lacks."""
    paths = [current(store.path, path) for path in paths]
    with store.reading():
        rows = {path: row for path, row in zip(paths, _named(store, paths)) if row is not None}
        if missing := [path for path in paths if path not in rows]:
            rows |= {path: row for path, row in zip(missing, store.rows_of(missing)) if row is not None}
        return [rows.get(path) for path in paths]


def _named(store: FeatureStore, paths: Sequence[str]) -> list[int | None]:
    """Return the rows that the file names, where the store has that path."""
    try:
        with open_regular(path_file(store.path)) as file:
            return [
                next((row for row in _rows(file.fileno(), path) if _is_at(store, row, path)), None) for path in paths
            ]
    except OSError:
        return [None] * len(paths)


def _is_at(store: FeatureStore, row: int, path: str) -> bool:
    return row < len(store) and store.path_of(row) == path


def _rows(handle: int, path: str) -> Iterator[int]:
    """Yield the rows whose paths have the same hash as `path`."""
    entries = range(os.fstat(handle).st_size // _ENTRY)
    wanted = _hash(path)

    def entry(i: int) -> int:
        return int.from_bytes(os.pread(handle, _ENTRY, i * _ENTRY), "little")

    for i in entries[bisect_left(entries, wanted << 32, key=entry) :]:
        found, row = divmod(entry(i), 1 << 32)
        if found != wanted:
            return
        yield row


def _hash(path: str) -> int:
    return zlib.crc32(path.encode("utf-8", "surrogateescape"))
