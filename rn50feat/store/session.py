"""Write to a store in one session: extraction, merge and import change a store here, and nowhere else.

In: rows, failures and whatever else a command changes. Out: the same in the
store, committed now and then, with the record of the run; and a `Summary`. A
killed run loses what it did since the last commit, and the next one goes on
from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable import lock
from rn50feat.errors import RN50FeatError
from rn50feat.images.provenance import Provenance
from rn50feat.sources.archive import ArchiveRecord
from rn50feat.sources.reference import Reference
from rn50feat.store.compact import rewrite
from rn50feat.store.damage_notes import refusal
from rn50feat.store.paths import stored_path
from rn50feat.store.reader import FeatureStore
from rn50feat.store.schedule import COMMIT_CHANGES, COMMIT_ROWS, COMMIT_SECONDS, Schedule
from rn50feat.store.shrinking import alone, shrink
from rn50feat.store.storable import not_storable, storable, unstorable_row
from rn50feat.store.summary import Machine, Progress, RunRecord, Summary
from rn50feat.store.writer import StoreWriter, create_store, open_store

PORTION = 1000  # rows to remove, or copies to append, at once: memory for their pages


class WriteSession:
    """A command that writes to one store: a context manager that holds the run lock, and undoes the rest on an error.

    ``old`` is the store as it was before, None for a new one or one that is
    replaced; ``summary`` counts what the command does. The writer opens with
    the first change: a command without one leaves no trace, and a new store
    appears with its first commit. All writing is timed as the stage "write".
    An error of this program that ends the session carries the `Summary` of
    what was committed.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        *,
        overwrite: bool = False,
        damaged: str = "keep",
        commit_rows: float = COMMIT_ROWS,
        commit_changes: float = COMMIT_CHANGES,
        commit_seconds: float = COMMIT_SECONDS,
        should_stop: Callable[[], str | None] = lambda: None,
        on_progress: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a session of `command`; `damaged` images get a row and a note (keep), or are failures (skip)."""
        self.path, self.summary = path, Summary()
        self.total: int | None = None  # files or rows to deal with, where that is known
        self.members = 0  # files found in archives, which are not in ``total``
        self._overwrite, self._damaged = overwrite, damaged
        self._should_stop, self._on_progress = should_stop, on_progress
        self._clock, self._begun = clock, clock()
        self._schedule = Schedule(commit_rows, commit_changes, commit_seconds, clock)
        self._record = RunRecord(command)
        self._committed: Summary | None = None  # what of the summary is in the store
        self._provenance: Provenance | None = None
        self._dtype: np.dtype[Any] | None = None
        self._writer: StoreWriter | None = None
        self._copies: list[tuple[Reference, NDArray[np.floating[Any]]]] = []

    def __enter__(self) -> WriteSession:
        """Take the run lock; raise `StoreLockedError` when another run has it, `StoreError` for a file not ours."""
        with ExitStack() as held:
            held.enter_context(lock.run_lock(self.path))
            held.push(self._shrink)
            old = FeatureStore(self.path) if self.path.exists() else None  # a file that is no store is not replaced
            self.old = None if self._overwrite else old
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RN50FeatError):
            error.summary = self._committed or Summary(seconds=self._clock() - self._begun)
        self._held.__exit__(kind, error, trace)
        self.summary.seconds = self._clock() - self._begun

    def _shrink(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep the store's file small, once the writer is closed and everything is done."""
        if kind is None and self.opened and not self.summary.stopped:
            with self.summary.timed("write"):
                tell = partial(self.tell, "rewriting the store")
                self.summary.compacted = shrink(self.path, should_stop=self._should_stop, on_begin=tell)

    # What is written to

    def prepare(
        self,
        provenance: Provenance,
        dtype: np.dtype[Any] | None = None,
        *,
        machine: Machine | None = None,
        **facts: Any,
    ) -> None:
        """Say what the rows are, and what the record says of `machine` and other `facts`.

        A new store is made with `provenance` and `dtype`; until both are known, nothing can be written to it.
        """
        self._provenance, self._dtype = provenance, dtype
        self._record.machine, self._record.facts = machine, facts

    @property
    def prepared(self) -> bool:
        """Whether it is known what kind of store this is, so that changes can be written."""
        return self.old is not None or self._dtype is not None

    @property
    def opened(self) -> bool:
        """Whether anything was written."""
        return self._writer is not None

    def _open(self) -> StoreWriter:
        if self._writer is None:
            if self.old is not None:
                writer = open_store(self.path)
            else:
                assert self._provenance is not None and self._dtype is not None
                writer = create_store(self.path, self._provenance, self._dtype)
            self._writer = self._held.enter_context(writer)
        return self._writer

    # Stop request and progress

    def stop(self) -> str | None:
        """Ask whether to end early; return the reason, None for going on. Once given, a reason stays."""
        self.summary.stopped = self.summary.stopped or self._should_stop()
        return self.summary.stopped

    def tell(self, phase: str = "") -> None:
        """Report how far the command is, and what it is busy with besides the images."""
        if self._on_progress is not None:
            self._on_progress(Progress(self.summary, self.total and self.total + self.members, phase))

    # Changes

    def take(
        self,
        references: Sequence[Reference],
        features: NDArray[np.floating[Any]],
        rows: Sequence[int | None],
        *,
        reject_zeros: bool = False,
    ) -> None:
        """Write features of shape (n, 2048) to `rows`, None for new ones.

        A row whose file has the same bytes as before keeps its id and
        features, and takes the file's time. Features that are not finite in
        the store's dtype are failures, and so are those that are all zero
        with `reject_zeros`.
        """
        with self.summary.timed("write"):
            writer, new = self._open(), []
            finite = storable(features, writer.dtype)
            for i, reference in enumerate(references):
                fault = unstorable_row(reference) or refusal(reference, self._damaged)
                if not fault and not finite[i]:
                    fault = not_storable(features[i], writer.dtype)
                elif not fault and reject_zeros and not features[i].any():
                    fault = "has features that are all zero"
                if fault:
                    writer.fail(reference, fault)
                    self.summary.failed += 1
                elif (row := rows[i]) is not None:
                    self._renew(writer, row, reference, features[i])
                else:
                    new.append(i)
                    self.summary.damaged += bool(reference.damage)
            if new:
                writer.append([references[i] for i in new], features[new])
            self.summary.new += len(new)
        self._count(len(new), len(references) - len(new))

    def _renew(self, writer: StoreWriter, row: int, reference: Reference, features: NDArray[np.floating[Any]]) -> None:
        if writer.features_of_copy(row, reference) is None:
            writer.replace(row, reference, features)
            self.summary.changed += 1
            self.summary.damaged += bool(reference.damage)
        else:
            writer.touch(row, reference)
            writer.clear_failures([stored_path(self.path, reference.location)])
            self.summary.unchanged += 1

    def reuse(self, twin: int, reference: Reference, row: int | None) -> bool:
        """Give a copy the features of the row `twin`; return False where that row has those of other bytes by now.

        `row` is the copy's own, None for a new one.
        """
        with self.summary.timed("write"):
            writer = self._open()
            if (features := writer.features_of_copy(twin, reference)) is None:
                return False
            reference = replace(reference, damage=writer.damage(twin))
            reason = refusal(reference, self._damaged)
            if not reason and row is not None:
                writer.replace(row, reference, features)
        if reason:
            self.fail(reference, reason)
            return True
        self.summary.reused += 1
        self.summary.damaged += bool(reference.damage)
        if row is not None:
            self._count(0, 1)
        else:
            self._copies.append((reference, features))
            if len(self._copies) >= PORTION:
                self._count(self._append_copies(), 0)
        return True

    def _append_copies(self) -> int:
        """Append the copies that wait; return how many."""
        if not self._copies:
            return 0
        references, features = zip(*self._copies)
        self._copies.clear()
        with self.summary.timed("write"):
            self._open().append(references, np.stack(features))
        return len(references)

    def touch(self, row: int, reference: Reference) -> None:
        """Note the new time of a file whose bytes are those of its row."""
        with self.summary.timed("write"):
            self._open().touch(row, reference)
        self._count(0, 1)

    def rename(self, first: int, locations: Sequence[str], mtimes: NDArray[np.int64]) -> None:
        """Give neighbouring rows new locations and times; this never commits by itself."""
        with self.summary.timed("write"):
            self._open().rename(first, locations, mtimes)
        self.summary.reused += len(locations)
        self.summary.moved += len(locations)

    def rename_entries(self, table: str, renamed: Mapping[str, str | None]) -> None:
        """Give entries of a table, failures or archives, other stored paths; None removes an entry."""
        with self.summary.timed("write"):
            self._open().rename_entries(table, renamed)

    def move(self, row: int, reference: Reference) -> bool:
        """Give a row the path and time of the file that its image has moved to; return False where its bytes differ."""
        with self.summary.timed("write"):
            if self._open().features_of_copy(row, reference) is None:
                return False
        self.rename(row, [reference.location], np.array([reference.mtime_ns]))
        self.clear_failures([stored_path(self.path, reference.location)])
        self._count(0, 1)
        return True

    def fail(self, reference: Reference, reason: str, *, attempts: int = 1) -> None:
        """Enter an image in the ledger."""
        with self.summary.timed("write"):
            self._open().fail(reference, reason, attempts=attempts)
        self.summary.failed += 1
        self._count(0, 1)

    def clear_failures(self, paths: Sequence[str]) -> None:
        """Remove stored paths from the ledger."""
        with self.summary.timed("write"):
            self._open().clear_failures(paths)

    def note_archive(self, record: ArchiveRecord) -> None:
        """Note what an archive holds."""
        with self.summary.timed("write"):
            self._open().note_archive(record)

    def repair(self, *, rows: bool = False) -> None:
        """Write the store anew if some small tables are damaged, or `rows` are, before anything in it changes."""
        if self.old is not None and (rows or self.old.wrong_tables()):
            with self.summary.timed("write"):
                rewrite(self.path, self.path, repairing=True, alone=partial(alone, self.path))

    def update_weights_path(self) -> None:
        """Note where the weights are now, if they have moved."""
        old, new = None if self.old is None else self.old.provenance, self._provenance
        if old is not None and new is not None and old.weights_path != new.weights_path:
            with self.summary.timed("write"):
                self._open().update_provenance(new)

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Remove rows, given in ascending order, and commit."""
        for end in range(len(rows), 0, -PORTION):  # from the last row: those before keep their places
            portion = rows[max(0, end - PORTION) : end]
            with self.summary.timed("write"):
                self._open().remove(portion)
            self.summary.removed += len(portion)
            self.commit(ended=True)

    # Commits

    def _count(self, new: int, changed: int) -> None:
        """Count changes, and commit when that is due."""
        if self._schedule.count(new, changed):
            self.commit()

    def commit(self, *, ended: bool = False) -> None:
        """Make durable what was done so far, with the record of the run; wait for readers if it has `ended`."""
        self._append_copies()
        self.summary.seconds = self._clock() - self._begun
        with self.summary.timed("write"):
            writer = self._open()
            writer.record(self._record.as_dict(self.summary, ended=ended))
            writer.commit(last=ended)
        self._committed = replace(self.summary, stages=dict(self.summary.stages))
        self._schedule.restart()
