"""One run over one store: what it agreed to, what it counts, and when it commits.

In: references, and what an engine makes of them. Out: rows, failures and the
record of the run in the store, and a `Summary`. Needs no torch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.engines.contract import Batch, Engine, Failure
from rn50feat.errors import RN50FeatError, SourceError
from rn50feat.extraction import prune
from rn50feat.extraction.attempts import Attempts
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.nothing import nothing_found
from rn50feat.extraction.plan import Step, Verdict, plan
from rn50feat.extraction.summary import Progress, Summary, record
from rn50feat.model.compatibility import agree, require
from rn50feat.model.weights import Choices
from rn50feat.sources import archives, sources
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.selection import Selection
from rn50feat.sources.sources import Reference
from rn50feat.store.marks import refusal
from rn50feat.store.reader import FeatureStore, stored_path
from rn50feat.store.storable import not_storable, storable, unstorable_row
from rn50feat.store.writer import StoreWriter, create_store, open_store

logger = logging.getLogger(__name__)

COUNT_SECONDS = 10.0  # for counting what a run leaves undone
PORTION = 1000  # rows that are pruned, or copies that are written, at once: memory for their pages


class Run:
    """One run over one store: what it agreed to, what it counted, and its writer once there is something to write."""

    def __init__(
        self,
        path: Path,
        selection: Selection,
        overwrite: bool,
        stop: Callable[[], str | None],
        commit_rows: float,
        commit_seconds: float,
        on_excluded: Callable[[Excluded], None] = lambda excluded: None,
        damaged: str = "keep",
    ) -> None:
        self.path, self._selection, self.summary = path, selection, Summary()
        self._on_excluded, self._damaged = on_excluded, damaged
        self._committed: Summary | None = None  # what of it is in the store
        self._started, self._clock = datetime.now(timezone.utc), time.monotonic()
        old = FeatureStore(path) if path.exists() else None  # raises for a file that is not ours to overwrite
        self._old = None if overwrite else old
        self._catalogue = Catalogue(self._old, selection)
        self._met = np.zeros(len(self._catalogue), bool)
        self._stop, self._commit_rows, self._commit_seconds = stop, commit_rows, commit_seconds
        self._writer: StoreWriter | None = None
        self._engine: Engine | None = None
        self._handed = 0  # pictures given to the engine and not yet back
        self._copies: list[tuple[Reference, NDArray[np.floating[Any]]]] = []
        self._missing: list[Failure] = []
        self._archives: list[Step] = []  # listed, or not to be read, since the last commit
        self._known: set[str] = set()  # archives that have not changed
        self._members = 0  # of archives: they are more files than were counted
        self._uncommitted, self._last_commit = 0, time.monotonic()
        self._on_progress: Callable[[Progress], None] = lambda progress: None
        self._total: int | None = None

    def agree(self, choices: Choices, dtype: str | None) -> None:
        """Settle the weights, provenance and dtype, and refuse what differs from the store's."""
        self._dtype = dtype
        self.weights, self.provenance = agree(self._old, choices, dtype)

    def _open(self) -> StoreWriter:
        if self._writer is None and self._old is not None:
            self._writer = open_store(self.path)
        elif self._writer is None:
            exact = self._engine is None or self._engine.precision == "fp32"
            dtype = np.dtype(self._dtype or ("float32" if exact else "float16"))
            self._writer = create_store(self.path, self.provenance, dtype)
        return self._writer

    def todo(self, found: Iterator[Reference | Excluded], attempts: Attempts) -> Iterator[Reference]:
        """Yield the pictures that the network must see; deal with all other files on the way."""
        steps = plan(found, self.path, self._catalogue, again=attempts.another, rule=self._selection.rule)
        while not self.stop():
            with self.summary.timed("find"):
                step = next(steps, None)
            if step is None:
                return
            if step.row is not None:
                self._met[step.row] = True
            if step.verdict is Verdict.COMPUTE or not self._take(step):
                self._handed += 1
                yield step.reference
            self.tell()

    def stop(self) -> str | None:
        """Return why the run is to end early, None while it is not."""
        self.summary.stopped = self.summary.stopped or self._stop()
        return self.summary.stopped

    def _take(self, step: Step) -> bool:
        """Do what needs no network; return False for a copy whose original was replaced in this very run."""
        if step.verdict is Verdict.COPY:
            return self._copy(step)
        if step.verdict is Verdict.MISSING:
            self._miss(Failure(step.reference, sources.obstacle(step.reference.location), "access"))
        elif step.verdict is Verdict.UNSTORABLE:
            self._miss(Failure(step.reference, step.fault))
        elif step.verdict is Verdict.PACKED:
            logger.warning("%s %s", step.reference.location, archives.COMPRESSED)
            self._miss(Failure(step.reference, archives.COMPRESSED))
        elif step.verdict is Verdict.EXCLUDED:
            self._on_excluded(Excluded(step.reference.location, step.pattern))
        elif archives.is_archive(step.reference.location):
            self._take_archive(step)
        if step.verdict is Verdict.TOUCHED and step.row is not None:
            self._open().touch(step.row, step.reference)
            self._count(1)
        path = stored_path(self.path, step.reference.location)
        settled = (Verdict.UNCHANGED, Verdict.TOUCHED, Verdict.APPLEDOUBLE)
        if step.verdict in settled and path in self._catalogue.failures:
            # It was broken for a while and is whole again, or never was an image.
            self._open().clear_failures([path])
        self.summary.count(step)
        return True

    def _take_archive(self, step: Step) -> None:
        """Count an archive that is known; keep what is new of another for the next commit."""
        if (known := step.known) is not None:
            self._known.add(stored_path(self.path, step.reference.location))
            self._met[known.rows] = True
            self._members += len(known.rows) + known.failed + known.others - 1
        elif step.verdict is Verdict.OPENED:
            self._members += step.members - 1
            if step.doubt:
                logger.warning("%s %s", step.reference.location, step.doubt)
        elif step.verdict in (Verdict.LISTED, Verdict.UNREADABLE):
            self._archives.append(step)

    def _write_archives(self) -> None:
        """Write what became known of archives: before the rows of its members, since those are counted again."""
        for step in self._archives:
            if step.record is not None:
                self._open().note_archive(step.record)
            if step.fault:
                logger.warning("%s %s", step.reference.location, step.fault)
                self._fail(Failure(step.reference, step.fault, "content" if step.record else "access"))
            elif (path := stored_path(self.path, step.reference.location)) in self._catalogue.failures:
                self._open().clear_failures([path])
        self._archives.clear()

    def _copy(self, step: Step) -> bool:
        assert step.twin is not None
        features = self._open().features_of_copy(step.twin, step.reference)
        if features is None:
            return False
        reference = replace(step.reference, damage=self._open().damage(step.twin))
        if reason := refusal(reference, self._damaged):
            self._fail(Failure(reference, reason))
            return True
        self.summary.damaged += bool(reference.damage)
        if step.row is not None:
            self._open().replace(step.row, reference, features)
            self._count(1)
        else:
            self._copies.append((reference, features))
        if len(self._copies) >= PORTION:
            self._write_copies()
        self.summary.reused += 1
        return True

    def _write_copies(self) -> None:
        if self._copies:
            references, features = zip(*self._copies)
            self._copies.clear()
            self._open().append(references, np.stack(features))
            self._count(len(references))

    def _miss(self, failure: Failure) -> None:
        """Keep a file that no engine will see for the ledger, until it is known what kind of store that is in."""
        self._missing.append(failure)
        if len(self._missing) >= PORTION and (self._old or self._engine):
            self._write_missing()

    def _write_missing(self) -> None:
        for failure in self._missing:
            self._fail(failure)
        self._count(len(self._missing))
        self._missing.clear()

    def compute(self, engine: Engine, references: Iterable[Reference]) -> None:
        """Send references through `engine`, and write what comes back."""
        self._engine = engine
        self.provenance = replace(self.provenance, weights_sha256=engine.weights_sha256)
        require(self._old, self.provenance)
        for batch in engine.embed(references):
            with self.summary.timed("write"):
                self._write(batch)
            self.tell()
            if self.stop():
                break
        self.summary.stages.update(engine.seconds)

    def _write(self, batch: Batch) -> None:
        """Write what the engine gives: new rows, changed rows and failures."""
        writer, new = self._open(), []
        good = storable(batch.features, writer.dtype)
        for i, (reference, features) in enumerate(zip(batch.references, batch.features)):
            fault = unstorable_row(reference) or refusal(reference, self._damaged)
            if fault or not good[i]:
                self._fail(Failure(reference, fault or not_storable(features, writer.dtype)))
                continue
            if (row := self._catalogue.row(stored_path(self.path, reference.location))) is None:
                new.append(i)
            else:
                writer.replace(row, reference, features)
                self.summary.changed += 1
            self.summary.damaged += bool(reference.damage)
        if new:
            writer.append([batch.references[i] for i in new], batch.features[new])
            self.summary.new += len(new)
        for failure in batch.failures:
            self._fail(failure)
        size = len(batch.references) + len(batch.failures)
        self._handed -= size
        self._count(size)

    def _fail(self, failure: Failure) -> None:
        reference = failure.reference
        if failure.cause == "vanished":
            self.summary.vanished += 1
            return
        if failure.cause == "access":  # a size that no file has: the next run tries it again
            reference = replace(reference, size=-1, mtime_ns=-1)
        self._open().fail(reference, failure.reason)
        self.summary.failed += 1

    def _count(self, changes: int) -> None:
        """Count rows and entries that were written, and commit them when that is due."""
        self._uncommitted += changes
        due = time.monotonic() - self._last_commit > self._commit_seconds
        if due or self._uncommitted >= self._commit_rows:
            self._commit(ended=False)

    def _commit(self, *, ended: bool) -> None:
        """Commit with the record of the run; what is not to be lost when the run has `ended`."""
        self.summary.seconds = time.monotonic() - self._clock
        self._write_archives()
        self._open().record(record(self.summary, self._started, self._engine, ended=ended))
        self._open().commit(last=ended)
        self._committed = replace(self.summary, stages=dict(self.summary.stages))
        self._uncommitted, self._last_commit = 0, time.monotonic()

    def count_left(self, rest: Iterator[Reference | Excluded], attempts: Attempts) -> None:
        """Count what a run that ran out of time leaves undone: what the engine had in hand, and the rest.

        Not counted to the end where that takes longer than `COUNT_SECONDS`.
        """
        rule = self._selection.rule
        steps = plan(rest, self.path, self._catalogue, again=attempts.another, hashing=False, rule=rule)
        left, stop = self._handed, time.monotonic() + COUNT_SECONDS
        for step in steps:
            left += step.verdict is Verdict.COMPUTE
            if time.monotonic() > stop:
                return
        self.summary.left = left
        if self._writer is not None:
            self._commit(ended=True)

    def finish(self) -> None:
        """Write what is left, and the record of the run."""
        self._write_copies()
        old = self._old
        if old is None and self._writer is None:
            if self.summary.stopped:
                self.summary.seconds = time.monotonic() - self._clock
                return
            raise nothing_found(self.path, self._missing, self._archives, self.summary.excluded)
        self._write_missing()
        self.summary.linked = [f"{link} -> {target}" for link, target in self._selection.outside.items()]
        if old is not None and old.provenance.weights_path != self.provenance.weights_path:
            self._open().update_provenance(self.provenance)
        self._commit(ended=True)

    def prune(self, selection: Selection, limit: float, force: bool) -> None:
        """Remove the rows and ledger entries of pictures that are gone."""
        if self._old is None:
            return
        rows = prune.gone(self._old, selection, self._met, limit=limit, force=force)
        writer = self._open()
        for end in range(len(rows), 0, -PORTION):  # from the last row: those before keep their places
            writer.remove(rows[max(0, end - PORTION) : end])
            self._commit(ended=True)
        doubtful = [path for path in self._catalogue.failures if (archives.split(path) or ("",))[0] not in self._known]
        writer.clear_failures(prune.gone_failures(self._old, doubtful, selection))
        self.summary.removed = len(rows)
        self._commit(ended=True)

    def watch(self, selection: Selection, on_progress: Callable[[Progress], None] | None) -> None:
        """Report progress, and count the files in a thread meanwhile, so that it has an end."""

        def count() -> None:
            with suppress(SourceError):  # of a list that cannot be read; the run itself will tell
                self._total = selection.count()

        if on_progress is not None:
            self._on_progress = on_progress
            threading.Thread(target=count, daemon=True).start()

    def tell(self, phase: str = "") -> None:
        """Report how far the run is, and what it is busy with besides the images."""
        self._on_progress(Progress(self.summary, self._total and self._total + self._members, phase))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RN50FeatError):
            error.summary = self._committed
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
