"""Run the network on CUDA devices.

In: crops in host memory. Out: features. A lane is a stream: copying its batch
overlaps with computing another lane's. Every device is checked when it starts:
its rows are compared with the CPU's.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray

from rn50feat.backends.exact import exact
from rn50feat.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from rn50feat.backends.contract import Crops

logger = logging.getLogger(__name__)

LANES = 2  # per device: 24,078 images/s on an H100, against 19,454 with one
LARGEST = 256  # images per batch, unless the user chooses another number
# Values in device memory for one image in one lane: the three largest layers (2.4 million values) and cuDNN's
# workspace, doubled for safety; a batch that is still too large is halved.
_VALUES = 8_000_000
# How each library reports that memory ran out. Without memory for its workspace, cuDNN finds no engine; without
# memory for their handles, cuDNN and cuBLAS are "not initialized".
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(CUDNN|CUBLAS)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|unable to find an engine", re.IGNORECASE
)


def devices(name: str) -> list[torch.device]:
    """Resolve `name` (auto, cuda or cuda:N) to devices; raise `DeviceError` with torch's reason if there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an outdated driver, which the error below quotes
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not (match := re.fullmatch(r"auto|cuda(?::(\d+))?", name)):
        raise DeviceError(f"there is no device {name}: use auto, cpu, cuda or cuda:N")
    if not count:
        raise DeviceError(f"torch {torch.__version__} finds no CUDA device ({_why_none()}): use --device cpu")
    if match[1] is None:
        return [torch.device("cuda", index) for index in range(count)]
    if int(match[1]) >= count:
        existing = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"there is no device {name}, only {existing}: use --device cuda")
    return [torch.device(name)]


def precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve `name` (auto, fp32, bf16 or fp16) to a dtype; raise `DeviceError` if `device` does not support it."""
    capability = torch.cuda.get_device_capability(device)
    if name == "bf16" and capability < (8, 0):
        raise DeviceError(f"{describe(device)} does not support bf16, which needs capability 8.0: use --precision fp16")
    if name == "auto":  # below 7.0 there are no tensor cores, and fp16 is slower than fp32 on most cards
        return torch.float16 if capability >= (7, 0) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def batch_size(device: torch.device, itemsize: int) -> int:
    """Return the largest power of two of images that fit in the free memory of `device`, in each lane."""
    free, _ = torch.cuda.mem_get_info(device)
    room = free // (LANES * _VALUES * itemsize)
    return min(LARGEST, 1 << int(math.log2(max(1, room))))


class Lane:
    """A stream of one device, for one batch at a time."""

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        """Use `network`, from crops to features, on `device`; lanes of a device share it."""
        self._network, self._device = network, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Waiting threads sleep: busy ones would take cores from the decoders.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def features(self, crops: Crops) -> NDArray[np.float32]:
        """Compute the features, float32 (n, 2048), of n crops; raises torch's `RuntimeError`."""
        with torch.inference_mode(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            sent = _pinned(torch.from_numpy(crops))
            with exact():
                rows = self._network(sent.to(self._device, non_blocking=True))
            received = _pinned(torch.empty(rows.shape, dtype=rows.dtype))
            received.copy_(rows, non_blocking=True)
            self._done.record()
        self._done.synchronize()
        return received.numpy().copy()

    def release(self) -> None:
        """Free memory after a batch that was too large."""
        self._stream.synchronize()
        torch.cuda.empty_cache()


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Copy `tensor` to pinned memory, which the device reads and writes by itself; return `tensor` if there is none."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor


def lacks_memory(error: RuntimeError) -> bool:
    """Check whether `error` says that the device has too little memory for a batch."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def reason(error: Exception) -> str:
    """Return the first sentence of torch's message, without CUDA's advice for developers."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(". ")


def working(
    candidates: Sequence[Callable[[], torch.nn.Module]],
    device: torch.device,
    error_of: Callable[[Lane], float],
    limit: float,
) -> torch.nn.Module:
    """Return the first network of `candidates` whose rows are correct on `device`.

    Each candidate places a network, from crops to features, on `device`.
    `error_of` compares a lane's rows with the CPU's; more than `limit` is
    wrong. Raises `DeviceError` with the reason if none is correct.
    """
    problem = ""
    for place in candidates:
        try:
            network = place()
            error = error_of(Lane(network, device))
        except RuntimeError as failure:
            problem = reason(failure)
            if lacks_memory(failure):
                raise DeviceError(
                    f"{describe(device)} has too little memory for the network ({problem}): "
                    "free some, name another device with --device cuda:N, or use --device cpu"
                ) from failure
            logger.info("%s: %s", device, problem)
        else:
            if error < limit:
                return network
            problem = f"its rows differ from the CPU's by {error:.2g} of their spread; {limit:g} is allowed"
            logger.warning("%s: %s", device, problem)
    built = " ".join(torch.cuda.get_arch_list()) or "no GPU"
    raise DeviceError(
        f"{describe(device)} cannot run the network with torch {torch.__version__}, "
        f"which is built for {built} ({problem}): use --device cpu"
    )


def describe(device: torch.device) -> str:
    """Describe a device with its card and capability: cuda:0 (Tesla T4, capability 7.5)."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, capability {major}.{minor})"


def _why_none() -> str:
    """Ask torch why there is no CUDA device."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        return reason(error)
    return "it counts 0 devices"
