"""Embed images with the weights and preprocessing of a store.

In: references, and a store. Out: an engine's batches, comparable with the
store's features, or an error if the store's weights are not available.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rn50feat.backends.contract import CPU_BATCH
from rn50feat.durable import waiting
from rn50feat.durable.limits import cores
from rn50feat.engines.contract import Batch, Engine, EngineOptions, StartEngine
from rn50feat.model.download import OnDownload
from rn50feat.model.weights import Choices, settle, with_weights
from rn50feat.sources.reference import Reference
from rn50feat.store.reader import FeatureStore


def embed_like(
    store: FeatureStore,
    references: Sequence[Reference],
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    *,
    on_download: OnDownload,
) -> Iterator[Batch]:
    """Yield the features and failures of `references`, embedded like the images in `store`.

    `weights_file` is where the store's weights are if they have moved. Raises
    `WeightsError` or `ProvenanceError` if they are not available.
    """
    recorded = store.provenance
    where, remedy = str(store.path), "name its own weights with --weights FILE"
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
