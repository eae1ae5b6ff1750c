"""The engine of this machine: decoding processes, and the network in a thread beside them.

In: references. Out: batches, in the order of the references. While the
network computes one batch, the next ones are decoded.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.backends import Backend
from rn50feat.engines import Batch, EngineOptions, Failure
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import DeviceError
from rn50feat.provenance import Preprocessing, Provenance
from rn50feat.sources import Reference
from rn50feat.weights import Weights

if TYPE_CHECKING:
    from rn50feat.network import Network

BUFFERS = 4  # two batches being decoded, one at the network, one waiting for it


@dataclass(frozen=True)
class _Decoding:
    """A batch on its way: the buffer that it fills and the futures of its slots."""

    buffer: int
    pictures: list[Future[Reference | Failure]]


class LocalEngine:
    """Embed pictures on this machine."""

    def __init__(self, backend: Backend, pool: DecoderPool, batch_size: int) -> None:
        """Compute with `backend` what `pool`, of ``BUFFERS * batch_size`` slots, decodes."""
        self.weights_sha256, self.device = backend.weights_sha256, backend.device
        self.precision, self.backend = backend.precision, backend.name
        self._compute = backend.features
        self._pool = pool
        self._batch_size = batch_size
        self._network_seconds = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds for which the decoding processes, on average, and the network were busy so far."""
        return {"decode": self._pool.busy / self._pool.workers, "network": self._network_seconds}

    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        """Yield every reference exactly once, with its features or its failure."""
        waiting = iter(references)
        free = deque(range(BUFFERS))
        decoding: deque[_Decoding] = deque()
        computing: deque[tuple[int, Future[Batch]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="network") as network:
            while True:
                while free and (chunk := list(islice(waiting, self._batch_size))):
                    decoding.append(self._decode(chunk, free.popleft()))
                if decoding and len(computing) < 2:
                    batch = decoding.popleft()
                    pictures = [picture.result() for picture in batch.pictures]
                    computing.append((batch.buffer, network.submit(self._embed, pictures, batch.buffer)))
                elif computing:
                    buffer, result = computing.popleft()
                    embedded = result.result()
                    free.append(buffer)
                    yield embedded
                else:
                    return

    def _decode(self, chunk: list[Reference], buffer: int) -> _Decoding:
        first = buffer * self._batch_size
        return _Decoding(buffer, [self._pool.decode(first + i, reference) for i, reference in enumerate(chunk)])

    def _embed(self, pictures: list[Reference | Failure], buffer: int) -> Batch:
        """Run the network on the pictures of one buffer; the slots of failures are computed, and left out."""
        first = buffer * self._batch_size
        failures = tuple(picture for picture in pictures if isinstance(picture, Failure))
        good = [i for i, picture in enumerate(pictures) if isinstance(picture, Reference)]
        if not good:
            return Batch((), np.empty((0, 2048), np.float32), failures)
        begun = time.monotonic()
        features = self._compute(self._pool.crops[first : first + len(pictures)])[good]
        self._network_seconds += time.monotonic() - begun
        references = tuple(picture for picture in pictures if isinstance(picture, Reference))
        return Batch(references, features, failures)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.close()


def start(weights: Weights, provenance: Provenance, options: EngineOptions, *, progress: bool = False) -> LocalEngine:
    """Start the engine; raise `WeightsError` or `DeviceError` when it cannot compute."""
    pool = _pool(provenance.preprocessing, options)
    try:  # the processes start while the backend is imported: torch and torchvision take 4 s
        return LocalEngine(backend(weights, provenance, options, progress=progress), pool, options.batch_size)
    except BaseException:
        pool.close()
        raise


def engine(backend: Backend, preprocessing: Preprocessing, options: EngineOptions) -> LocalEngine:
    """Return an engine with a backend that runs already."""
    return LocalEngine(backend, _pool(preprocessing, options), options.batch_size)


def _pool(preprocessing: Preprocessing, options: EngineOptions) -> DecoderPool:
    return DecoderPool(
        preprocessing,
        slots=BUFFERS * options.batch_size,
        # As many as cores: the scheduler shares them better than a guess (86 against 81 images/s with one of
        # two cores left to the network, 50 against 39 for 12-megapixel photographs).
        workers=options.workers or cores(),
        max_pixels=options.max_megapixels * 1_000_000,
    )


def backend(weights: Weights, provenance: Provenance, options: EngineOptions, *, progress: bool) -> Backend:
    """Return OpenVINO's backend on the CPU where OpenVINO is installed, else torch's."""

    def load() -> Network:
        from rn50feat import network

        return network.load(weights, progress=progress)

    if _wants_openvino(options):
        from rn50feat.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(provenance, load, precision=options.precision)
    from rn50feat.backends.torch import TorchBackend

    return TorchBackend(load(), provenance.preprocessing, device=options.device, precision=options.precision)


def _wants_openvino(options: EngineOptions) -> bool:
    installed = find_spec("openvino") is not None
    if options.backend == "openvino" and not installed:
        raise DeviceError("OpenVINO is not installed: pip install 'rn50feat[openvino]', or --backend torch")
    if options.backend == "openvino" and options.device not in ("auto", "cpu"):
        raise DeviceError(f"OpenVINO computes on the CPU here, not on {options.device}: use --backend torch")
    on_cpu = options.device == "cpu" or (options.device == "auto" and not _may_have_gpu())
    return options.backend == "openvino" or (options.backend == "auto" and installed and on_cpu)


def _may_have_gpu() -> bool:
    """Tell whether CUDA is worth asking torch for, without importing it: its devices show in /dev on Linux."""
    return any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
