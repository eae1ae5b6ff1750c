"""Embed pictures as those of a store were embedded.

In: references, and a store. Out: the batches of an engine that has the
store's own weights and preprocessing, or an error that says why not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rn50feat.engines import Batch, EngineOptions, StartEngine
from rn50feat.sources import Reference
from rn50feat.store import FeatureStore
from rn50feat.weights import settle


def embed_like(
    store: FeatureStore,
    references: Sequence[Reference],
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    *,
    progress: bool,
) -> Iterator[Batch]:
    """Yield the features and failures of `references`, as `store` would hold them.

    `weights_file` says where the store's weights are when they have moved.
    Raises `WeightsError` and `ProvenanceError` when they cannot be had.
    """
    recorded = store.provenance
    where, remedy = str(store.path), "say where its own weights are with --weights FILE"
    weights, provenance = settle(weights_file, None, None, recorded)
    recorded.require(provenance, where=where, remedy=remedy)
    count = len(references)
    options = replace(options, batch_size=min(options.batch_size, count), workers=min(options.workers, count))
    with start(weights, recorded, options, progress=progress) as engine:
        recorded.require(replace(provenance, weights_sha256=engine.weights_sha256), where=where, remedy=remedy)
        yield from engine.embed(references)
