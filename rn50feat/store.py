"""Read a store: features and what is known of their pictures, in one HDF5 file.

In: the path of a store. Out: its rows as numpy arrays and frozen records. The
file is plain HDF5, dense: row i of every dataset belongs to one picture. Its
layout is `ROWS`, `LEDGER` and the attributes of `ATTRIBUTES`; `writer` is the
only module that changes one. Needs no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rn50feat import journal, lock
from rn50feat.disk import DISK, Disk
from rn50feat.errors import StoreError
from rn50feat.provenance import Provenance

logger = logging.getLogger(__name__)

FORMAT = "rn50feat"
SCHEMA = 1
WIDTH = 2048
ATTRIBUTES = ("format", "schema", "store_id", "next_id", "provenance")
TEXT = h5py.string_dtype()

# name -> dtype, shape of one entry, entries per chunk. Chunks of features are
# small, so that a few rows can be read or appended without touching many others.
ROWS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "features": (None, (WIDTH,), 32),
    "paths": (TEXT, (), 1024),
    "ids": (np.int64, (), 2048),
    "size": (np.int64, (), 2048),
    "mtime_ns": (np.int64, (), 2048),
    "digest": (np.uint8, (16,), 1024),
}
LEDGER: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "failures/path": (TEXT, (), 256),
    "failures/reason": (TEXT, (), 256),
    "failures/size": (np.int64, (), 256),
    "failures/mtime_ns": (np.int64, (), 256),
    "failures/attempts": (np.int64, (), 256),
}
RUNS: dict[str, tuple[Any, tuple[int, ...], int]] = {"runs": (TEXT, (), 64)}


@dataclass(frozen=True)
class FailureRecord:
    """A picture that could not be read, with the file's size and time at that attempt."""

    path: str
    reason: str
    size: int
    mtime_ns: int
    attempts: int


def decode_text(value: bytes) -> str:
    """Return a stored string; bytes that are not UTF-8 become surrogate escapes."""
    return value.decode("utf-8", "surrogateescape")


def stored_path(store: Path, location: str) -> str:
    """Return under which path a store holds the picture at an absolute location."""
    folder = os.path.join(store.parent, "")
    return location[len(folder) :] if location.startswith(folder) else location


def is_store(path: Path) -> bool:
    """Tell whether `path` is an HDF5 file of this program's format."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


def committed_length(path: Path) -> int:
    """Return where the HDF5 file at `path` ends, by its own superblock, in bytes."""
    with open(path, "rb") as file:
        head = file.read(36)
        length = int.from_bytes(head[28:36], "little")  # superblock version 2, as `writer` makes it
        if head[8:9] != b"\x02" or length > os.fstat(file.fileno()).st_size:
            raise StoreError(
                f"{path} was rewritten by another program: rn50feat reads it, but writes only its own files"
            )
        return length


class FeatureStore:
    """A store to read from. Every call sees the last commit, also while a run goes on.

    The file is open, and shared with other readers, only during a call; a
    ``with store.reading():`` block makes several calls see the same commit.
    Raises `StoreError` when there is no store at `path` or it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self._file: h5py.File | None = None
        with self.reading() as file:
            attributes = {name: file.attrs.get(name) for name in ATTRIBUTES}
        self.id = str(attributes["store_id"])
        self.provenance = Provenance.from_json(attributes["provenance"])

    @contextmanager
    def reading(self) -> Iterator[h5py.File]:
        """Hold the store open, at one commit."""
        if self._file is not None:
            yield self._file
            return
        with _shared(self.path), _open(self.path) as self._file:
            try:
                yield self._file
            finally:
                self._file = None

    def __len__(self) -> int:
        with self.reading() as file:
            return int(file["ids"].shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the features: float16 or float32."""
        with self.reading() as file:
            dtype: np.dtype[Any] = file["features"].dtype
            return dtype

    def blocks(self, rows: int = 4096) -> Iterator[tuple[int, NDArray[np.floating[Any]]]]:
        """Yield (first row, features of shape (n, 2048)) for all rows, `rows` at a time."""
        with self.reading():
            for start in range(0, len(self), rows):
                yield start, self.block(start, rows)

    def block(self, first: int, rows: int) -> NDArray[np.floating[Any]]:
        """Return the features of at most `rows` rows from `first` on, of shape (n, 2048)."""
        with self.reading() as file:
            return np.asarray(file["features"][first : first + rows])

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Return the features of some rows, of shape (len(rows), 2048), in their order."""
        with self.reading() as file:
            found = np.empty((len(rows), WIDTH), file["features"].dtype)
            for i, row in enumerate(rows):
                found[i] = file["features"][row]
            return found

    def column(self, name: str) -> NDArray[Any]:
        """Return one whole dataset of a number a row: ids, size, mtime_ns or digest."""
        with self.reading() as file:
            return np.asarray(file[name][:])

    def paths(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Return the stored paths of the rows `start` to `stop`."""
        with self.reading() as file:
            return [decode_text(path) for path in file["paths"][start:stop]]

    def path_of(self, row: int) -> str:
        """Return the stored path of one row."""
        with self.reading() as file:
            return decode_text(file["paths"][row])

    def rows_of(self, paths: Sequence[str]) -> list[int | None]:
        """Return the rows of stored paths, None for those that the store lacks."""
        found: dict[str, int] = {}
        wanted = set(paths)
        with self.reading():
            for start in range(0, len(self), 8192):
                block = enumerate(self.paths(start, start + 8192), start)
                found.update((path, row) for row, path in block if path in wanted)
        return [found.get(path) for path in paths]

    def failures(self) -> list[FailureRecord]:
        """Return the ledger of pictures that could not be read."""
        with self.reading() as file:
            columns = [file[name][:] for name in LEDGER]
        return [
            FailureRecord(decode_text(path), decode_text(reason), int(size), int(mtime_ns), int(attempts))
            for path, reason, size, mtime_ns, attempts in zip(*columns)
        ]

    def runs(self) -> list[str]:
        """Return one JSON record for each run, oldest first."""
        with self.reading() as file:
            return [decode_text(run) for run in file["runs"][:]]

    def locate(self, path: str) -> str:
        """Return the absolute location of the picture with a stored path."""
        return os.path.join(self.path.parent, path)


def recover(path: Path, disk: Disk = DISK) -> None:
    """Undo an interrupted commit, if there is one; the caller holds the store alone."""
    try:
        if journal.recover(path, disk):
            logger.warning("%s was interrupted in the middle of a commit: restored as of the commit before", path)
    except OSError as error:
        raise StoreError(
            f"{path} was interrupted in the middle of a commit and cannot be restored here ({error.strerror}):"
            " open it once where it can be written"
        ) from error


@contextmanager
def _shared(path: Path) -> Iterator[None]:
    """Hold a store against commits, after undoing one that was interrupted."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}: name an existing store, or make one with rn50feat extract"
        ) from error
    try:
        while True:
            with lock.held(handle, path, alone=False):
                if not journal.journal_path(path).exists():
                    yield
                    return
            with lock.held(handle, path, alone=True):  # whoever wrote that journal has died
                recover(path)
    finally:
        os.close(handle)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    # locking=False: HDF5's own lock would be a second one on the same file.
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        fault = "is a damaged HDF5 file" if path.is_file() and h5py.is_hdf5(path) else "is no HDF5 file"
        raise StoreError(f"{path} {fault}: name another store") from error
    with file:
        if file.attrs.get("format") != FORMAT:
            raise StoreError(f"{path} is an HDF5 file, but not a store of rn50feat: name another file")
        if file.attrs["schema"] != SCHEMA:
            raise StoreError(f"{path} has schema {file.attrs['schema']}, this version reads {SCHEMA}: upgrade rn50feat")
        yield file
