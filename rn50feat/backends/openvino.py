"""Run the network with OpenVINO on the CPU.

In: the SHA-256 of the network's weights, and crops as uint8 or float32 of
shape (n, 224, 224, 3). Out: features, float32 of shape (n, 2048). The compiled
network is kept in the user's cache folder and loads from there without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import queue
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rn50feat.backends.contract import CPU_BATCH, cpu_precision
from rn50feat.durable import atomic, caches, limits
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Preprocessing, Provenance

if TYPE_CHECKING:
    from rn50feat.backends.contract import Crops
    from rn50feat.model.network import Network

# OpenVINO reports each conversion over the network unless its telemetry package
# is missing; rn50feat does not do that behind a user's back.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

logger = logging.getLogger(__name__)

# Images per request: few, or else the fastest number, which depends on the processor: 2 with AVX-512 BF16 (112, 108
# and 97 images/s on 2 cores for 2, 4 and 32), 8 with AMX (10.0, 9.3, 8.6 and 9.3 ms of a core for 2, 4, 8 and 16). A
# single query takes 36 ms with 2, and 72 with 4. They are always padded, so that a row does not depend on its batch.
FEW = 2
LARGER = (4, 8, 16)
_MEASURED = 32  # images


@cache
def _core() -> openvino.Core:
    """Return the process's only core, which is never freed.

    On CPUs with AMX, each core installs a signal stack for its thread, and restores the previous one when freed. If
    that one belonged to a core freed earlier, the next signal kills the process (OpenVINO 2026.4).
    """
    return openvino.Core()


class OpenVinoBackend:
    """The network compiled by OpenVINO; a `Backend`."""

    name = "openvino"
    device = "cpu"
    recomputed = 0
    lanes = 2  # the next batch has requests when one runs out of them: a core idles 0.4 ms per image, not 1.2

    def __init__(
        self, provenance: Provenance, load: Callable[[], Network], *, precision: str, few: bool = False
    ) -> None:
        """Load the compiled network from the cache, or compile the network that `load` returns and cache it.

        For `few` images, requests are small; else they have the size that is
        fastest on this processor. Raises `DeviceError` for a precision that the
        CPU does not support, and the errors of `load`.
        """
        computed = cpu_precision(precision)
        self.precision = computed if provenance.quantization is None else "int8"
        self.weights_sha256 = provenance.weights_sha256
        self._few = few
        self._settings: dict[str, str | int] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[computed],
        }
        if (cores := limits.quota()) is not None:  # OpenVINO would start a thread for each core of the machine
            self._settings["INFERENCE_NUM_THREADS"] = cores
        compiled = self._cached(provenance) if self.weights_sha256 else None
        if compiled is None:
            network = load()
            self.weights_sha256 = network.sha256
            compiled = self._compile(network, provenance)
        self.request_size = compiled.input(0).shape[0]
        self._widths = [output.shape[1] for output in compiled.outputs]
        self._queues: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.lanes):
            self._queues.put(requests := openvino.AsyncInferQueue(compiled))
        # At least one request for each group of cores.
        self.batch_size = max(CPU_BATCH, self.request_size * len(requests))

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Compute the features, float32 (n, 2048), of crops of the preprocessing's dtype, (n, 224, 224, 3)."""
        return self._outputs(crops)[0]

    def _outputs(self, crops: Crops) -> list[NDArray[np.float32]]:
        """Compute what the network has for each crop: its features, and any other outputs."""
        results = [np.empty((len(crops), width), np.float32) for width in self._widths]
        size = self.request_size

        def keep(request: Any, first: int) -> None:
            for i, result in enumerate(results):
                result[first : first + size] = request.get_output_tensor(i).data[: len(result) - first]

        requests = self._queues.get()
        try:
            requests.set_callback(keep)
            for first in range(0, len(crops), size):
                part = crops[first : first + size]
                if len(part) < size:
                    part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
                requests.start_async({0: part}, first)
            requests.wait_all()
        finally:
            self._queues.put(requests)
        return results

    def _cached(self, provenance: Provenance) -> Any:
        path = self._path(provenance.weights_sha256, provenance, few=self._few)
        if path is None or not os.path.exists(path):
            return None
        caches.use(path)
        try:
            self._blob = np.memmap(path, np.uint8, "c")  # stays mapped: the network may refer to it
            content = openvino.Tensor(self._blob, shared_memory=True)
            return _core().import_model(content, "CPU", self._settings)
        except (RuntimeError, ValueError):  # truncated, or made by another OpenVINO in spite of its name
            logger.warning("%s is damaged: compiling the network again", path)
            return None

    def _compile(self, network: Network, provenance: Provenance) -> Any:
        """Compile the network with small requests and, unless it is for few images, with the fastest ones."""
        model = self._model(network, provenance)
        fastest = small = self._compiled(model, FEW)
        self._keep(small, self._path(network.sha256, provenance, few=True))
        if self._few:
            return small
        least = _seconds(small)
        for size in LARGER:
            if (seconds := _seconds(larger := self._compiled(model, size))) > least:
                break
            fastest, least = larger, seconds
        self._keep(fastest, self._path(network.sha256, provenance, few=False))
        return fastest

    def _compiled(self, model: Any, size: int) -> Any:
        model.reshape([size, *model.input(0).shape[1:]])
        try:
            return _core().compile_model(model, "CPU", self._settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            remedy = {
                "fp32": "use --backend torch",
                "int8": "use another machine, or another store without --precision int8",
            }.get(self.precision, "use --precision fp32, or --backend torch")
            raise DeviceError(
                f"OpenVINO cannot compute in {self.precision} on this CPU ({reason}): {remedy}"
            ) from error

    def _keep(self, compiled: Any, path: Path | None) -> None:
        if path is not None:
            content = io.BytesIO()
            compiled.export_model(content)
            with contextlib.suppress(OSError, DeviceError):  # without a cache, the next start is just slower
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic.written([path], kind=DeviceError) as (file,):
                    file.write(content.getvalue())
            caches.use(path)

    def _model(self, network: Network, provenance: Provenance) -> Any:
        """Make the OpenVINO model to compile: from crops to features, and any other outputs."""
        return convert(network, provenance.preprocessing)

    def _path(self, sha256: str, provenance: Provenance, *, few: bool) -> Path | None:
        """Return the cache path of the compiled network, named for all that it depends on; None without a cache."""
        processor = _core().get_property("CPU", "FULL_DEVICE_NAME")
        crops = provenance.preprocessing
        normalisation = (crops.mean, crops.std, crops.white, crops.crop_dtype, crops.crop)
        program = (self._settings, FEW if few else LARGER, openvino.__version__, processor)
        ranges = provenance.quantization and provenance.quantization.ranges
        facts = (sha256, provenance.network, *normalisation, *program, ranges)
        return caches.compiled_path(hashlib.sha256(repr(facts).encode()).hexdigest()[:32])


def _seconds(compiled: Any) -> float:
    """Measure the time of the processor for 32 images, as far as other programs let it be measured."""
    requests = openvino.AsyncInferQueue(compiled)
    crops = np.zeros(compiled.input(0).shape, compiled.input(0).element_type.to_dtype())
    times = []
    for _ in range(3):
        begun = time.process_time()
        for _ in range(0, _MEASURED, len(crops)):
            requests.start_async({0: crops})
        requests.wait_all()
        times.append(time.process_time() - begun)
    return min(times)


# What was converted last, while its network is in use: int8 needs four models of it, and converting takes 10 s.
_converted: WeakKeyDictionary[Network, tuple[Preprocessing, Any]] = WeakKeyDictionary()


def convert(network: Network, preprocessing: Preprocessing) -> Any:
    """Convert `network` to an OpenVINO model from crops to features."""
    if network not in _converted or _converted[network][0] != preprocessing:
        _converted[network] = preprocessing, _convert(network, preprocessing)
    return _converted[network][1].clone()


def _convert(network: Network, preprocessing: Preprocessing) -> Any:
    import torch

    from rn50feat.model.network import Normalized

    dtype = getattr(torch, preprocessing.crop_dtype)
    example = torch.zeros(FEW, preprocessing.crop, preprocessing.crop, 3, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from torch.jit, which OpenVINO calls
        model = openvino.convert_model(Normalized(network.module, preprocessing), example_input=example)
    model.reshape([FEW, preprocessing.crop, preprocessing.crop, 3])
    return model
