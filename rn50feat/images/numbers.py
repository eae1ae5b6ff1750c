"""Bring grey images of any numbers to 8 bits.

In: the numbers of an image, what its file declares them to be, and the rule
for their range. Out: 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rn50feat.errors import ImageError
from rn50feat.images.provenance import value_limits


@dataclass(frozen=True)
class Numbers:
    """What the numbers of a grey image are, one a pixel.

    ``kind`` is u, i or f, as numpy has it; ``inverted`` where the smallest is
    white; the true values are ``scale`` times what is stored, plus ``zero``.
    """

    kind: str = "u"
    bits: int = 8
    inverted: bool = False
    scale: float = 1.0
    zero: float = 0.0

    def of(self, image: Image.Image) -> NDArray[Any]:
        """Return the numbers of an image as its file means them, whatever Pillow took them for."""
        stored = np.asarray(image)
        if stored.dtype.itemsize * 8 == self.bits and stored.dtype.kind != self.kind:
            stored = stored.view(f"{stored.dtype.byteorder}{self.kind}{stored.dtype.itemsize}")
        return stored if (self.scale, self.zero) == (1.0, 0.0) else stored * self.scale + self.zero


def to_8_bits(values: NDArray[Any], numbers: Numbers, rule: str) -> NDArray[np.uint8]:
    """Return `values`, of shape (height, width), as uint8 by the `rule` of `Preprocessing.value_range`.

    By type, integers of up to 16 bits are taken over all that their type
    holds; wider ones from 0 to 65535 and floats from 0 to 1, or, where some
    are beyond that, from their own smallest to their own largest.
    """
    if not np.isfinite(values).all():
        raise ImageError("holds pixels that are no finite numbers")
    rule = rule if numbers.bits > 8 else "type"
    own = float(values.min()), float(values.max())
    low, high = value_limits(rule) or (own if rule == "own" else _by_type(numbers, own))
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-30))
    found: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return 255 - found if numbers.inverted else found


def _by_type(numbers: Numbers, own: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and the largest number that `numbers` can hold, or `own` where that says little."""
    if numbers.kind != "f" and numbers.bits <= 16:
        low = -(2 ** (numbers.bits - 1)) if numbers.kind == "i" else 0
        first, last = (value * numbers.scale + numbers.zero for value in (low, low + 2**numbers.bits - 1))
        return min(first, last), max(first, last)
    usual = (0.0, 1.0 if numbers.kind == "f" else 65535.0)
    return usual if usual[0] <= own[0] and own[1] <= usual[1] else own
