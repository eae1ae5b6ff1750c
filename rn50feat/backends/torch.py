"""Run the network with torch, on the CPU or on CUDA devices.

In: a module from `network`, and crops as uint8 or float32 of shape
(n, 224, 224, 3). Out: features, float32 of shape (n, 2048). Several devices,
each with a copy of the network, take batches from one queue.
"""

from __future__ import annotations

import copy
import logging
import queue
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rn50feat.backends import check, cuda
from rn50feat.backends.contract import CPU_BATCH, cpu_precision
from rn50feat.backends.exact import exact
from rn50feat.backends.fused import fused_on_cpu, fused_on_cuda
from rn50feat.durable import limits
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model.network import Network, Normalized

if TYPE_CHECKING:
    from rn50feat.backends.contract import Crops

logger = logging.getLogger(__name__)

Compute = Callable[["Crops"], "NDArray[np.float32]"]

# Batches at once on a CPU: while the threads of one wait for each other, those of the other compute (43.6 instead of
# 40.9 images/s).
CPU_LANES = 2

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """The network on one device or several, in one precision; a `Backend`."""

    name = "torch"
    recomputed = 0

    def __init__(self, network: Network, preprocessing: Preprocessing, *, device: str, precision: str) -> None:
        """Prepare `network` for `device` (cpu, cuda, cuda:N, auto) in `precision` (auto, fp32, bf16, fp16).

        cuda means all visible CUDA devices, auto those of them that can run
        the network. Raises `DeviceError` for a device that this machine does
        not have or that cannot run the network, and for a precision that the
        device does not support.
        """
        self.weights_sha256 = network.sha256
        if device == "cpu":
            dtype = _DTYPES[cpu_precision(precision)]
            if (cores := limits.quota()) is not None:  # torch would start a thread for each core of the machine
                torch.set_num_threads(cores)
            self.batch_size, self.device = CPU_BATCH, device
            lanes = CPU_LANES * [_on_cpu(network, preprocessing, dtype)]
        else:
            devices = cuda.devices(device)
            dtype = cuda.precision(precision, devices[0])
            placed = _on_cuda(network, preprocessing, devices, dtype, drop=device == "auto")
            self.batch_size = min(cuda.batch_size(each, dtype.itemsize) for each in placed)
            self.device = ",".join(map(str, placed))
            size = PartSize(self.device)
            # The first lane of every device comes before any second one.
            free = [cuda.Lane(module, each) for _ in range(cuda.LANES) for each, module in placed.items()]
            lanes = [partial(in_parts, lane, size=size) for lane in free]
        self.precision = next(name for name, value in _DTYPES.items() if value == dtype)
        self.lanes = len(lanes)
        self._free: queue.LifoQueue[Compute] = queue.LifoQueue()
        for lane in reversed(lanes):
            self._free.put(lane)

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Compute the features, float32 (n, 2048), of crops, uint8 or float32 (n, 224, 224, 3).

        If the device has too little memory, a batch is computed in parts;
        raises `DeviceError` if it has too little for one image.
        """
        lane = self._free.get()
        try:
            return lane(crops)
        finally:
            self._free.put(lane)


class PartSize:
    """The number of images that go through a device at once: halved if memory runs out, doubled while parts fit."""

    _PATIENCE = 32  # parts that must fit before a size that failed is tried again; a trial costs less than one part

    def __init__(self, device: str) -> None:
        """Start without a limit; messages mention `device`."""
        self._device = device
        self._lock = Lock()
        self.most = self._failed = 1 << 30  # the size of parts, and the smallest size that failed recently
        self._fits = 0  # parts of `most` images that have fitted since
        self._reported: set[int] = set()

    def fitted(self, size: int) -> None:
        """Record that a part of `size` images fitted."""
        with self._lock:
            if size < self.most:
                return
            self._fits += 1
            if self._fits == self._PATIENCE:
                self._failed, self._fits = 1 << 30, 0
            if 2 * self.most < self._failed:
                self.most *= 2

    def failed(self, size: int, error: RuntimeError) -> None:
        """Record that there was too little memory for `size` images; raise `DeviceError` for one image."""
        if size == 1:
            raise DeviceError(
                f"{self._device} has too little memory for one image ({cuda.reason(error)}): "
                "free some, name another device with --device cuda:N, or use --device cpu"
            ) from error
        with self._lock:
            self.most, self._failed, self._fits = size // 2, size, 0
            if size not in self._reported:
                logger.warning(
                    "%s has too little memory for %d images: continuing with %d", self._device, size, size // 2
                )
            self._reported.add(size)


def in_parts(lane: cuda.Lane, crops: Crops, size: PartSize) -> NDArray[np.float32]:
    """Compute the features of `crops`, float32 (n, 2048), as many at once as memory allows."""
    parts, first = [], 0
    while first < len(crops):
        part = crops[first : first + size.most]
        try:
            parts.append(lane.features(part))
        except RuntimeError as error:
            if not cuda.lacks_memory(error):
                raise
            size.failed(len(part), error)
        else:
            size.fitted(len(part))
            first += len(part)
            continue
        lane.release()  # only here: until the error is gone, its traceback keeps the batch's memory alive
    return np.concatenate(parts)


def _on_cpu(network: Network, preprocessing: Preprocessing, dtype: torch.dtype) -> Compute:
    """Build a function that runs a copy of `network` on the CPU, fused if oneDNN can; threads may share it."""
    resnet = copy.deepcopy(network.module).to(dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        module = Normalized(fused_on_cpu(resnet, dtype), preprocessing)

    def compute(crops: Crops) -> NDArray[np.float32]:
        with torch.inference_mode(), exact():
            features: NDArray[np.float32] = module(torch.from_numpy(crops)).numpy()
        return features

    return compute


def _on_cuda(
    network: Network, preprocessing: Preprocessing, devices: list[torch.device], dtype: torch.dtype, *, drop: bool
) -> dict[torch.device, torch.nn.Module]:
    """Copy `network`, from crops to features, to each of `devices` whose rows are correct.

    Raises `DeviceError` for any other device; with `drop`, only if none is correct.
    """
    given = check.crops(preprocessing)
    expected = _on_cpu(network, preprocessing, torch.float32)(given)
    limit = check.LIMITS[next(name for name, value in _DTYPES.items() if value == dtype)]

    def place(device: torch.device, finish: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
        resnet = copy.deepcopy(network.module).to(device, dtype).to(memory_format=torch.channels_last)
        return Normalized(finish(resnet), preprocessing).to(device)

    def error(lane: cuda.Lane) -> float:
        return check.error(in_parts(lane, given, PartSize(str(device))), expected)

    working, problems = {}, []
    for device in devices:
        try:
            candidates = [partial(place, device, fused_on_cuda), partial(place, device, lambda resnet: resnet)]
            working[device] = cuda.working(candidates, device, error, limit)
        except DeviceError as refused:
            problems.append(refused)
    if problems and not (drop and working):
        raise problems[0]
    for problem in problems:
        logger.warning("continuing without a device: %s", problem)
    return working
