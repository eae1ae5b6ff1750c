"""Decide when a run commits: seldom enough to cost nothing, often enough that a kill costs little.

In: how many changes a run makes, and a clock. Out: whether a commit is due.
"""

from __future__ import annotations

from collections.abc import Callable

COMMIT_ROWS = 10_000  # changes of any kind
COMMIT_CHANGES = 1000  # changes of what is there already: memory holds their pages until the commit
COMMIT_SECONDS = 20.0  # what a kill may cost; a commit itself takes some 15 ms


class Schedule:
    """Decides when to commit: after so many changes, so many to what is there already, or so many seconds."""

    def __init__(self, rows: float, changes: float, seconds: float, clock: Callable[[], float]) -> None:
        self._rows, self._changes, self._seconds, self._clock = rows, changes, seconds, clock
        self.restart()

    def restart(self) -> None:
        """Begin to count anew, after a commit."""
        self._counted, self._of_those_changed, self._since = 0, 0, self._clock()

    def count(self, new: int, changed: int) -> bool:
        """Count changes; return whether a commit is due."""
        self._counted += new + changed
        self._of_those_changed += changed
        late = self._clock() - self._since > self._seconds
        return late or self._counted >= self._rows or self._of_those_changed >= self._changes
