"""An engine whose features can be read by eye, and that counts what it does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rn50feat import images, sources
from rn50feat.engines import Batch, Engine, EngineOptions, Failure
from rn50feat.errors import DamagedError, ImageError, SourceError, VanishedError
from rn50feat.provenance import Preprocessing, Provenance
from rn50feat.sources import Reference
from rn50feat.weights import Weights


class FakeBackend:
    """Features: the mean red, green and blue of the crop, then zeros."""

    name, device, precision = "fake", "cpu", "fp32"
    batch_size, lanes = 32, 1

    def __init__(self, weights_sha256: str = "fa" * 32) -> None:
        self.weights_sha256 = weights_sha256
        self.batches: list[int] = []

    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(crops))
        rows = np.zeros((len(crops), 2048), np.float32)
        rows[:, :3] = crops.reshape(len(crops), -1, 3).mean(axis=1)
        return rows


class FakeEngine:
    """The contract of an engine, in this process."""

    backend, device, precision = "fake", "cpu", "fp32"

    def __init__(self, preprocessing: Preprocessing, batch_size: int) -> None:
        self._backend = FakeBackend()
        self.weights_sha256 = self._backend.weights_sha256
        self._preprocessing = preprocessing
        self._batch_size = batch_size
        self.seen: list[str] = []
        self.seconds = {"decode": 0.0, "network": 0.0}

    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        waiting = iter(references)
        while chunk := list(islice(waiting, self._batch_size)):
            good, crops, failures = [], [], []
            for reference in chunk:
                self.seen.append(reference.location)
                try:
                    read, data = sources.read(reference)
                    suffix = os.path.splitext(reference.location)[1]
                    crops.append(images.decode(data, self._preprocessing, suffix=suffix, max_pixels=10**8))
                    good.append(read)
                except (ImageError, DamagedError) as error:
                    failures.append(Failure(reference, str(error)))
                except SourceError as error:
                    cause = "vanished" if isinstance(error, VanishedError) else "access"
                    failures.append(Failure(reference, str(error), cause))
            rows = self._backend.features(np.stack(crops)) if crops else np.empty((0, 2048), np.float32)
            yield Batch(tuple(good), rows, tuple(failures))

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class FakeStart:
    """A `StartEngine` that keeps the engines that it started."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []

    def __call__(
        self, weights: Weights, provenance: Provenance, options: EngineOptions, *, progress: bool = False
    ) -> Engine:
        self.engines.append(FakeEngine(provenance.preprocessing, options.batch_size or 32))
        return self.engines[-1]

    @property
    def seen(self) -> list[str]:
        """The names of the files that went through the engines."""
        return [os.path.basename(location) for engine in self.engines for location in engine.seen]
