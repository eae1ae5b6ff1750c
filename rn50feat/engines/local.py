"""Embed on this machine: images are decoded in processes, the network runs in threads.

In: references. Out: batches, in the order of the references. While the
network computes one batch, the next ones are decoded.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.backends.contract import CPU_BATCH, Backend, require_int8
from rn50feat.durable import limits
from rn50feat.engines.contract import Batch, EngineOptions, Failure
from rn50feat.engines.pool import DecoderPool, Outcome
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Preprocessing, Provenance
from rn50feat.model import variants
from rn50feat.model.weights import Weights
from rn50feat.sources.reference import Reference

if TYPE_CHECKING:
    from rn50feat.model.network import Network

logger = logging.getLogger(__name__)

BUFFERS = 4  # for each lane: two batches being decoded, one at the network, one waiting for it


class LocalEngine:
    """Embed images on this machine."""

    def __init__(self, backend: Backend, decoder: DecoderPool, batch_size: int = 0) -> None:
        """Compute with `backend` what `decoder` decodes; `batch_size` 0 leaves the size to the backend."""
        self.weights_sha256, self.device = backend.weights_sha256, backend.device
        self.precision, self.backend = backend.precision, backend.name
        self._compute, self._lanes = backend.features, backend.lanes
        self._decoder = decoder
        self._batch_size = batch_size or backend.batch_size
        self._buffers = min(BUFFERS * self._lanes, len(decoder.crops) // self._batch_size)
        self._network_seconds = 0.0
        self._backend, self._recomputed = backend, backend.recomputed

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds for which the decoding processes, on average, and the network were busy so far."""
        return {"decode": self._decoder.seconds, "network": self._network_seconds / self._lanes}

    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        """Yield every reference exactly once, with its features or its failure."""
        waiting = iter(references)
        free = deque(range(self._buffers))
        # Batches on their way, each with the buffer that it fills.
        decoding: deque[tuple[int, list[Future[list[Outcome]]]]] = deque()
        computing: deque[tuple[int, Future[Batch]]] = deque()
        with ThreadPoolExecutor(self._lanes, thread_name_prefix="network") as network:
            while True:
                while free and (chunk := list(islice(waiting, self._batch_size))):
                    buffer = free.popleft()
                    decoding.append((buffer, self._decoder.decode(buffer * self._batch_size, chunk)))
                if decoding and len(computing) <= self._lanes:
                    buffer, portions = decoding.popleft()
                    images = [outcome for portion in portions for outcome in portion.result()]
                    computing.append((buffer, network.submit(self._embed, images, buffer)))
                elif computing:
                    buffer, result = computing.popleft()
                    embedded = result.result()
                    free.append(buffer)
                    before, self._recomputed = self._recomputed, self._backend.recomputed
                    yield replace(embedded, recomputed=self._recomputed - before)
                else:
                    return

    def _embed(self, images: list[Outcome], buffer: int) -> Batch:
        """Run the network on the images of one buffer; the slots of failures are computed, and left out."""
        first = buffer * self._batch_size
        failures = tuple(image for image in images if isinstance(image, Failure))
        references = tuple(image for image in images if isinstance(image, Reference))
        if not references:
            return Batch((), np.empty((0, 2048), np.float32), failures)
        begun = time.monotonic()
        features = self._compute(self._decoder.crops[first : first + len(images)])
        self._network_seconds += time.monotonic() - begun
        return Batch(references, features[[isinstance(image, Reference) for image in images]], failures)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self._decoder.close()


def start(weights: Weights, provenance: Provenance, options: EngineOptions) -> LocalEngine:
    """Start the engine; raise `WeightsError` or `DeviceError` if it cannot compute."""
    return engine(lambda: backend(weights, provenance, options), provenance.preprocessing, options)


def engine(prepare: Callable[[], Backend], preprocessing: Preprocessing, options: EngineOptions) -> LocalEngine:
    """Start the engine with the backend that `prepare` returns."""
    pool = DecoderPool(
        preprocessing,
        # As many as cores: the scheduler shares them better than a guess (86 against 81 images/s with one of
        # two cores left to the network, 50 against 39 for 12-megapixel photographs).
        workers=options.workers or limits.cores(),
        max_pixels=options.max_megapixels * 1_000_000,
    )
    try:  # the processes start while the backend is imported: torch and torchvision take 4 s
        ready = prepare()
        pool.reserve(BUFFERS * ready.lanes * (options.batch_size or ready.batch_size))
        return LocalEngine(ready, pool, options.batch_size)
    except BaseException:
        pool.close()
        raise


def backend(weights: Weights, provenance: Provenance, options: EngineOptions) -> Backend:
    """Prepare torch's backend on the GPUs that can run the network, else OpenVINO's or torch's on the CPU."""

    load = loader(weights, provenance)
    if provenance.quantization is not None:
        require_for_int8(options)
        from rn50feat.backends.int8 import Int8Backend

        return Int8Backend(provenance, load, few=_few(options))
    if options.precision == "int8":
        raise DeviceError("int8 needs ranges, which extract measures for a new store: use another --precision here")
    if _wants_openvino(options):
        from rn50feat.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(provenance, load, precision=options.precision, few=_few(options))
    weights.require()
    from rn50feat.backends.torch import TorchBackend

    device = "cpu" if options.device == "auto" and not _may_have_gpu() else options.device
    try:
        return TorchBackend(load(), provenance.preprocessing, device=device, precision=options.precision)
    except DeviceError as problem:
        if device != "auto":
            raise
        logger.warning("no GPU is used: %s", str(problem).removesuffix(": use --device cpu"))
    return backend(weights, provenance, replace(options, device="cpu"))


def loader(weights: Weights, provenance: Provenance) -> Callable[[], Network]:
    """Return a function that loads the network of `provenance` with `weights`; it raises `WeightsError`."""

    def load() -> Network:
        weights.require()  # before torch is imported, which takes seconds
        from rn50feat.model import network

        return network.load(weights, variants.recorded(provenance.network))

    return load


def require_for_int8(options: EngineOptions) -> None:
    """Raise `DeviceError` unless int8 features can be computed here, with these options."""
    for name, value, fits in (
        ("precision", options.precision, ("auto", "int8")),
        ("backend", options.backend, ("auto", "openvino")),
        ("device", options.device, ("auto", "cpu")),
    ):
        if value not in fits:
            raise DeviceError(
                f"int8 features come from OpenVINO on the CPU: leave --{name} {value} out,"
                f" and unset RN50FEAT_{name.upper()} if it is set"
            )
    if find_spec("openvino") is None:
        raise DeviceError("int8 features need OpenVINO: pip install 'rn50feat[openvino]'")
    require_int8()


def _few(options: EngineOptions) -> bool:
    """Check whether only a few images are to come, as in a search, so that small requests are quicker."""
    return 0 < options.batch_size < CPU_BATCH


def _wants_openvino(options: EngineOptions) -> bool:
    installed = find_spec("openvino") is not None
    if options.backend == "openvino" and not installed:
        raise DeviceError("OpenVINO is not installed: pip install 'rn50feat[openvino]', or use --backend torch")
    on_cpu = options.device == "cpu" or (options.device == "auto" and not _may_have_gpu())
    return options.backend == "openvino" or (options.backend == "auto" and installed and on_cpu)


def _may_have_gpu() -> bool:
    """Check, without importing torch, whether CUDA devices may exist: Linux shows them in /dev."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))
