"""Read a store: the features of images, and their records, from one HDF5 file.

In: the path of a store. Out: its rows as numpy arrays and frozen records. The
file is plain, dense HDF5: row i of every dataset belongs to one image.
`layout` defines the datasets; only `writer` changes them. Needs no torch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from rn50feat.durable import lock
from rn50feat.errors import ArgumentError, StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.sources.archive import ArchiveRecord
from rn50feat.sources.reference import Reference
from rn50feat.store import layout
from rn50feat.store.checksums import Record, require_attributes, spans
from rn50feat.store.damage import LAST_REMEDY, reporting_damage, wrong_row, wrong_table
from rn50feat.store.layout import ARCHIVES, DAMAGED, LEDGER, Column, decode_text
from rn50feat.store.opening import MOVED, read
from rn50feat.store.paths import current, location_of
from rn50feat.store.positions import Positions
from rn50feat.store.rows import row_number, row_numbers, span
from rn50feat.store.summary import parse_run

SUFFIXES = (".h5", ".hdf5")
T = TypeVar("T")
NUMBERS = ("ids", "size", "mtime_ns", "digest")


@dataclass(frozen=True)
class FailureRecord:
    """An image that could not be read, with its file's size and time at that attempt."""

    path: str
    reason: str
    size: int
    mtime_ns: int
    attempts: int


def locate_store(path: str | os.PathLike[str]) -> Path:
    """Resolve the absolute path of a store that exists or could; raise `StoreError` for an impossible one."""
    try:
        located, mode = Path(os.path.realpath(path)), stat.S_IFREG  # Path.resolve ignores loops since Python 3.13
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = located.stat().st_mode
    except (OSError, ValueError) as error:  # a loop of links; a name that is too long or has a NUL
        reason = getattr(error, "strerror", error)
        raise StoreError(f"{path} cannot be found ({reason}): name a file for the store") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise StoreError(f"{path} is {kind}: name a file for the store, for example out.h5")
    return located


def locate_output(path: str | os.PathLike[str]) -> Path:
    """Resolve a store to write to, like `locate_store`; a new one needs a suffix that commands recognise."""
    if not (located := locate_store(path)).exists():
        if Path(path).parts[0].endswith(":"):
            raise StoreError(f"{path} looks like a URL, but a store must be a local file: name one, for example out.h5")
        if not os.fspath(path).endswith(SUFFIXES):
            raise StoreError(f"{path} does not end in .h5 or .hdf5, as a new store must: name it out.h5, for example")
    return located


class _MovedError(Exception):
    """Rows were replaced or removed while a reader let a commit go first."""


class FeatureStore:
    """A store to read from. Every call sees the last commit, even while a run is writing.

    The file is open, and shared with other readers, only during a call; in a
    ``with store.reading():`` block, all calls see the same commit. Raises
    `StoreError` if there is no store at `path` or it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = locate_store(path)
        self._file: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}  # of the open file
        self._record: Record | None = None
        self._positions = Positions()
        self._steady: NDArray[np.int64] | None = None  # the ids of rows that must not move
        self._seen = False  # whether it has been opened before
        with self._access(LAST_REMEDY) as file:
            require_attributes(file)
            self.id = str(layout.attribute(file, "store_id"))
            self.provenance = Provenance.from_json(layout.attribute(file, "provenance"))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the store open at one commit."""
        if self._file is not None:
            yield
            return
        with ExitStack() as self._held:
            try:
                self._open()
                yield
            finally:
                self._file = None

    def _open(self) -> None:
        opened = read(self.path, remedy=MOVED if self._seen else "")
        self._file, self._datasets = self._held.enter_context(opened), {}
        self._record = None
        self._positions.reopened()
        self._seen = True

    def steadily(self, work: Callable[[], T]) -> T:
        """Call `work` while no rows move, and return its result.

        The store is kept open as in a ``with store.reading():`` block, but
        whenever `work` calls `give_way`, a waiting commit goes first. That
        may add rows; if it moves rows, `work` starts again, and at the third
        try commits wait until it ends.
        """
        if self._file is not None:  # the caller keeps one commit open
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
        raise AssertionError  # at the last try, nothing moves

    def give_way(self) -> None:
        """Let a commit that waits for this reader go first; to be called by work inside `steadily`."""
        known = self._steady
        if known is None or not lock.awaited(self.path):
            return
        self._file = None
        self._held.close()
        self._open()
        if not np.array_equal(self.column("ids", 0, len(known)), known):
            raise _MovedError

    @contextmanager
    def _access(self, fix: str = "") -> Iterator[h5py.File]:
        """Yield the open file to a block that reads only checked data with checked arguments; `fix` is for damage."""
        with self.reading(), reporting_damage(self.path, fix):
            assert self._file is not None
            yield self._file

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset of the open file, checked once: that takes 0.3 ms, and each hit reads four of them."""
        assert self._file is not None
        if name not in self._datasets:
            self._datasets[name] = layout.dataset(self._file, name)
        return self._datasets[name]

    def _checksums(self) -> Record:
        """Return the checksums of the open file, looked up once."""
        assert self._file is not None
        self._record = self._record or Record(self._file)
        return self._record

    def _part(self, start: int | None, stop: int | None) -> slice:
        """Resolve ``start:stop`` to a slice of the rows without negative numbers."""
        first, last, _ = slice(start, stop).indices(len(self))
        return slice(first, max(first, last))

    def __len__(self) -> int:
        with self._access():
            return int(self._dataset("ids").shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the features: float16 or float32."""
        with self._access():
            return cast("np.dtype[Any]", self._dataset("features").dtype)

    def blocks(self, rows: int = 4096) -> Iterator[tuple[int, NDArray[np.floating[Any]]]]:
        """Yield (first row, features of shape (n, 2048)) for all rows, `rows` at a time."""
        if span(0, rows).stop == 0:
            raise ArgumentError("blocks cannot have 0 rows: use at least 1")
        with self.reading():
            for start in range(0, len(self), rows):
                yield start, self.block(start, rows)

    def block(self, first: int, rows: int) -> NDArray[np.floating[Any]]:
        """Read the features of at most `rows` rows from `first` on, shape (n, 2048)."""
        part = span(first, rows)
        return self.features(part)

    def features(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Read rows as ``features[rows]`` would from an array of all features, shape (N, 2048).

        `rows` is a list or array of row numbers (in any order; negative ones
        count from the end), a slice, a mask of N bools, or a single number,
        which gives shape (2048,). Raises `RowError` for rows that do not exist.
        """
        with self._access():
            features = self._dataset("features")
            selected = row_numbers(rows, features.shape[0], self.path)
            numbers = selected.reshape(-1)
            values = self._positions.read(features, numbers, lambda: self.history(-1))
            return values.reshape(*selected.shape, layout.WIDTH)

    def column(self, name: str, start: int | None = 0, stop: int | None = None) -> NDArray[Any]:
        """Read ids, size, mtime_ns (int64, (n,)) or digest (uint8, (n, 16)) of the rows ``start:stop``."""
        if name not in NUMBERS:
            raise ArgumentError(
                f"{self.path} has no column {name}: use one of {', '.join(NUMBERS)}, or call paths() or features()"
            )
        with self._access():
            return np.asarray(self._dataset(name)[self._part(start, stop)])

    def paths(self, start: int | None = 0, stop: int | None = None) -> list[str]:
        """Read the stored paths of the rows ``start:stop``."""
        with self._access():
            return [self._path(path) for path in self._dataset("paths")[self._part(start, stop)]]

    def path_of(self, row: int) -> str:
        """Read the stored path of one row, which may be negative; raise `RowError` if it does not exist."""
        with self._access():
            paths = self._dataset("paths")
            return self._path(paths[row_number(row, paths.shape[0], self.path)])

    def rows_of(self, paths: Sequence[str]) -> list[int | None]:
        """Look up the rows of stored paths or absolute locations; None for those that the store does not have."""
        if isinstance(paths, str):
            raise ArgumentError(f"{paths} is a single path: pass a list of paths")
        paths = [current(self.path, path) for path in paths]
        rows: dict[str, int] = {}
        wanted = set(paths)
        with self.reading():
            for start in range(0, len(self), 8192):
                block = enumerate(self.paths(start, start + 8192), start)
                rows.update((path, row) for row, path in block if path in wanted)
        return [rows.get(path) for path in paths]

    def references(self, first: int, rows: int) -> list[Reference]:
        """Read the files of at most `rows` rows from `first` on, as they were when they were extracted."""
        part = span(first, rows)
        with self._access():
            columns = [self._dataset(name)[part] for name in ("paths", "size", "mtime_ns", "digest")]
        return [
            Reference(self.locate(decode_text(path)), int(size), int(mtime_ns), bytes(digest))
            for path, size, mtime_ns, digest in zip(*columns)
        ]

    def wrong_rows(self, first: int, rows: int) -> list[int]:
        """Return which of at most `rows` rows from `first` on differ from their checksums: they are damaged."""
        part = span(first, rows)
        with self._access():
            return [int(row) for row in self._checksums().wrong_rows(part)]

    def require_chunks(self) -> None:
        """Raise `DamagedStoreError` if a chunk of a dataset has a wrong size: no run may write then."""
        with self._access() as file:
            layout.check_chunks(file)

    def require_sound(self, rows: Iterable[int]) -> None:
        """Raise `DamagedStoreError` for the first of `rows` that differs from its checksum."""
        with self._access():
            record = self._checksums()
            for part in spans(rows) if record.current else ():
                for row in record.wrong_rows(part).tolist():
                    raise wrong_row(self.path, self._path(self._dataset("paths")[row]))

    def wrong_tables(self) -> list[str]:
        """Return the names of the tables other than rows (failures, runs, …) that differ from their checksums."""
        with self._access():
            return self._checksums().wrong_tables()

    @property
    def has_checksums(self) -> bool:
        """Whether the rows have checksums that hold for the last commit; older versions write none."""
        with self._access():
            return self._checksums().current

    def layout(self) -> dict[str, Column]:
        """Read the shape and dtype of each dataset of the layout that this store has."""
        with self._access() as file:
            return layout.columns(file)

    @property
    def next_id(self) -> int:
        """The id of the next new row."""
        with self._access() as file:
            return int(layout.attribute(file, "next_id"))

    @contextmanager
    def _table(self, name: str) -> Iterator[h5py.File]:
        """Yield the open file to read a small table from; raise `DamagedStoreError` if it differs from its checksum."""
        with self._access() as file:
            if self._checksums().wrong_tables([name]):
                raise wrong_table(self.path, name)
            yield file

    def history(self, first: int = 0) -> list[str]:
        """Read the mark of each commit from `first` on, oldest first; the last one identifies the current state."""
        with self._access() as file:
            return layout.history(file, first)

    def failures(self) -> list[FailureRecord]:
        """Read the ledger of images that could not be read."""
        with self._table("failures") as file:
            return [FailureRecord(current(self.path, path), *rest) for path, *rest in layout.entries(file, LEDGER)]

    def damage(self) -> dict[int, str]:
        """Read what is wrong with the images of damaged rows, by id."""
        with self._table("damaged") as file:
            return dict(map(tuple, layout.entries(file, DAMAGED))) if "damaged" in file else {}

    def archives(self) -> list[ArchiveRecord]:
        """Read the archives that have been listed completely."""
        with self._table("archives") as file:
            entries = layout.entries(file, ARCHIVES) if "archives" in file else ()
            return [ArchiveRecord(current(self.path, path), *rest) for path, *rest in entries]

    def runs(self, first: int = 0) -> list[dict[str, Any]]:
        """Read the record of each run from `first` on (from the end if it is negative); see `summary.RunRecord`."""
        with self._access():
            return [parse_run(text) for text in self._dataset("runs")[first:]]

    def locate(self, path: str) -> str:
        """Return the absolute location of the image with a stored path."""
        return location_of(self.path, path)

    def _path(self, raw: bytes) -> str:
        return current(self.path, decode_text(raw))
