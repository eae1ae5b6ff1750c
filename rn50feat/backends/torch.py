"""Run the network with torch, on the CPU or on CUDA devices.

In: a module of `network`, crops as uint8 or float32 of shape (n, 224, 224, 3).
Out: features, float32 of shape (n, 2048). Several devices take batches from
one queue, a copy of the network on each.
"""

from __future__ import annotations

import copy
import logging
import queue
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rn50feat.backends import CPU_BATCH, cpu_precision, cuda
from rn50feat.backends.fused import fused
from rn50feat.errors import DeviceError
from rn50feat.network import Network, Normalized
from rn50feat.provenance import Preprocessing

if TYPE_CHECKING:
    from rn50feat.backends import Crops

logger = logging.getLogger(__name__)

# Batches at once on a CPU: while the threads of one wait for each other, those of the other compute (43.6 against
# 40.9 images/s).
CPU_LANES = 2

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """The network on one device or several, in one precision; a `Backend`."""

    name = "torch"

    def __init__(self, network: Network, preprocessing: Preprocessing, *, device: str, precision: str) -> None:
        """Prepare `network` for `device` (auto, cpu, cuda, cuda:N) in `precision` (auto, fp32, bf16, fp16).

        auto and cuda mean all CUDA devices that are visible. Raises
        `DeviceError` for a device that this machine lacks or a precision that
        it cannot compute in.
        """
        self.weights_sha256 = network.sha256
        devices = _devices(device)
        dtype = _precision(precision, devices[0])
        self.device = ",".join(map(str, devices))
        self.precision = next(name for name, value in _DTYPES.items() if value == dtype)
        lanes: Sequence[_Lane]
        if devices[0].type == "cuda":
            self.batch_size = cuda.batch_size(devices[0], dtype.itemsize)
            lanes = _cuda_lanes(network, preprocessing, devices, dtype)
        else:
            self.batch_size = CPU_BATCH
            lanes = CPU_LANES * [_CpuLane(_placed(network, preprocessing, devices[0], dtype))]
        self.lanes = len(lanes)
        self._most = sys.maxsize  # pictures that go through at once
        self._free: queue.LifoQueue[_Lane] = queue.LifoQueue()  # the lane used last comes first: it is captured
        for lane in reversed(lanes):
            self._free.put(lane)

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Return features, float32 of shape (n, 2048), of crops, uint8 or float32 of shape (n, 224, 224, 3).

        Where the device has too little memory, the batch is halved from then
        on; raises `DeviceError` when it is too little for one picture.
        """
        parts, first = [], 0
        lane = self._free.get()
        try:
            while first < len(crops):
                part = crops[first : first + self._most]
                try:
                    parts.append(lane.features(part, self._most))
                    first += len(part)
                except RuntimeError as error:
                    if not _lacks_memory(error):
                        raise
                    self._halve(len(part), error)
                    lane.release()
        finally:
            self._free.put(lane)
        return np.concatenate(parts)

    def _halve(self, size: int, error: RuntimeError) -> None:
        if size == 1:
            raise DeviceError(
                f"{self.device} has too little memory for one picture: name another with --device cuda:N, or use cpu"
            ) from error
        self._most = min(self._most, size // 2)
        logger.warning("%s has too little memory for %d pictures: going on with %d", self.device, size, self._most)


class _Lane(Protocol):
    """A way through the network, for one batch at a time."""

    def features(self, crops: Crops, most: int) -> NDArray[np.float32]:
        """Return the features of `crops`, which are at most `most`."""

    def release(self) -> None:
        """Give memory back, before smaller batches come."""


class _CpuLane:
    """The network on the CPU; several threads may share it."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def features(self, crops: Crops, most: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            features: NDArray[np.float32] = self._network(torch.from_numpy(crops)).numpy()
        return features

    def release(self) -> None:
        pass


def _cuda_lanes(
    network: Network, preprocessing: Preprocessing, devices: list[torch.device], dtype: torch.dtype
) -> list[_Lane]:
    """Return the lanes of all devices, the first one of each before any second one."""

    def copied(device: torch.device) -> torch.nn.Module:
        with cuda.settings():
            return _placed(network, preprocessing, device, dtype)

    builds = [(device, cuda.once(partial(copied, device))) for device in devices]
    return [cuda.Lane(build, device, preprocessing) for _ in range(cuda.LANES) for device, build in builds]


def _placed(
    network: Network, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """Return a copy of `network` on `device`, fused where its library allows, that takes crops."""
    resnet = copy.deepcopy(network.module).to(device, dtype).to(memory_format=torch.channels_last)
    example = torch.zeros(1, 3, 64, 64, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return Normalized(fused(resnet, example), preprocessing).to(device)


def _lacks_memory(error: RuntimeError) -> bool:
    """Tell whether a batch is too large: cuDNN without room for its workspace finds no engine."""
    return isinstance(error, torch.OutOfMemoryError) or "unable to find an engine" in str(error)


def _devices(name: str) -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return [torch.device("cpu")]
    if name in ("auto", "cuda") and count:
        return [torch.device("cuda", index) for index in range(count)]
    if not (match := re.fullmatch(r"cuda(?::(\d+))?", name)):
        raise DeviceError(f"there is no device {name}: give auto, cpu, cuda or cuda:N")
    if int(match[1] or 0) >= count:
        raise DeviceError(f"device {name} is not here ({count} CUDA devices are): use --device auto")
    return [torch.device(name)]


def _precision(name: str, device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return _DTYPES["fp16" if name == "auto" else name]
    if name == "fp16":
        raise DeviceError("precision fp16 needs a CUDA device: use bf16 or fp32 on the CPU")
    return _DTYPES[cpu_precision(name)]
