"""Take rows into a store that were computed elsewhere, for `merge` and `importing`.

In: blocks of references and features. Out: rows of a store, its ledger and
the record of the run, committed now and then, so that a kill costs seconds
and the next run goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import RN50FeatError, StoreError
from rn50feat.extraction.summary import Progress, Summary, record
from rn50feat.images.provenance import Provenance
from rn50feat.sources.sources import Reference
from rn50feat.store.reader import FeatureStore
from rn50feat.store.storable import not_storable, storable, unstorable_row
from rn50feat.store.writer import StoreWriter, create_store, open_store

COMMIT_ROWS = 10_000  # new rows; each takes the disk's place beyond the committed end
COMMIT_CHANGES = 1000  # changed rows: their pages are held in memory until the commit
COMMIT_SECONDS = 20.0


class Intake:
    """A store that takes rows: a context manager that commits them, or undoes the last ones on an error.

    The caller holds the run lock of `path`. The store appears, or changes,
    with the first row or failure.
    """

    def __init__(
        self,
        path: Path,
        provenance: Provenance,
        dtype: np.dtype[Any],
        total: int,
        should_stop: Callable[[], str | None],
        on_progress: Callable[[Progress], None] | None,
        **facts: Any,
    ) -> None:
        """Begin a run over `total` rows; `facts` go into its record."""
        self.path, self.summary = path, Summary()
        self._committed: Summary | None = None  # what of it is in the store
        self._provenance, self._dtype, self._total, self._facts = provenance, dtype, total, facts
        self._should_stop, self._on_progress = should_stop, on_progress
        self._started, self._clock = datetime.now(timezone.utc), time.monotonic()
        self._last_commit, self._added, self._changed = self._clock, 0, 0
        self._writer: StoreWriter | None = None

    def _open(self) -> StoreWriter:
        if self._writer is None and self.path.exists():
            self._writer = open_store(self.path)
        elif self._writer is None:
            self._writer = create_store(self.path, self._provenance, self._dtype)
        return self._writer

    def take(
        self, references: Sequence[Reference], features: NDArray[np.floating[Any]], rows: NDArray[np.int64]
    ) -> None:
        """Write features of shape (n, 2048) to `rows`, -1 for new ones.

        A row whose file has the very bytes that it had keeps its id and
        features, and takes the file's time. Rows that are all zero, or not
        finite in the store's dtype, are failures.
        """
        writer = self._open()
        faults = [unstorable_row(reference) for reference in references]
        good = storable(features, self._dtype) & features.any(axis=1)
        good &= np.array([fault is None for fault in faults], bool)
        new = [i for i, reference in enumerate(references) if good[i] and rows[i] < 0]
        if new:
            writer.append([references[i] for i in new], features[new])
        for i, reference in enumerate(references):
            if (fault := faults[i]) is not None:
                writer.fail(reference, fault)
            elif not good[i]:
                zero = "has features that are all zero"
                writer.fail(reference, not_storable(features[i], self._dtype) if features[i].any() else zero)
            elif rows[i] >= 0:
                self._renew(int(rows[i]), reference, features[i])
        self.summary.new += len(new)
        self.summary.failed += int((~good).sum())
        self._count(len(references), len(references) - len(new))

    def _renew(self, row: int, reference: Reference, features: NDArray[np.floating[Any]]) -> None:
        if self._open().features_of_copy(row, reference) is not None:
            self._open().touch(row, reference)
            self.summary.unchanged += 1
        else:
            self._open().replace(row, reference, features)
            self.summary.changed += 1

    def fail(self, reference: Reference, reason: str, attempts: int) -> None:
        """Enter a picture in the ledger that could not be read elsewhere."""
        self._open().fail(reference, reason, attempts=attempts)
        self.summary.failed += 1
        self._count(1, 1)

    def leave(self, count: int) -> None:
        """Count rows that stand as they are."""
        self.summary.unchanged += count
        self._tell()

    def stopped(self) -> bool:
        """Tell whether the run is to end here, at a commit."""
        self.summary.stopped = self.summary.stopped or self._should_stop()
        return self.summary.stopped is not None

    def _count(self, rows: int, changed: int) -> None:
        self._added, self._changed = self._added + rows, self._changed + changed
        due = time.monotonic() - self._last_commit > COMMIT_SECONDS
        if due or self._added >= COMMIT_ROWS or self._changed >= COMMIT_CHANGES:
            self.commit(ended=False)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(self.summary, self._total))

    def commit(self, *, ended: bool = False) -> None:
        """Make durable what was taken so far, with the record of the run, and wait for that if it has `ended`."""
        self.summary.seconds = time.monotonic() - self._clock
        writer = self._open()
        writer.record(record(self.summary, self._started, None, ended=ended, **self._facts))
        writer.commit(last=ended)
        self._committed = replace(self.summary)
        self._last_commit, self._added, self._changed = time.monotonic(), 0, 0

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RN50FeatError):
            error.summary = self._committed
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)


def settle_dtype(out: FeatureStore | None, asked: str | None, offered: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype of a store that is to take rows; `offered` are the dtypes of their files, by name.

    That is `out`'s, else what is `asked` for, else float16 where nothing
    wider is offered. Raises `StoreError` where digits would be lost unasked,
    or `out` has not what is asked for.
    """
    wide = next((name for name, dtype in offered.items() if dtype.itemsize > 2), None)
    if out is None:
        return np.dtype(asked or ("float16" if wide is None else "float32"))
    if asked is not None and out.dtype != asked:
        raise StoreError(f"{out.path} holds {out.dtype}, you asked for {asked}: use another file")
    if asked is None and wide is not None and out.dtype == np.float16:
        raise StoreError(
            f"{wide} holds {offered[wide]}, {out.path} float16: give --dtype float16 to round, or use another file"
        )
    return out.dtype
