"""Rewrite a store without the holes that years of changes leave in its file.

Once a file is closed, HDF5 never reuses the space of removed rows and replaced
paths. A copy has the same rows, ids and history, and nothing else. It also
serves as a backup, because it is consistent even while a run is in progress.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from rn50feat.durable import journal, lock
from rn50feat.durable.disk import DISK, Disk
from rn50feat.durable.hdf5_storage import link_fault, storage_fault
from rn50feat.errors import DamagedStoreError, StoreError
from rn50feat.store import layout
from rn50feat.store.checksums import Record
from rn50feat.store.damage import LAST_REMEDY, reporting_damage
from rn50feat.store.guards import disk_errors
from rn50feat.store.opening import opened, shared
from rn50feat.store.reader import FeatureStore, locate_output, locate_store
from rn50feat.store.salvage import salvage
from rn50feat.store.writer import VERSION

WASTE = 1 / 8  # of a file that may be holes: a run that leaves more compacts its store
_SAMPLE = 1000  # paths that the average length is estimated from


@dataclass(frozen=True)
class Compacted:
    """A rewritten store: its path, its size before and after in bytes, and its number of rows.

    A copy of a damaged store lacks ``lost_rows``; ``lost`` names the first of
    them, by path or number, and everything else that it lacks.
    """

    path: Path
    before: int
    after: int
    rows: int
    lost_rows: int = 0
    lost: tuple[str, ...] = ()


def compact(
    store: str | os.PathLike[str],
    to: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    disk: Disk = DISK,
) -> Compacted:
    """Rewrite `store` in place, or copy it `to` another file; `overwrite` allows that file to exist.

    Rewriting in place temporarily needs space for a second copy, and no run
    may be in progress. A copy needs neither, and holds the last commit; that
    of a damaged store holds what can be read. Raises `DamagedStoreError` for
    one to rewrite in place, or of which nothing can be saved, and
    `StoreLockedError` while a run is in progress.
    """
    source = locate_store(store)
    target = source if to is None else locate_output(to)
    FeatureStore(source)  # raises if there is no store
    if to is not None and target == source:
        raise StoreError(f"{to} is the store itself: leave out --to to compact it, or name another file")
    if target != source and target.exists() and not overwrite:
        raise StoreError(f"{to} exists: name another file, or use --overwrite")
    with lock.run_lock(target):
        try:
            return rewrite(source, target, disk=disk)
        except DamagedStoreError:
            if target == source:
                raise
        return rewrite(source, target, disk=disk, salvaging=True)


def rewrite(source: Path, target: Path, *, disk: Disk = DISK, salvaging: bool = False) -> Compacted:
    """Rewrite `source` as `target`, whose run lock the caller holds; leave out what is damaged if `salvaging`."""
    with shared(source, disk), opened(source) as old, _created(target, disk) as (new, journaled):
        before = os.path.getsize(source)
        lost_rows, lost = 0, list[str]()
        with reporting_damage(source, LAST_REMEDY if salvaging else ""):
            if salvaging:
                lost_rows, lost = salvage(old, new)
            else:
                _copy(old, new)
            rows = int(layout.dataset(new, "ids").shape[0])
        new.flush()
        _keep_access(source, journaled.handle)
        with disk_errors(target):
            if journaled.error is not None:
                raise journaled.error
            journaled.commit()
    return Compacted(target, before, os.path.getsize(target), rows, lost_rows, tuple(lost))


def _copy(old: h5py.File, new: h5py.File) -> None:
    """Copy everything, including what other programs have added."""
    layout.check(old)
    Record(old)  # raises if the checksums cannot be read
    for name, value in old.attrs.items():
        new.attrs[name] = value
    for name in old:
        if _is_plain(old, name):
            old.copy(name, new)


def _keep_access(source: Path, handle: int) -> None:
    """Give a copy the mode of `source`, and its owner where this process may."""
    status = os.stat(source)
    with suppress(OSError):
        os.fchown(handle, status.st_uid, status.st_gid)
    with suppress(OSError):
        os.fchmod(handle, status.st_mode & 0o777)


@contextmanager
def _created(path: Path, disk: Disk) -> Iterator[tuple[h5py.File, journal.JournaledFile]]:
    """Open a new file that replaces `path` when it is committed, and vanishes otherwise."""
    with disk_errors(path):
        journaled = journal.JournaledFile(path, create=True, disk=disk)
    file = h5py.File(journaled, "w", libver=VERSION)
    try:
        yield file, journaled
    finally:
        journaled.abandon()
        file.close()
        journaled.close()


def _is_plain(group: h5py.Group, name: str) -> bool:
    """Check whether a group's member is stored in this file entirely; nothing else is copied."""
    if link_fault(group, name) is not None:
        return False
    member = group[name]
    if isinstance(member, h5py.Group):
        return all(_is_plain(member, inner) for inner in member)
    return not isinstance(member, h5py.Dataset) or storage_fault(member) is None


def is_wasteful(path: Path) -> bool:
    """Check whether more than `WASTE` of a store's file is holes, estimated from some of its paths."""
    with shared(path), opened(path) as file, reporting_damage(path):
        held = sum(_space(layout.dataset(file, name)) for table in layout.TABLES for name in table if name in file)
        size = os.path.getsize(path)
    return size - held > WASTE * size


def _space(dataset: h5py.Dataset) -> int:
    """Estimate how many bytes a dataset takes in its file, including its texts."""
    texts = 0
    if h5py.check_string_dtype(dataset.dtype) and len(dataset):
        step = max(1, len(dataset) // _SAMPLE)
        lengths = [-(-len(text) // 8) * 8 + 16 for text in dataset[::step]]  # as HDF5's heaps hold them
        texts = int(np.mean(lengths) * len(dataset))
    return int(dataset.id.get_storage_size()) + texts
