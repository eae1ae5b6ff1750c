"""Open a store's file for reading: outside of commits, after undoing an interrupted one.

In: the path of a store. Out: an open HDF5 file that has the format of a store.
The file may come from anywhere, so nothing is read before it is known not to
refer to other files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from rn50feat.durable import lock, rollback
from rn50feat.durable.disk import DISK, Disk, advice, close
from rn50feat.errors import DamagedStoreError, StoreBusyError, StoreError, StoreLockedError
from rn50feat.store import layout
from rn50feat.store.damage import LAST_REMEDY, reporting_damage
from rn50feat.store.layout import FORMAT, SCHEMA

logger = logging.getLogger(__name__)

MOVED = "it or its folder was renamed, replaced or removed in the meantime: run again with its current path"
JOURNAL_SECONDS = 5.0  # without locks: a journal that exists for longer does not belong to a running commit


def is_store(path: Path) -> bool:
    """Check whether `path` is an HDF5 file in this program's format."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("format")
            return isinstance(kind, str) and kind == FORMAT
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):  # HDF5 raises any of these on a damaged file
        return False


@contextmanager
def shared(path: Path, disk: Disk = DISK, *, remedy: str = "") -> Iterator[int]:
    """Hold off commits to a store, after undoing an interrupted one; yield the handle that is locked.

    `remedy` is the fix to suggest if the file does not exist. Raises
    `StoreError` if it cannot be opened.
    """
    while True:
        handle = _opened(path, remedy)
        try:
            with lock.shared(handle, path) as locked:
                if not rollback.left(path):
                    if not _at_its_path(handle, path):  # replaced since it was opened: that lock protects nothing
                        continue
                    yield handle
                    return
            if locked:
                _recover(path, disk)  # the process that wrote the journal is dead
            else:
                _recover_unlocked(path, disk)
        finally:
            close(handle)


def _opened(path: Path, remedy: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            remedy = remedy or "name an existing store, or create one with rn50feat extract"
        else:
            remedy = advice(error)
        raise StoreError(f"{path}: {error.strerror}: {remedy}") from error


def _at_its_path(handle: int, path: Path) -> bool:
    """Check whether an open file is still the one at `path`; a missing one is reported when it is opened again."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _recover(path: Path, disk: Disk) -> None:
    """Undo an interrupted commit, if there still is one."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS grants exclusive locks only on writable files
        try:
            with lock.alone(handle, path):
                undone = rollback.recover(path, disk)
        finally:
            close(handle)
    except OSError as error:
        raise StoreError(
            f"{path} was interrupted in the middle of a commit and cannot be restored here ({error.strerror}):"
            " open it once where it is writable"
        ) from error
    if undone:
        logger.warning("%s was interrupted in the middle of a commit: restored the previous commit", path)


def _recover_unlocked(path: Path, disk: Disk) -> None:
    """Undo an interrupted commit where no file lock tells it from a running one.

    A running commit has its run lock if the file system allows; otherwise the
    user has stated that no run is active.
    """
    if lock.held_by_this_thread(path):
        _recover(path, disk)
        return
    deadline = time.monotonic() + lock.PATIENCE
    gone_by = time.monotonic() + JOURNAL_SECONDS
    while rollback.left(path):
        if time.monotonic() > gone_by:
            try:
                with lock.run_lock(path):
                    _recover(path, disk)
                return
            except StoreLockedError:
                if time.monotonic() > deadline:
                    raise StoreBusyError(f"{path} is in the middle of a commit: try again") from None
        time.sleep(0.01)


@contextmanager
def read(path: Path, disk: Disk = DISK, *, remedy: str = "") -> Iterator[h5py.File]:
    """Open the store at `path` for reading, and hold off commits to it; see `shared` and `opened`."""
    while True:
        with shared(path, disk, remedy=remedy) as handle, opened(path) as file:
            if _at_its_path(handle, path):  # else it was replaced before it was opened: commits to it are not held off
                yield file
                return


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open the store at `path`, held by `shared`, for reading; raise `StoreError` if it is not a store or damaged."""
    try:
        # rdcc_nbytes=0: a chunk cache reads the whole 128 kB chunk for one row (100 rows: 4.1 ms, without it 1.4).
        try:
            file = h5py.File(path, "r", locking=False, rdcc_nbytes=0)  # there is a lock already
        except OSError:
            # HDF5 insists on its own lock if this process already has the file open with one, as notebooks do.
            file = h5py.File(path, "r", rdcc_nbytes=0)
    except OSError as error:
        if error.errno:  # not the content's fault: too many open files or a failing disk, for example
            raise StoreError(f"{path} cannot be read ({os.strerror(error.errno)}): {advice(error)}") from error
        if path.is_file() and h5py.is_hdf5(path):
            cut = "truncated" if "truncated file" in str(error) else "damaged"
            raise DamagedStoreError(f"{path} is a {cut} HDF5 file: {LAST_REMEDY}") from error
        raise StoreError(f"{path} is not an HDF5 file: name another store") from error
    try:
        _require_store(file, path)
        yield file
    finally:
        with suppress(OSError, RuntimeError):  # everything has been read
            file.close()


def _require_store(file: h5py.File, path: Path) -> None:
    with reporting_damage(path, LAST_REMEDY):
        kind = layout.attribute(file, "format") if "format" in file.attrs else None
        schema = layout.attribute(file, "schema") if kind == FORMAT else SCHEMA
    if kind != FORMAT:
        raise StoreError(f"{path} is an HDF5 file, but not an rn50feat store: name another file")
    if schema != SCHEMA:
        raise StoreError(f"{path} has schema {schema}, but this version reads {SCHEMA}: upgrade rn50feat")


def additions(path: Path) -> list[str]:
    """Return the names of what other programs have added to a store: datasets and groups, and attributes as @name."""
    with read(path) as file, reporting_damage(path):
        return layout.additions(file)
