"""Run an engine on a node of a cluster, in an actor of `ray`.

In: what the driver wants started, and portions of references. Out: what the
node has, and batches in the order of the references. It is a whole engine of
the node's own machine, decoding processes included: an image that crashes
its decoder costs the same here as there.
"""

from __future__ import annotations

import pickle
import platform
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rn50feat import __version__
from rn50feat.engines.contract import Batch, Engine, EngineOptions, StartEngine
from rn50feat.errors import ClusterError, RN50FeatError, WeightsError
from rn50feat.images.provenance import Provenance
from rn50feat.model.weights import Weights, find, with_weights
from rn50feat.sources.reference import Reference


@dataclass(frozen=True)
class Assignment:
    """What all workers have in common: how to start an engine, and for which features."""

    start: StartEngine
    weights: Weights
    provenance: Provenance
    options: EngineOptions


@dataclass(frozen=True)
class NodeFacts:
    """What a worker runs, which must be the same for all workers; their hosts differ."""

    host: str = field(compare=False)
    backend: str
    device: str
    precision: str
    weights_sha256: str


def versions() -> str:
    """Name what driver and workers must have in common."""
    return f"rn50feat {__version__} on Python {'.'.join(platform.python_version_tuple()[:2])}"


class RemoteEngine:
    """One engine, started when the driver says which."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._told: dict[str, float] = {}

    def start(self, theirs: str, packed: bytes, workers: int, device: str) -> NodeFacts:
        """Start the engine of a packed `Assignment`.

        It gets `workers` decoding processes unless its options say how many.
        Raises the leaves of `RN50FeatError`, with the name of this node;
        `ClusterError` if the driver's versions, `theirs`, are not this node's.
        """
        host = socket.gethostname()
        if theirs != versions():
            raise ClusterError(f"the node {host} has {versions()}, this process {theirs}: install the same")
        assignment: Assignment = pickle.loads(packed)
        options = replace(assignment.options, device=device, workers=assignment.options.workers or workers)
        try:
            weights = _here(assignment.weights)
            start = partial(assignment.start, weights, assignment.provenance, options)
            self._engine = engine = with_weights(start)
        except RN50FeatError as error:
            raise type(error)(f"on the node {host}: {error}") from error
        return NodeFacts(host, engine.backend, engine.device, engine.precision, engine.weights_sha256)

    def embed(self, references: Sequence[Reference]) -> Iterator[tuple[Batch, dict[str, float]]]:
        """Yield the batches of `references`, each with the seconds that the stages were busy for it."""
        assert self._engine is not None
        for batch in self._engine.embed(references):
            now = dict(self._engine.seconds)
            yield batch, {stage: seconds - self._told.get(stage, 0.0) for stage, seconds in now.items()}
            self._told = now


def _here(weights: Weights) -> Weights:
    """Find the weights on this node; each node downloads published ones for itself."""
    if weights.published:
        return find(weights.name)
    if weights.path is not None and not weights.path.is_file():
        raise WeightsError(f"there are no weights at {weights.path}: put them there on every node")
    return weights
