"""Lead one worker of a cluster.

In: portions of references. Out: their batches, checked for what only a node
of a cluster can get wrong; and why a worker died, in one line.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rn50feat.engines.cluster import Place
from rn50feat.engines.contract import Batch, Failure
from rn50feat.engines.node import RemoteEngine, versions
from rn50feat.engines.portion import Portion
from rn50feat.errors import ClusterError

AHEAD = 2  # portions at a worker: the one in hand and the next, so that it never waits
# Images in a portion: twice as many each time until they take `SECONDS`. Between two portions the network waits
# for the first images to be decoded; the larger portions are, the longer the others wait for the last one.
SECONDS = 2.0
FIRST = {"cpu": 32, "cuda": 512}  # whole batches from the start
LARGEST = 8192


class Actor:
    """A worker at a place, and the portions that it has."""

    def __init__(self, place: Place, packed: bytes) -> None:
        """Start it with a packed `Assignment`."""
        settings: dict[str, Any] = {
            "num_cpus": place.cpus,
            "num_gpus": place.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,  # the driver knows what to try again
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node, soft=False),
        }
        self.place = place
        remote: Any = ray.remote(**settings)
        self._actor = remote(RemoteEngine).remote()
        device = "cuda" if place.gpus else "cpu"
        self._size = FIRST[device]
        # What it will answer with its facts; None once it has.
        self.start: Any = self._actor.start.remote(versions(), packed, max(1, place.cpus), device)
        self._streams: deque[tuple[Any, Portion]] = deque()  # of batches
        self._begun = 0.0  # when it began the portion in hand
        self._sees = False  # it has read a file

    @property
    def awaited(self) -> Any:
        """What it will answer next; None for nothing."""
        return self._streams[0][0] if self._streams else self.start

    @property
    def wants(self) -> int:
        """How many references it should be given now."""
        return self._size if self.start is None and len(self._streams) < AHEAD else 0

    @property
    def portions(self) -> list[Portion]:
        """The portions that it has, the one in hand first."""
        return [portion for _, portion in self._streams]

    def give(self, portion: Portion) -> None:
        """Give it a portion, after those that it has."""
        if not self._streams:
            self._begun = time.monotonic()
        stream = self._actor.embed.options(num_returns="streaming").remote(portion.references)
        self._streams.append((stream, portion))

    def take(self) -> tuple[Batch, dict[str, float]] | None:
        """Take its next batch, which is ready, and the seconds of each stage; None when it is done with the portion.

        Raises Ray's errors, and `ClusterError` if it sees no file of its first batch.
        """
        stream, portion = self._streams[0]
        try:
            batch, seconds = ray.get(next(stream))
        except StopIteration:
            self._streams.popleft()
            now = time.monotonic()
            if portion.size == self._size and now - self._begun < SECONDS:
                self._size = min(2 * self._size, LARGEST)
            self._begun = now
            return None
        portion.take(batch)
        return self._checked(batch), seconds

    def _checked(self, batch: Batch) -> Batch:
        """Make files that exist here, and are not seen there, failures of access."""
        size = len(batch.references) + len(batch.failures)
        unseen = [f for f in batch.failures if f.cause != "content" and os.access(f.reference.location, os.R_OK)]
        if size == len(unseen) > 0 and not self._sees:  # thousands would follow
            raise ClusterError(
                f"the node {self.place.host} does not see {unseen[0].reference.location} ({unseen[0].reason}):"
                " mount the images at the same path on every node, readable by Ray's user"
            )
        self._sees = self._sees or len(unseen) < size

        def corrected(failure: Failure) -> Failure:
            if failure.cause != "vanished" or failure not in unseen:
                return failure
            return replace(failure, cause="access", reason=f"is not seen on the node {self.place.host}")

        return replace(batch, failures=tuple(map(corrected, batch.failures)))

    def dismiss(self) -> None:
        """End its process, if it still runs."""
        ray.kill(self._actor)


def reason(death: Exception, place: Place) -> str:
    """Shorten Ray's account of a worker's death to one line; raise `ClusterError` if the node lacks rn50feat."""
    text = " ".join(str(death).split())
    if "No module named 'rn50feat" in text:
        raise ClusterError(f"the node {place.host} has no {versions()}: install the same everywhere")
    detail = text.partition("Worker exit detail: ")[2] or text.partition("The actor is dead because ")[2] or text
    return f"workers on {place.host} ended: {detail.partition(' Some common causes')[0][:300]}"
