"""Run the network with torch, on the CPU or a CUDA device.

In: a module of `network`, crops as uint8 of shape (n, 224, 224, 3). Out:
features, float32 of shape (n, 2048).
"""

from __future__ import annotations

import logging
import re
import sys

import numpy as np
import torch
from numpy.typing import NDArray

from rn50feat.backends import cpu_precision
from rn50feat.errors import DeviceError
from rn50feat.network import Network, Normalized
from rn50feat.provenance import Preprocessing

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """The network on one device in one precision; a `Backend`."""

    name = "torch"

    def __init__(self, network: Network, preprocessing: Preprocessing, *, device: str, precision: str) -> None:
        """Move `network` to `device` (auto, cpu, cuda, cuda:N) in `precision` (auto, fp32, bf16, fp16).

        Raises `DeviceError` for a device that this machine lacks or a
        precision that it cannot compute in.
        """
        self.weights_sha256 = network.sha256
        self._most = sys.maxsize  # pictures that go through at once
        self._device = _device(device)
        self._dtype = _precision(precision, self._device)
        self.device = str(self._device)
        self.precision = next(name for name, dtype in _DTYPES.items() if dtype == self._dtype)
        module = network.module.to(self._device, self._dtype).to(memory_format=torch.channels_last)
        self._network = Normalized(module, preprocessing).to(self._device)

    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features, float32 of shape (n, 2048), of crops, uint8 of shape (n, 224, 224, 3).

        Where the device has too little memory, the batch is halved from then
        on; raises `DeviceError` when it is too little for one picture.
        """
        parts, first = [], 0
        while first < len(crops):
            part = crops[first : first + self._most]
            try:
                parts.append(self._compute(part))
                first += len(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise DeviceError(
                        f"{self.device} has too little memory for one picture: use --device cpu"
                    ) from error
                self._most = len(part) // 2
                logger.warning(
                    "%s has too little memory for %d pictures: going on with %d", self.device, len(part), self._most
                )
                torch.cuda.empty_cache()
        return np.concatenate(parts)

    def _compute(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        # TF32, which cuDNN uses unless told otherwise, keeps 10 bits of a float32's 23.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False)
        with torch.inference_mode(), exact:
            features: NDArray[np.float32] = self._network(torch.from_numpy(crops).to(self._device)).cpu().numpy()
        return features


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device(name)
    if not (match := re.fullmatch(r"cuda(?::(\d+))?", name)):
        raise DeviceError(f"there is no device {name}: give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        raise DeviceError(f"device {name} is not here ({count} CUDA devices are): use --device auto")
    return torch.device(name)


def _precision(name: str, device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return _DTYPES["fp16" if name == "auto" else name]
    if name == "fp16":
        raise DeviceError("precision fp16 needs a CUDA device: use bf16 or fp32 on the CPU")
    return _DTYPES[cpu_precision(name)]
