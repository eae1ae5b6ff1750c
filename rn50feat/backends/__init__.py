"""What runs the network: crops in, features out.

In: crops, uint8 of shape (n, 224, 224, 3) in RGB. Out: features, float32 of
shape (n, 2048). One module for each library that can do it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """A network on a device."""

    name: str
    device: str
    precision: str  # fp32, bf16 or fp16
    weights_sha256: str  # of the weights that it computes with

    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features, float32 of shape (n, 2048), of crops, uint8 of shape (n, 224, 224, 3)."""
