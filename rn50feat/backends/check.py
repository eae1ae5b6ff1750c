"""Compare a fast way of running the network with the plain one before using it.

In: rows of both for the same crops. Out: how far they differ, relative to the
spread of the rows: with most weights, cosines of different images are near 1
and say little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rn50feat.images.provenance import Preprocessing

if TYPE_CHECKING:
    from rn50feat.backends.contract import Crops

# The largest error that rounding may cause, by precision. Measured with random weights: 9e-5 of a row's own distance
# from the mean in fp32 on an H100, 0.03 in fp16, 0.012 of the spread in bf16 on a CPU; a wrong kernel: about 1.
LIMITS = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.1}


def crops(preprocessing: Preprocessing) -> Crops:
    """Draw eight crops that exercise convolutions in different ways: flat, ramps, checks, rings and noise."""
    side = preprocessing.crop
    y, x = np.mgrid[:side, :side].astype(np.float32) * (255 / (side - 1))
    noise = np.random.default_rng(0).integers(0, 256, (side, side))
    rings = 127 + 127 * np.sin(np.hypot(x - 127, y - 127) / 6)
    plain = [0 * x, 0 * x + 255, x, y, (x // 5 + y // 5) % 2 * 255, (x // 36 + y // 36) % 2 * 255, noise, rings]
    coloured = [np.stack([each, np.roll(each, side // 6, 0) * 0.7, 255 - each], -1) for each in plain]
    return np.stack(coloured).astype(preprocessing.crop_dtype)


def error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Compute the largest distance of a row from the expected one, both (n, 2048), relative to the expected spread."""
    spread = np.sqrt(((expected - expected.mean(0)) ** 2).sum(1).mean())
    return float(np.nan_to_num(np.linalg.norm(actual - expected, axis=1).max() / spread, nan=np.inf))
