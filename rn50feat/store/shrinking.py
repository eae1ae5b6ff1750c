"""Rewrite a store whose file has become much larger than its contents.

In: a store after a run, whose lock the caller holds. Out: the same store,
without holes if they were worth it. Nothing here is an error: a store that
cannot be rewritten now stays as it is, and the next run tries again.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from rn50feat.durable import lock
from rn50feat.durable.disk import DISK, Disk, close
from rn50feat.durable.hdf5_storage import link_fault
from rn50feat.durable.waiting import Stopped
from rn50feat.errors import DamagedStoreError, StoreError
from rn50feat.store import layout
from rn50feat.store.compact import rewrite
from rn50feat.store.damage import reporting_damage
from rn50feat.store.opening import read
from rn50feat.store.writer import READER_SECONDS

logger = logging.getLogger(__name__)

WASTE = 1 / 8  # of a file that may be holes: a store is rewritten once for every 1/8 of its size that went to waste
_OURS = {name for table in layout.TABLES for name in table}


def shrink(
    store: Path, *, should_stop: Callable[[], str | None], on_begin: Callable[[], object], disk: Disk = DISK
) -> int:
    """Rewrite `store` if it is wasteful and that harms nobody; return the number of bytes that this freed."""
    try:
        if not (is_wasteful(store) and _may_replace(store)):
            return 0
        on_begin()
        done = rewrite(store, store, disk=disk, should_stop=should_stop, alone=lambda: alone(store))
        return done.before - done.after
    except (StoreError, Stopped, OSError) as error:
        level = logging.WARNING if isinstance(error, DamagedStoreError) else logging.INFO
        logger.log(level, "%s was not rewritten, and keeps its holes: %s", store, error)
        return 0


def _may_replace(store: Path) -> bool:
    """Check whether a new file can take the place of a store: it has no other owner or name, and the disk has room."""
    status = os.stat(store)
    ours = status.st_nlink == 1 and os.geteuid() in (0, status.st_uid)
    return ours and shutil.disk_usage(store.parent).free > status.st_size


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Keep readers out: on NFS, a file that is replaced can no longer be read elsewhere."""
    handle = os.open(store, os.O_RDWR | os.O_CLOEXEC)
    try:
        with lock.alone(handle, store, patience=READER_SECONDS):
            yield
    finally:
        close(handle)


def is_wasteful(store: Path) -> bool:
    """Check whether more than `WASTE` of a store's file is holes, without reading much of it.

    False for one with datasets or links of other programs: a copy might not
    be what they expect.
    """
    with read(store) as file, reporting_damage(store):
        least = (1 - WASTE) * os.path.getsize(store)
        return _chunks(layout.dataset(file, "features")) < least and _space(file) < least  # the first one is cheap


def _space(group: h5py.Group, prefix: str = "") -> float:
    """Estimate how many bytes a group and its members take in their file; infinity if some are not ours."""
    held = float(_overhead(group))
    for name in group:
        if link_fault(group, name) is not None:
            return math.inf
        member = group[name]
        if isinstance(member, h5py.Group):
            held += _space(member, f"{prefix}{name}/")
        elif f"{prefix}{name}" in _OURS:
            held += _overhead(member) + _chunks(member) + _texts(member)
        else:
            return math.inf
    return held


def _overhead(item: h5py.Group | h5py.Dataset) -> int:
    """Return the bytes of an item's headers and indexes."""
    info = h5py.h5o.get_info(item.id)
    meta = (info.meta_size.obj, info.meta_size.attr)
    return int(info.hdr.space.total) + sum(int(part.index_size + part.heap_size) for part in meta)


def _chunks(dataset: h5py.Dataset) -> float:
    """Return the bytes of a dataset's chunks, infinity for one without; asking HDF5 takes 0.1 s for a million rows."""
    if not dataset.chunks:
        return math.inf
    count = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks))
    return float(count * math.prod(dataset.chunks) * dataset.dtype.itemsize)


def _texts(dataset: h5py.Dataset, samples: int = 16, each: int = 64) -> int:
    """Estimate from some of its texts how many bytes a dataset's texts take in HDF5's heaps."""
    count = len(dataset)
    if not count or not h5py.check_string_dtype(dataset.dtype):
        return 0
    starts = range(0, count, max(each, count // samples))
    sizes = [-(-len(text) // 8) * 8 + 16 for start in starts for text in dataset[start : start + each]]
    return int(sum(sizes) / len(sizes) * count)
