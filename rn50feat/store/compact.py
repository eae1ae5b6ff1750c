"""Rewrite a store without the holes that years of changes leave in its file.

Once a file is closed, HDF5 never reuses the space of removed rows and replaced
paths. A copy has the same rows, ids and history, and nothing else. It also
serves as a backup, because it is consistent even while a run is in progress.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py

from rn50feat.durable import journal, lock
from rn50feat.durable.disk import DISK, Disk
from rn50feat.durable.hdf5_storage import link_fault, storage_fault
from rn50feat.durable.waiting import Stopped
from rn50feat.errors import DamagedStoreError, StoreError
from rn50feat.store import layout
from rn50feat.store.checksums import BLOCK, Record
from rn50feat.store.damage import LAST_REMEDY, reporting_damage
from rn50feat.store.guards import disk_errors, uninterrupted
from rn50feat.store.opening import read
from rn50feat.store.reader import FeatureStore, locate_output, locate_store
from rn50feat.store.repair import copy_damaged_tables
from rn50feat.store.salvage import salvage
from rn50feat.store.writer import VERSION

_ACL = "system.posix_acl_access"


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
    """Rewrite `store` in place, or copy it `to` another file; `overwrite` allows that file to be a store.

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
    if target != source and target.exists():
        with suppress(DamagedStoreError):
            FeatureStore(target)  # raises if it is no store: an image named by mistake must not be replaced
    with lock.run_lock(target):
        try:
            return rewrite(source, target, disk=disk)
        except DamagedStoreError:
            if target == source:
                raise
        return rewrite(source, target, disk=disk, salvaging=True)


def rewrite(
    source: Path,
    target: Path,
    *,
    disk: Disk = DISK,
    salvaging: bool = False,
    repairing: bool = False,
    should_stop: Callable[[], str | None] = lambda: None,
    alone: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Compacted:
    """Rewrite `source` as `target`, whose run lock the caller holds; leave out what is damaged if `salvaging`.

    `repairing` leaves out only what cannot be understood of small tables. Damaged rows can then be replaced safely:
    HDF5 frees the space of what it replaces, and damage may have pointed that at the space of something else.
    `alone` is held while `target` is replaced. Raises `Stopped` once
    `should_stop` gives a reason.
    """
    with _created(target, disk) as (new, journaled):
        lost_rows, lost = 0, list[str]()
        with read(source, disk) as old, reporting_damage(source, LAST_REMEDY if salvaging else ""):
            before = os.path.getsize(source)
            if salvaging:
                lost_rows, lost = salvage(old, new)
            damaged = Record(old).wrong_tables() if repairing else []
            for copy in () if salvaging else _copies(old, new, damaged):
                with uninterrupted():
                    copy()
                if journaled.error is not None:  # all that follows would be held in memory
                    break
                if reason := should_stop():
                    raise Stopped(reason)
            new.flush()
        _keep_access(source, journaled.handle)
        with disk_errors(target), uninterrupted():
            if journaled.error is not None:
                raise journaled.error
            with alone():
                journaled.commit()
        rows = int(new["ids"].shape[0])
    return Compacted(target, before, os.path.getsize(target), rows, lost_rows, tuple(lost))


def _copies(old: h5py.File, new: h5py.File, damaged: Sequence[str]) -> Iterator[Callable[[], object]]:
    """Yield the steps of copying everything, including what other programs have added, and repair `damaged` tables."""
    layout.check(old)
    layout.check_chunks(old)
    Record(old)  # raises if the checksums cannot be read
    yield lambda: new.attrs.update(old.attrs)
    for name in old:
        if name not in ("features", *damaged) and _is_plain(old, name):
            yield partial(old.copy, name, new)
    features = old["features"]  # nearly all of a store
    yield lambda: new.create_dataset_like("features", features).attrs.update(features.attrs)
    for first in range(0, features.shape[0], BLOCK):
        yield partial(_copy_rows, features, new["features"], slice(first, first + BLOCK))
    if damaged:
        yield lambda: copy_damaged_tables(old, new, damaged)


def _copy_rows(old: h5py.Dataset, new: h5py.Dataset, rows: slice) -> None:
    new[rows] = old[rows]


def _keep_access(source: Path, handle: int) -> None:
    """Give a copy the mode and the access control list of `source`, and its owner where this process may."""
    status = os.stat(source)
    with suppress(OSError):
        os.fchown(handle, status.st_uid, status.st_gid)
    with suppress(OSError):
        os.fchmod(handle, status.st_mode & 0o777)
    if sys.platform == "linux":
        with suppress(OSError):  # mostly there is none
            os.setxattr(handle, _ACL, os.getxattr(source, _ACL))


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
