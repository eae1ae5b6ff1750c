"""Keep track of the references that a worker of a cluster has, and split them when it dies.

In: references, and the batches that come back. Out: what is left of them, in
smaller portions once a worker died over them, until the one image that kills
its worker each time is found and becomes a failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from rn50feat.engines.contract import Batch, Failure
from rn50feat.sources.reference import Reference

SUSPECTS = 32  # images in a portion that is tried again; after its second worker, each comes alone
DEATHS = 2  # of workers that had an image alone: one death may have any cause, such as a power cut


class Portion:
    """References that are not back yet, and how many workers died that had one of them alone."""

    def __init__(self, references: Sequence[Reference], deaths: int = 0) -> None:
        self.references = references
        self.size = len(references)  # at first
        self._deaths = deaths

    def take(self, batch: Batch) -> None:
        """Remove what is back; an engine's batches are in the order of its references."""
        self.references = self.references[len(batch.references) + len(batch.failures) :]

    def after_death(self) -> tuple[list[Portion], tuple[Failure, ...]]:
        """Split what to try again, after the death of this portion's worker, from what has failed for good."""
        left = self.references
        if len(left) > 1:
            size = SUSPECTS if len(left) > SUSPECTS else 1
            return [Portion(left[i : i + size]) for i in range(0, len(left), size)], ()
        if self._deaths + 1 < DEATHS:
            return [Portion(left, self._deaths + 1)], ()
        return [], tuple(Failure(reference, f"ended its Ray worker {DEATHS} times") for reference in left)
