"""Agree with a store on weights and preprocessing, and embed pictures as its own were embedded.

In: a store, and what a run asks for, or references. Out: the weights and the
provenance of the run, or the batches of an engine that has the store's own;
or an error that says why not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rn50feat import waiting
from rn50feat.backends import CPU_BATCH
from rn50feat.download import Told
from rn50feat.engines import Batch, Engine, EngineOptions, StartEngine
from rn50feat.errors import StoreError
from rn50feat.limits import cores
from rn50feat.places.sources import Reference
from rn50feat.provenance import Provenance
from rn50feat.store import FeatureStore
from rn50feat.weights import Choices, Weights, settle, with_weights

_ANOTHER = "use another file, or --overwrite, which discards all its rows"


def agree(
    old: FeatureStore | None, choices: Choices, dtype: str | None, *, remedy: str = _ANOTHER
) -> tuple[Weights, Provenance]:
    """Return the weights and provenance of a run that is to write to `old`, or to a new store.

    What is not said is as in `old`. Raises `ProvenanceError` or `StoreError`
    when what is said differs from it, with `remedy`, and `WeightsError`.
    """
    agreed, provenance = settle(choices, None if old is None else old.provenance)
    require(old, provenance, remedy=remedy)
    if old is not None and dtype is not None and old.dtype != dtype:
        raise StoreError(f"{old.path} holds {old.dtype}, you asked for {dtype}: {remedy}")
    return agreed, provenance


def require(old: FeatureStore | None, provenance: Provenance, *, remedy: str = _ANOTHER) -> None:
    """Raise `ProvenanceError` when vectors of `provenance` do not belong in `old`."""
    if old is not None:
        old.provenance.require(provenance, where=str(old.path), remedy=remedy)


def embed_like(
    store: FeatureStore,
    references: Sequence[Reference],
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    *,
    on_download: Told,
) -> Iterator[Batch]:
    """Yield the features and failures of `references`, as `store` would hold them.

    `weights_file` says where the store's weights are when they have moved.
    Raises `WeightsError` and `ProvenanceError` when they cannot be had.
    """
    recorded = store.provenance
    where, remedy = str(store.path), "say where its own weights are with --weights FILE"
    weights, provenance = settle(Choices(weights_file), recorded)
    recorded.require(provenance, where=where, remedy=remedy)
    count = len(references)
    batch_size = min(options.batch_size or CPU_BATCH, count)
    options = replace(options, batch_size=batch_size, workers=min(options.workers or cores(), count))

    def started() -> Engine:
        return waiting.attend(
            lambda: start(weights, recorded, options), lambda: None, dispose=lambda engine: engine.__exit__()
        )

    with with_weights(started, on_download) as engine:
        recorded.require(replace(provenance, weights_sha256=engine.weights_sha256), where=where, remedy=remedy)
        yield from engine.embed(references)
