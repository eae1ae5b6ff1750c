"""An engine whose features can be read by eye, and that counts what it does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import rn50feat
from rn50feat.engines.contract import Batch, Engine, EngineOptions, Failure
from rn50feat.engines.local import BUFFERS, LocalEngine
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import DamagedError, ImageError, SourceError, VanishedError
from rn50feat.images import decoding
from rn50feat.images.provenance import Preprocessing, Provenance
from rn50feat.model.weights import Weights
from rn50feat.sources import contents
from rn50feat.sources.reference import Reference
from rn50feat.store.summary import Summary


class FakeBackend:
    """Features: the mean red, green and blue of the crop, then zeros."""

    name, device, precision = "fake", "cpu", "fp32"
    batch_size, lanes, recomputed = 32, 1, 0

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
                    read, data = contents.read(reference)
                    suffix = os.path.splitext(reference.location)[1]
                    decoded = decoding.decode(data, self._preprocessing, suffix=suffix, max_pixels=10**8)
                    crops.append(decoded.crop)
                    good.append(replace(read, damage=decoded.damage))
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

    def __call__(self, weights: Weights, provenance: Provenance, options: EngineOptions) -> Engine:
        self.engines.append(FakeEngine(provenance.preprocessing, options.batch_size or 32))
        return self.engines[-1]

    @property
    def seen(self) -> list[str]:
        """The names of the files that went through the engines."""
        return [os.path.basename(location) for engine in self.engines for location in engine.seen]


LIMITS = {"slots": (BUFFERS + 1) * 3, "workers": 2, "max_pixels": 10**7}
KILLS, KILLS_ONCE = 251, 252  # the red of crops that end the process of the network


@dataclass(frozen=True)
class LocalFakeStart:
    """A `StartEngine` for the fake backend behind real decoding processes, three pictures a batch.

    A batch takes `seconds`. A crop whose red is `KILLS` ends the process; one
    with `KILLS_ONCE` does unless the file `mark` is there already.
    """

    seconds: float = 0.0
    mark: str = ""

    def __call__(self, weights: Weights, provenance: Provenance, options: EngineOptions) -> Engine:
        backend = _DeadlyBackend()
        backend.seconds, backend.mark = self.seconds, self.mark
        return LocalEngine(backend, DecoderPool(provenance.preprocessing, **LIMITS), 3)


class _DeadlyBackend(FakeBackend):
    seconds, mark = 0.0, ""

    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        reds = set(crops[:, 0, 0, 0].tolist())
        if KILLS_ONCE in reds and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os._exit(9)
        if KILLS in reds:
            os._exit(9)
        return super().features(crops)


class BlindStart:
    """A `StartEngine` on a machine that has none of the pictures."""

    def __call__(self, weights: Weights, provenance: Provenance, options: EngineOptions) -> Engine:
        return _BlindEngine(provenance.preprocessing, 4)


class _BlindEngine(FakeEngine):
    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        for reference in references:
            yield Batch((), np.empty((0, 2048), np.float32), (Failure(reference, "has vanished", "vanished"),))


def extract(pictures: Path, start: FakeStart, **settings: object) -> Summary:
    """Extract to `out.h5` next to the pictures."""
    return rn50feat.extract(pictures, pictures.parent / "out.h5", **{"weights": "random", "start": start, **settings})  # type: ignore[arg-type]
