"""Merge stores of one provenance, such as those of shards or of several machines.

Takes stores, and the path of one that receives their rows. That store gets a
row for every image in any of them. Memory holds about 80 bytes per row and a
block of features. A merge only adds and updates rows: run again, it costs only
what is new, and a killed one goes on from its last commit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import StoreError
from rn50feat.extraction.catalogue import Catalogue, path_key
from rn50feat.images.provenance import Provenance
from rn50feat.sources.reference import Reference
from rn50feat.store.opening import additions
from rn50feat.store.paths import stored_path
from rn50feat.store.reader import FeatureStore, locate_output, locate_store
from rn50feat.store.session import WriteSession
from rn50feat.store.snapshot import Snapshot
from rn50feat.store.storable import settle_dtype
from rn50feat.store.summary import Progress, Summary

logger = logging.getLogger(__name__)

LEAVE, NEW = -2, -1  # what happens to a row that does not replace another


@dataclass(frozen=True)
class _Part:
    """A store to merge: its rows, keys of their paths relative to the new store, and their files' times."""

    snapshot: Snapshot
    keys: NDArray[np.uint64]  # (N, 2)
    mtimes: NDArray[np.int64]


def merge(
    stores: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Merge the rows of `stores` into the store `out`, which is created or added to.

    An image, by its location, that is in several stores gets one row: that of
    the newest file by modification time, and among equal ones that of `out`,
    then of the first named. Failures are taken too, unless a store has a row at
    least as new. `dtype`, float16 or float32, is that of `out` by default, else
    of the widest of `stores`; float32 is rounded to float16 only if asked for.
    Raises `ProvenanceError` for stores of different provenance and `StoreError`
    for those that cannot be read or written, or whose rows move meanwhile; what
    was committed by then stays. What other programs have added to `stores` is
    not taken, with a warning.
    """
    path = locate_output(out)
    parts = [FeatureStore(store) for store in stores]
    if not parts:
        raise StoreError(f"there is nothing to merge into {path}: name at least one store")
    if any(part.path == path for part in parts):
        raise StoreError(f"{path} is among the stores to merge into it: leave it out, it keeps its rows")
    with WriteSession(path, "merge", should_stop=should_stop, on_progress=on_progress) as session:
        session.repair()
        old = [] if session.old is None else [session.old]
        provenance = _common([*old, *parts])
        width = settle_dtype(session.old, dtype, {str(part.path): part.dtype for part in parts})
        session.prepare(provenance, width, merged=[str(part.path) for part in parts], precision=_precision(parts))
        known = [_part(store, path) for store in (*old, *parts)]
        targets = _targets(known, len(known[0].mtimes) if old else 0)[len(old) :]
        session.total = sum(map(len, targets))
        for part, target in zip(known[len(old) :], targets):
            _take_rows(session, part.snapshot, target)
        session.commit()
        _take_ledgers(session, parts)
        session.commit(ended=True)
    if left := left_out(part.path for part in parts):
        logger.warning("not merged, since other programs have added it: %s", ", ".join(left))
    return session.summary


def left_out(stores: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List what other programs have added to `stores`, which a merge leaves out, each name after its store's."""
    return [f"{path}: {name}" for path in map(locate_store, stores) for name in additions(path)]


def _common(stores: Sequence[FeatureStore]) -> Provenance:
    """Return the stores' common provenance, with the weights' SHA-256 if any store knows it."""
    chosen = next((store for store in stores if store.provenance.weights_sha256), stores[0])
    for store in stores:
        remedy = "merge only stores of one provenance"
        chosen.provenance.require_same(store.provenance, where=chosen.path, there=store.path, remedy=remedy)
    return chosen.provenance


def _precision(stores: Iterable[FeatureStore]) -> str | None:
    """Collect the precisions that the rows were computed in, such as fp32; None if nothing was computed."""
    found = {run["precision"] for store in stores for run in store.runs()} - {None}
    return ", ".join(sorted(found)) or None


def _part(store: FeatureStore, out: Path) -> _Part:
    with store.reading():
        snapshot = Snapshot(store)
        keys = bytearray()
        for first in range(0, len(snapshot), 8192):
            for path in store.paths(first, first + 8192):
                keys += path_key(stored_path(out, store.locate(path)))
        return _Part(snapshot, np.frombuffer(keys, np.uint64).reshape(-1, 2), store.column("mtime_ns"))


def _targets(parts: Sequence[_Part], old: int) -> list[NDArray[np.int64]]:
    """Choose for each row of each part the row of the new store that it replaces, or `LEAVE` or `NEW`.

    The first `old` rows are the new store's own.
    """
    keys, mtimes = np.concatenate([part.keys for part in parts]), np.concatenate([part.mtimes for part in parts])
    order = np.lexsort((-mtimes, keys[:, 0], keys[:, 1]))  # stable: among equal ones the first named comes first
    starts = np.r_[True, (np.diff(keys[order], axis=0) != 0).any(axis=1)][: len(order)]
    group = np.cumsum(starts) - 1
    own = np.full(group[-1] + 1 if len(group) else 0, NEW)
    mine = order < old
    own[group[mine]] = order[mine]
    winners = order[starts]
    targets = np.where(winners < old, LEAVE, own)
    found = np.full(len(order), LEAVE)
    found[winners] = targets
    return np.split(found, np.cumsum([len(part.mtimes) for part in parts])[:-1])


def _take_rows(session: WriteSession, snapshot: Snapshot, target: NDArray[np.int64]) -> None:
    wanted = target != LEAVE
    rows = iter(target[wanted].tolist())
    for block in snapshot.blocks(wanted):
        if session.stop():
            return
        own = [None if row == NEW else row for row in islice(rows, len(block.ids))]
        session.take(block.references, block.features, own, reject_zeros=True)
        session.tell()
    session.summary.unchanged += int((~wanted).sum())
    session.tell()


def _take_ledgers(session: WriteSession, stores: Iterable[FeatureStore]) -> None:
    """Add the failures that are newer than the row of their image, if there is one, and not in the ledger yet."""
    failures = [(store, failure) for store in stores for failure in store.failures()]
    if not failures or session.stop():
        return
    catalogue = Catalogue(FeatureStore(session.path))
    for store, failure in failures:
        reference = Reference(store.locate(failure.path), failure.size, failure.mtime_ns)
        path = stored_path(session.path, reference.location)
        known = catalogue.failures.get(path)
        told = known is not None and known.mtime_ns >= failure.mtime_ns
        if not told and not catalogue.as_new(catalogue.row(path), failure.mtime_ns):
            session.fail(reference, failure.reason, attempts=failure.attempts)
            session.tell()
            catalogue.failures[path] = failure
