"""Split a plan in two: images that the network must see, and changes that need no network.

In: the steps of a plan. Out: a stream of images for the engine, and the
changes met on the way, a portion at a time. Counts everything, and writes
nothing: `changes` does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator

from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.plan import Step, Verdict
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.reference import Reference
from rn50feat.store.paths import stored_path
from rn50feat.store.session import WriteSession

logger = logging.getLogger(__name__)

# Changes that wait to be written, at most: some 7 MB. With fewer, an engine would run dry too often where a few new
# images lie among many touched files.
PORTION = 10_000
_CHANGES = frozenset(
    (
        Verdict.COPY,
        Verdict.MOVED,
        Verdict.TOUCHED,
        Verdict.MISSING,
        Verdict.PACKED,
        Verdict.UNSTORABLE,
        Verdict.LISTED,
        Verdict.UNREADABLE,
    )
)
_WHOLE = frozenset((Verdict.UNCHANGED, Verdict.APPLEDOUBLE))  # a change if the ledger still has them


class Todo:
    """What a plan leaves to do: ``images`` for the engine, and ``changes`` to be written before more is planned.

    ``met`` tells for each row, bool of shape (N,), whether its image was
    found; ``known`` has the stored paths of archives that have not changed,
    ``failures`` is the ledger as it was when the run began.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        catalogue: Catalogue,
        session: WriteSession,
        on_excluded: Callable[[Excluded], None],
    ) -> None:
        self.images: deque[Reference] = deque()
        self.changes: list[Step] = []
        self.met = catalogue.met
        self.known: set[str] = set()
        self.failures = catalogue.failures
        self.in_hand = 0  # images that the engine has taken and not given back
        self._steps, self._session = steps, session
        self._on_excluded = on_excluded

    def look(self) -> bool:
        """Plan up to the next image, or a portion of changes; return whether there is something to do.

        There is not at the end of the plan, nor when the run is stopped:
        changes may be left all the same.
        """
        if not self.images and (image := self._next()) is not None:
            self.images.append(image)
        if self._session.summary.stopped:
            return False
        return bool(self.images) or bool(self.changes and self._session.prepared)

    def stream(self) -> Iterator[Reference]:
        """Yield images for the engine; end where a portion of changes must be written first, or the run is stopped."""
        while (image := self.images.popleft() if self.images else self._next()) is not None:
            self.in_hand += 1
            yield image

    def _next(self) -> Reference | None:
        """Plan up to the next image, None where `stream` ends. In a store still unknown, all changes must wait."""
        session = self._session
        while (len(self.changes) < PORTION or not session.prepared) and not session.stop():
            with session.summary.timed("find"):
                step = next(self._steps, None)
            if step is None:
                return None
            self._note(step)
            session.tell()
            if step.verdict is Verdict.COMPUTE:
                return step.reference
        return None

    def _note(self, step: Step) -> None:
        """Count a step, and keep it if it is a change."""
        location = step.reference.location
        if step.row is not None:
            self.met[step.row] = True
        if step.known is not None:
            self.known.add(stored_path(self._session.path, location))
            self.met[step.known.rows] = True
        if step.verdict is Verdict.EXCLUDED:
            self._on_excluded(Excluded(location, step.pattern))
        elif step.verdict is Verdict.PACKED:
            logger.warning("%s %s", location, step.fault)
        elif step.doubt:
            logger.warning("%s %s", location, step.doubt)
        self._count(step)
        if step.verdict in _CHANGES or (
            step.verdict in _WHOLE and self.failures and stored_path(self._session.path, location) in self.failures
        ):
            self.changes.append(step)

    def _count(self, step: Step) -> None:
        """Count a file that needs no network, and the members of an archive."""
        summary = self._session.summary
        summary.unchanged += step.verdict in (Verdict.UNCHANGED, Verdict.TOUCHED)
        summary.failed_before += step.verdict is Verdict.FAILED_BEFORE
        summary.ignored += step.verdict in (Verdict.IGNORED, Verdict.APPLEDOUBLE)
        summary.appledouble += step.verdict is Verdict.APPLEDOUBLE
        summary.excluded += step.verdict is Verdict.EXCLUDED
        if step.verdict is Verdict.OPENED:
            self._session.members += step.members - 1
        if (known := step.known) is not None:
            summary.unchanged += len(known.rows)
            summary.failed_before += known.failed
            summary.ignored += known.others
            self._session.members += len(known.rows) + known.failed + known.others - 1
