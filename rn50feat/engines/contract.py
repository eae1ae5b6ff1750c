"""Define the contract of an engine: references in, features out, every reference exactly once.

In: a stream of references to images. Out: a stream of `Batch`es. An engine
decodes and runs the network, on this machine or on others; it never opens a
store, and an image that cannot be decoded never stops it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from rn50feat.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rn50feat.images.provenance import Provenance
    from rn50feat.model.weights import Weights
    from rn50feat.sources.reference import Reference


@dataclass(frozen=True)
class Failure:
    """An image without features, and why.

    ``cause`` is content if the bytes are at fault, access if they could not
    be read this time, vanished if the file is gone.
    """

    reference: Reference
    reason: str
    cause: Literal["content", "access", "vanished"] = "content"


@dataclass(frozen=True)
class Batch:
    """Features, float32 of shape (n, 2048), of n references in the same order; and failures.

    The references carry the size, time and digest of the very bytes that were
    decoded. ``recomputed`` counts images that int8 could not represent.
    """

    references: tuple[Reference, ...]
    features: NDArray[np.float32]
    failures: tuple[Failure, ...]
    recomputed: int = 0


@dataclass(frozen=True)
class EngineOptions:
    """How an engine computes; none of it but int8 changes a vector by more than rounding.

    ``backend`` is auto, torch or openvino; ``device`` auto, cpu, cuda or
    cuda:N; ``precision`` auto, fp32, bf16, fp16 or int8 (for a new store);
    ``batch_size`` the number of images that the network takes at once, 0 for 16 or more on the CPU and
    what free memory allows on a GPU; ``workers`` the number of decoding
    processes, 0 for one a core.
    """

    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 0
    workers: int = 0
    max_megapixels: int = 200

    def __post_init__(self) -> None:
        """Raise `DeviceError` for what no machine has, even if there is nothing to compute."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise DeviceError(f"there is no device {self.device}: use auto, cpu, cuda or cuda:N")
        if self.backend == "openvino" and self.device.startswith("cuda"):
            raise DeviceError(f"OpenVINO computes on the CPU here, not on {self.device}: use --backend torch")
        if self.precision == "int8" and (self.device.startswith("cuda") or self.backend == "torch"):
            raise DeviceError("precision int8 needs OpenVINO on the CPU: leave --device and --backend out")
        if self.precision == "fp16" and (self.device == "cpu" or self.backend == "openvino"):
            raise DeviceError("precision fp16 needs a CUDA device: use bf16 or fp32 on the CPU")


class Engine(Protocol):
    """A context manager; leaving it frees what the engine holds."""

    backend: str
    device: str
    precision: str  # fp32, bf16, fp16 or int8
    weights_sha256: str  # of the weights that it computes with

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds for which each stage, decode and network, was busy so far."""

    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        """Yield every reference exactly once, with its features or its failure."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None: ...


class StartEngine(Protocol):
    """A function that starts an engine; raises `WeightsError` (`MissingWeightsError` for none) or `DeviceError`."""

    def __call__(self, weights: Weights, provenance: Provenance, options: EngineOptions) -> Engine:
        """Start an engine with `weights`, for features of `provenance`."""
