"""Read a store: features and what is known of their pictures, in one HDF5 file.

In: the path of a store. Out: its rows as numpy arrays and frozen records. The
file is plain HDF5, dense: row i of every dataset belongs to one picture. Its
layout is in `layout`; `writer` is the only module that changes one. Needs no
torch.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from rn50feat.durable import lock
from rn50feat.errors import ArgumentError, StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.sources.archives import ArchiveRecord
from rn50feat.sources.remote import is_url
from rn50feat.sources.sources import Reference
from rn50feat.store import layout
from rn50feat.store.damage import Malformed, damage_told
from rn50feat.store.layout import ARCHIVES, DAMAGED, LEDGER, TABLES, Column, decode_text
from rn50feat.store.opening import MOVED, opened, shared
from rn50feat.store.rows import row_number, row_numbers, span

SUFFIXES = (".h5", ".hdf5")
T = TypeVar("T")
NUMBERS = ("ids", "size", "mtime_ns", "digest")


@dataclass(frozen=True)
class FailureRecord:
    """A picture that could not be read, with the file's size and time at that attempt."""

    path: str
    reason: str
    size: int
    mtime_ns: int
    attempts: int


def locate_store(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a store that is there, or could be; raise `StoreError` for one that cannot."""
    try:
        located, mode = Path(os.path.realpath(path)), stat.S_IFREG  # Path.resolve knows no circles since Python 3.13
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = located.stat().st_mode
    except (OSError, ValueError) as error:  # a circle of links; a name too long, or with a NUL
        reason = getattr(error, "strerror", error)
        raise StoreError(f"{path} cannot be found ({reason}): name a file for the store") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise StoreError(f"{path} is {kind}: name a file for the store, out.h5 say")
    return located


def locate_output(path: str | os.PathLike[str]) -> Path:
    """Return what `locate_store` does for a store to write to; a new one must have a name that commands know it by."""
    if not (located := locate_store(path)).exists():
        if Path(path).parts[0].endswith(":"):
            raise StoreError(f"{path} looks like a URL, and a store is a file of this machine: name one, out.h5 say")
        if not os.fspath(path).endswith(SUFFIXES):
            raise StoreError(f"{path} ends in neither .h5 nor .hdf5, as a new store must: name it out.h5, say")
    return located


def stored_path(store: Path, location: str) -> str:
    """Return under which path a store holds the picture at an absolute location."""
    folder = _folder(store)
    return location[len(folder) :] if location.startswith(folder) else location


@lru_cache(64)
def _folder(store: Path) -> str:
    """Return the folder of a store, ended by a slash: 10 µs to find, for each of millions of paths."""
    return os.path.join(store.parent, "")


class _MovedError(Exception):
    """Rows were replaced or removed while a reader gave way."""


class FeatureStore:
    """A store to read from. Every call sees the last commit, also while a run goes on.

    The file is open, and shared with other readers, only during a call; a
    ``with store.reading():`` block makes several calls see the same commit.
    Raises `StoreError` when there is no store at `path` or it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = locate_store(path)
        self._file: h5py.File | None = None
        self._steady: NDArray[np.int64] | None = None  # the ids of rows that must not move
        self._seen = False  # it was there once
        with self._access() as file:
            self.id = str(layout.attribute(file, "store_id"))
            self.provenance = Provenance.from_json(layout.attribute(file, "provenance"))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the store open, at one commit."""
        if self._file is not None:
            yield
            return
        with ExitStack() as self._held:
            try:
                self._take()
                yield
            finally:
                self._file = None

    def _take(self) -> None:
        self._held.enter_context(shared(self.path, remedy=MOVED if self._seen else ""))
        self._file = self._held.enter_context(opened(self.path))
        self._seen = True

    def steadily(self, work: Callable[[], T]) -> T:
        """Return what `work` does with rows that do not move meanwhile.

        The store is held open as in a ``with store.reading():`` block, but
        where the work calls `give_way`, a commit that waits goes first. Rows
        may be added then; if rows move, the work begins again, and the third
        time commits wait for its end.
        """
        if self._file is not None:  # the caller holds one commit
            return work()
        for last in (False, False, True):
            with self.reading():
                self._steady = None if last else self.column("ids")
                try:
                    return work()
                except _MovedError:
                    continue
                finally:
                    self._steady = None
        raise AssertionError  # the last time, nothing moves

    def give_way(self) -> None:
        """Let a commit go first that waits for this reader, in the midst of work that `steadily` does."""
        known = self._steady
        if known is None or not lock.awaited(self.path):
            return
        self._file = None
        self._held.close()
        self._take()
        if not np.array_equal(self.column("ids", 0, len(known)), known):
            raise _MovedError

    @contextmanager
    def _access(self) -> Iterator[h5py.File]:
        """Yield the open file to a block that reads what `layout` has checked, by arguments that are checked, too."""
        with self.reading(), damage_told(self.path):
            assert self._file is not None
            yield self._file

    def __len__(self) -> int:
        with self._access() as file:
            return _count(file)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the features: float16 or float32."""
        with self._access() as file:
            return cast("np.dtype[Any]", layout.dataset(file, "features").dtype)

    def blocks(self, rows: int = 4096) -> Iterator[tuple[int, NDArray[np.floating[Any]]]]:
        """Yield (first row, features of shape (n, 2048)) for all rows, `rows` at a time."""
        if span(0, rows).stop == 0:
            raise ArgumentError("blocks of 0 rows have no end: give at least 1")
        with self.reading():
            for start in range(0, len(self), rows):
                yield start, self.block(start, rows)

    def block(self, first: int, rows: int) -> NDArray[np.floating[Any]]:
        """Return the features of at most `rows` rows from `first` on, of shape (n, 2048)."""
        part = span(first, rows)
        with self._access() as file:
            return np.asarray(layout.dataset(file, "features")[part])

    def features(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Return what ``features[rows]`` would for an array of all features, of shape (N, 2048).

        `rows` is a list or array of row numbers (in any order, negative ones
        counted from the end), a slice, a mask of N bools, or one number, for
        shape (2048,). Raises `RowError` for rows that are not there.
        """
        with self._access() as file:
            features = layout.dataset(file, "features")
            selected = row_numbers(rows, features.shape[0], self.path)
            numbers = selected.reshape(-1)
            if len(numbers) and (np.diff(numbers) == 1).all():  # 4096 rows: 5 ms, not 60
                found = np.asarray(features[numbers[0] : numbers[-1] + 1])
            else:
                found = np.empty((len(numbers), layout.WIDTH), features.dtype)
                for i, row in enumerate(numbers.tolist()):
                    found[i] = features[row]
            return found.reshape(*selected.shape, layout.WIDTH)

    def column(self, name: str, start: int | None = 0, stop: int | None = None) -> NDArray[Any]:
        """Return ids, size, mtime_ns or digest of the rows ``start:stop``, as numpy slices."""
        if name not in NUMBERS:
            raise ArgumentError(
                f"{self.path} has no column {name}: give one of {', '.join(NUMBERS)}, or call paths() or features()"
            )
        with self._access() as file:
            return np.asarray(layout.dataset(file, name)[_part(file, start, stop)])

    def paths(self, start: int | None = 0, stop: int | None = None) -> list[str]:
        """Return the stored paths of the rows ``start:stop``, as Python slices."""
        with self._access() as file:
            return [decode_text(path) for path in layout.dataset(file, "paths")[_part(file, start, stop)]]

    def path_of(self, row: int) -> str:
        """Return the stored path of one row, which may be negative; raise `RowError` for one that is not there."""
        with self._access() as file:
            paths = layout.dataset(file, "paths")
            return decode_text(paths[row_number(row, paths.shape[0], self.path)])

    def rows_of(self, paths: Sequence[str]) -> list[int | None]:
        """Return the rows of stored paths, None for those that the store lacks."""
        if isinstance(paths, str):
            raise ArgumentError(f"{paths} is one path: give a list of paths")
        found: dict[str, int] = {}
        wanted = set(paths)
        with self.reading():
            for start in range(0, len(self), 8192):
                block = enumerate(self.paths(start, start + 8192), start)
                found.update((path, row) for row, path in block if path in wanted)
        return [found.get(path) for path in paths]

    def references(self, first: int, rows: int) -> list[Reference]:
        """Return the files of at most `rows` rows from `first` on, as they were when their rows were made."""
        part = span(first, rows)
        with self._access() as file:
            columns = [layout.dataset(file, name)[part] for name in ("paths", "size", "mtime_ns", "digest")]
        return [
            Reference(self.locate(decode_text(path)), int(size), int(mtime_ns), bytes(digest))
            for path, size, mtime_ns, digest in zip(*columns)
        ]

    def layout(self) -> dict[str, Column]:
        """Return the shape and dtype of each dataset that a store should have, and has."""
        with self._access() as file:
            found = {name: layout.column(file, name) for table in TABLES for name in table}
            return {name: column for name, column in found.items() if column is not None}

    @property
    def next_id(self) -> int:
        """The id that the next new row will have."""
        with self._access() as file:
            return int(layout.attribute(file, "next_id"))

    def history(self) -> list[str]:
        """Return the mark of each commit, oldest first: what has seen the last of them knows the store as it is."""
        with self._access() as file:
            return layout.history(file)

    def failures(self) -> list[FailureRecord]:
        """Return the ledger of pictures that could not be read."""
        with self._access() as file:
            return [FailureRecord(*entry) for entry in layout.entries(file, LEDGER)]

    def damage(self) -> dict[int, str]:
        """Return what is wrong with the images of rows, by id, for those with which something is."""
        with self._access() as file:
            return dict(map(tuple, layout.entries(file, DAMAGED))) if "damaged" in file else {}

    def archives(self) -> list[ArchiveRecord]:
        """Return the archives that were listed to their ends."""
        with self._access() as file:
            return [ArchiveRecord(*entry) for entry in layout.entries(file, ARCHIVES)] if "archives" in file else []

    def runs(self) -> list[dict[str, Any]]:
        """Return the record of each run, oldest first; see `summary.record`."""
        with self._access() as file:
            return [_run(text) for text in layout.dataset(file, "runs")[:]]

    def locate(self, path: str) -> str:
        """Return the absolute location of the picture with a stored path."""
        return path if path.startswith("/") or is_url(path) else _folder(self.path) + path


def _count(file: h5py.File) -> int:
    return int(layout.dataset(file, "ids").shape[0])


def _part(file: h5py.File, start: int | None, stop: int | None) -> slice:
    """Return ``start:stop`` of the rows, without negative numbers."""
    first, last, _ = slice(start, stop).indices(_count(file))
    return slice(first, max(first, last))


def _run(text: bytes) -> dict[str, Any]:
    """Return the record of a run; raise `Malformed` for one of another shape."""
    try:
        record: dict[str, Any] = json.loads(text)
        fits = all(isinstance(record[name], kinds) for name, kinds in _RUN.items())
        fits = fits and isinstance(record.get("command", ""), str)
        fits = fits and isinstance(record["counts"].get("images_per_second", 0), (int, float, NoneType))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("a record of a run is none, or incomplete") from error
    if not fits:
        raise Malformed("a record of a run holds values of other types")
    return record


_RUN: dict[str, Any] = {
    "started": str,
    "ended": (str, NoneType),
    "device": (str, NoneType),
    "precision": (str, NoneType),
    "counts": dict,
}
