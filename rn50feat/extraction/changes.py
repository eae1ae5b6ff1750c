"""Write what an extraction changes in its store: what needs no network, and what the engine computes.

In: steps of a plan, and batches of an engine. Out: rows and ledger entries,
through the write session. This is the one place where an extraction writes:
neither the plan nor the stream that an engine consumes does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rn50feat.engines.contract import Batch, Failure
from rn50feat.errors import SourceError
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.plan import Step, Verdict
from rn50feat.extraction.todo import Todo
from rn50feat.sources.presence import obstacle
from rn50feat.store.paths import stored_path
from rn50feat.store.session import WriteSession

logger = logging.getLogger(__name__)


class Changes:
    """Writes the changes of an extraction through its session."""

    def __init__(self, session: WriteSession, catalogue: Catalogue) -> None:
        self._session, self._catalogue = session, catalogue

    def settle(self, todo: Todo) -> None:
        """Write the changes that wait in `todo`, unless it is not known yet what kind of store they go into.

        A copy whose original was replaced in this very run becomes an image
        for the engine, and so does one that moved, if its row is damaged.
        """
        if not todo.changes or not self._session.prepared:
            return
        steps, todo.changes = todo.changes, []
        for step in steps:
            if step.verdict is Verdict.MOVED and step.row is not None:
                if not self._session.move(step.row, step.reference):
                    todo.met[step.row] = False
                    todo.images.append(step.reference)
            elif step.verdict is not Verdict.COPY:
                self._settle(step)
            elif step.twin is None or not self._session.reuse(step.twin, step.reference, step.row):
                todo.images.append(step.reference)
        self._session.tell()

    def _settle(self, step: Step) -> None:
        if (failure := failure_of(step)) is not None:
            if step.verdict in (Verdict.LISTED, Verdict.UNREADABLE):
                logger.warning("%s %s", step.reference.location, step.fault)
            self._fail(failure)
        elif step.verdict is Verdict.TOUCHED and step.row is not None:
            self._session.touch(step.row, step.reference)
        if step.record is not None:
            # Before the rows of its members, or with them: an archive whose rows are fewer than noted is read again.
            self._session.note_archive(step.record)
        path = stored_path(self._session.path, step.reference.location)
        if failure is None and path in self._catalogue.failures:
            # It was broken for a while and is whole again, or never was an image.
            self._session.clear_failures([path])

    def take(self, batch: Batch, todo: Todo) -> None:
        """Write what the engine gives back: new rows, changed rows and failures."""
        self._session.summary.recomputed += batch.recomputed
        paths = [stored_path(self._session.path, reference.location) for reference in batch.references]
        self._session.take(batch.references, batch.features, [self._catalogue.row(path) for path in paths])
        for failure in batch.failures:
            self._fail(failure)
        todo.in_hand -= len(batch.references) + len(batch.failures)

    def _fail(self, failure: Failure) -> None:
        reference = failure.reference
        if failure.cause == "vanished":
            self._session.summary.vanished += 1
            return
        if failure.cause == "access":  # a size that no file has: the next run tries it again
            reference = replace(reference, size=-1, mtime_ns=-1)
        self._session.fail(reference, failure.reason)


def failure_of(step: Step) -> Failure | None:
    """Return why a file, or an archive, that the network does not see has failed; None where it has not."""
    if step.verdict is Verdict.MISSING:
        return Failure(step.reference, obstacle(step.reference.location), "access")
    if step.fault:
        return Failure(step.reference, step.fault, "access" if step.verdict is Verdict.UNREADABLE else "content")
    return None


def nothing_found(store: Path, changes: Sequence[Step], excluded: int) -> SourceError:
    """Return the error for a run without an image, which makes no store.

    Its cause is the first file among `changes` that failed, else the first
    damaged archive; `excluded` counts what patterns leave out.
    """
    in_archives = (Verdict.LISTED, Verdict.UNREADABLE)
    for step in sorted(changes, key=lambda step: step.verdict in in_archives):
        if (failure := failure_of(step)) is not None:
            reason = f"{step.reference.location} {failure.reason}"
            if step.verdict is Verdict.MISSING:
                reason += (
                    f", and no other image was found for {store}:"
                    " name images that exist; names in a list are relative to the working folder"
                )
            return SourceError(reason)
    besides = f" besides what is excluded ({excluded}; --list-excluded shows it)" if excluded else ""
    return SourceError(f"there is no image in the sources of {store}{besides}: name folders that hold some")
