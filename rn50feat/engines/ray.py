"""Embed on a Ray cluster: one worker on each node, or for each GPU, led by this process.

In: references. Out: batches, as they come back. The references go out in
portions; those of a worker that dies go to another, until the one image
that kills its workers, if there is one, is found.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.engines import local
from rn50feat.engines.cluster import Cluster, Place
from rn50feat.engines.contract import Batch, EngineOptions, StartEngine
from rn50feat.engines.node import Assignment, NodeFacts
from rn50feat.engines.portion import Portion
from rn50feat.errors import ClusterError, DeviceError, RN50FeatError
from rn50feat.images.provenance import Provenance
from rn50feat.model.weights import Weights
from rn50feat.sources.reference import Reference

if TYPE_CHECKING:
    from rn50feat.engines.actor import Actor

logger = logging.getLogger(__name__)

STARTS = 3  # that may fail one after the other at one place
LOSSES = 6  # workers that may die one after the other at one place without an image done: a bad image takes four
LOOK_SECONDS = 10.0  # between two looks for new nodes
TELL_SECONDS = 30.0  # of waiting for the first worker before a warning


class RayEngine:
    """Embed images on the nodes of a Ray cluster."""

    def __init__(self, cluster: Cluster, assignment: Assignment) -> None:
        """Start workers and wait for the first of them; raise `ClusterError` if none can start."""
        self._cluster = cluster
        self._packed = pickle.dumps(assignment)  # a node with another version of rn50feat leaves it alone
        self._weights_sha256 = assignment.provenance.weights_sha256  # as this machine has them
        self._on_gpus = _wants_gpus(cluster, assignment.options)
        self._members: dict[Place, Actor] = {}
        self._losses: Counter[Place] = Counter()
        self._given_up: dict[Place, str] = {}
        self._again: deque[Portion] = deque()
        self._looked = -math.inf
        self._started: set[Place] = set()
        self._facts: NodeFacts | None = None
        self.device = ""
        self.seconds = {"decode": 0.0, "network": 0.0}
        begun, told = time.monotonic(), False
        while self._facts is None:
            if (member := self._next(1.0)) is not None:
                list(self._hear(member))
            elif time.monotonic() - begun > TELL_SECONDS and not told:
                logger.warning("waiting for a worker of %s: its nodes are busy, or slow", cluster.name)
                told = True
        self.backend, self.precision = self._facts.backend, self._facts.precision
        self.weights_sha256 = self._facts.weights_sha256

    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        """Yield every reference exactly once, with its features or its failure."""
        waiting = iter(references)
        try:
            while True:
                for member in self._members.values():
                    self._hand_out(member, waiting)
                idle = any(member.awaited is None for member in self._members.values())  # nothing was left for it
                if idle and not any(member.portions for member in self._members.values()):
                    return
                if (speaker := self._next(LOOK_SECONDS)) is not None:
                    yield from self._hear(speaker)
        finally:  # left half-way: nobody wants what is still out
            for busy in [member for member in self._members.values() if member.portions]:
                self._dismiss(busy)
            self._again.clear()
            self._looked = -math.inf

    def _hand_out(self, member: Actor, waiting: Iterator[Reference]) -> None:
        """Give a worker as much as it can take, retries first."""
        while size := member.wants:
            portion = self._again.popleft() if self._again else Portion(list(islice(waiting, size)))
            if not portion.references:
                return
            member.give(portion)

    def _next(self, seconds: float) -> Actor | None:
        """Wait for a worker that has answered; None if there is none for so long. Each has its turn."""
        import ray  # not before the cluster has set what Ray reads when it is imported

        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        awaited = {member.awaited: member for member in self._members.values() if member.awaited is not None}
        ready, _ = ray.wait(list(awaited), timeout=seconds)
        if not ready:
            return None
        member = awaited[ready[0]]
        self._members[member.place] = self._members.pop(member.place)
        return member

    def _look(self) -> None:
        """Start a worker at each place that has none; raise `ClusterError` if no worker is left."""
        from rn50feat.engines.actor import Actor

        self._looked = time.monotonic()
        places = self._cluster.places(gpu=self._on_gpus)
        for place in places:
            if place not in self._members and place not in self._given_up:
                self._members[place] = Actor(place, self._packed)
        if not self._members:
            reasons = [reason for place, reason in self._given_up.items() if place in places]
            why = reasons[-1] if reasons else "no node has a free core"
            raise ClusterError(f"{self._cluster.name} has no worker left: {why}")

    def _hear(self, member: Actor) -> Iterator[Batch]:
        """Act on a worker's answer: it has started, a batch or a portion is done, or it has died."""
        from ray import get
        from ray.exceptions import RayError, RayTaskError

        try:
            if member.start is not None:
                self._welcome(member, get(member.start))
            elif (answer := member.take()) is not None:
                batch, seconds = answer
                for stage, busy in seconds.items():
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + busy / len(self._members)
                self._losses[member.place] = 0
                yield batch
        except RayTaskError as error:
            if isinstance(error.cause, RN50FeatError):
                raise error.cause from error
            raise
        except RayError as death:
            yield from self._after(death, member)

    def _welcome(self, member: Actor, facts: NodeFacts) -> None:
        """Let a worker take part; raise `ClusterError` if it differs from this machine or from the first worker."""
        theirs, ours = facts.weights_sha256, self._weights_sha256
        if ours not in ("", theirs):
            raise ClusterError(
                f"the node {facts.host} has other weights ({theirs[:8]}…) than this machine ({ours[:8]}…):"
                " put the same file on every node"
            )
        first = self._facts = self._facts or facts
        if facts != first:
            raise ClusterError(f"{_words(facts)}, but {_words(first)}: set --backend, --precision and --device")
        member.start = None
        self._started.add(member.place)
        self.device = f"ray {len(self._started)} x {facts.device}"

    def _after(self, death: Exception, member: Actor) -> Iterator[Batch]:
        """Take the portions of a dead worker back, the suspect one in parts; give its place up if many died there."""
        from rn50feat.engines.actor import reason

        place, portions = member.place, [portion for portion in member.portions if portion.references]
        limit = LOSSES if member.start is None else STARTS
        self._dismiss(member)
        self._losses[place] += 1
        why = reason(death, place)
        logger.info("a worker died: %s", why)
        if self._losses[place] >= limit:
            self._given_up[place] = why
            logger.warning("the run goes on without %s: %s", place.host, why)
        if portions:
            suspect, *innocent = portions  # a worker does one after the other
            suspects, failures = suspect.after_death()
            self._again.extend([*suspects, *innocent])
            if failures:
                self._losses[place] = 0
                yield Batch((), np.empty((0, 2048), np.float32), failures)
        self._look()

    def _dismiss(self, member: Actor) -> None:
        del self._members[member.place]
        member.dismiss()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *error: object) -> None:
        for member in list(self._members.values()):
            self._dismiss(member)
        self._cluster.leave()


def start(
    weights: Weights,
    provenance: Provenance,
    options: EngineOptions,
    *,
    address: str = "auto",
    each: StartEngine = local.start,
) -> RayEngine:
    """Start the engine on the cluster at `address`, `each` on each of its nodes, or for each of its GPUs.

    Raises `ClusterError`, and what `each` raises there. Each node downloads weights for itself.
    """
    if options.device.startswith("cuda:"):
        raise DeviceError(f"Ray assigns the GPUs of a cluster itself: use --device cuda, not {options.device}")
    if provenance.quantization is not None:
        options = replace(options, backend="openvino")  # also where there are GPUs
    cluster = Cluster(address)
    try:
        return RayEngine(cluster, Assignment(each, weights, provenance, options))
    except BaseException:
        cluster.leave()
        raise


def _wants_gpus(cluster: Cluster, options: EngineOptions) -> bool:
    """Decide whether workers run on GPUs: where `options` leave it open, if the cluster has some."""
    if options.device == "cpu" or options.backend == "openvino":
        return False
    there = bool(cluster.places(gpu=True))
    if options.device == "cuda" and not there:
        raise DeviceError(f"{cluster.name} has no GPU: omit --device cuda")
    return there


def _words(facts: NodeFacts) -> str:
    """Name what a worker computes with."""
    what = f"{facts.backend} on {facts.device} in {facts.precision} with weights {facts.weights_sha256[:8]}…"
    return f"the node {facts.host} computes with {what}"
