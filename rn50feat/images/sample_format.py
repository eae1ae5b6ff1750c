"""Convert grey samples of any type to 8 bits.

In: an image's samples, their declared format, and the rule for their range.
Out: 0 to 255.
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
class SampleFormat:
    """The format of a grey image's samples, one per pixel.

    ``kind`` is numpy's: u, i or f. ``inverted`` means that the smallest value
    is white. True values are ``scale`` times the stored ones, plus ``zero``.
    """

    kind: str = "u"
    bits: int = 8
    inverted: bool = False
    scale: float = 1.0
    zero: float = 0.0

    def values(self, image: Image.Image) -> NDArray[Any]:
        """Return an image's samples, shape (height, width), as its file means them, whatever Pillow assumed."""
        stored = np.asarray(image)
        if stored.dtype.itemsize * 8 == self.bits and stored.dtype.kind != self.kind:
            stored = stored.view(f"{stored.dtype.byteorder}{self.kind}{stored.dtype.itemsize}")
        return stored if (self.scale, self.zero) == (1.0, 0.0) else stored * self.scale + self.zero


def to_8_bits(values: NDArray[Any], samples: SampleFormat, rule: str) -> NDArray[np.uint8]:
    """Scale `values`, shape (height, width[, channels]), to uint8 by the `rule` of `Preprocessing.value_range`.

    The rule "type" maps the whole range of integers of up to 16 bits. Wider
    integers are mapped from 0 to 65535 and floats from 0 to 1, or from the
    smallest value to the largest if any lies outside. Raises `ImageError` for
    NaN and infinite values.
    """
    if not np.isfinite(values).all():
        raise ImageError("has pixels that are NaN or infinite")
    rule = rule if samples.bits > 8 else "type"
    own = float(values.min()), float(values.max())
    low, high = value_limits(rule) or (own if rule == "own" else _by_type(samples, own))
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-30))
    grey: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return 255 - grey if samples.inverted else grey


def _by_type(samples: SampleFormat, own: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and largest value that the format can hold, or `own` where that range is too wide."""
    if samples.kind != "f" and samples.bits <= 16:
        low = -(2 ** (samples.bits - 1)) if samples.kind == "i" else 0
        first, last = (value * samples.scale + samples.zero for value in (low, low + 2**samples.bits - 1))
        return min(first, last), max(first, last)
    usual = (0.0, 1.0 if samples.kind == "f" else 65535.0)
    return usual if usual[0] <= own[0] and own[1] <= usual[1] else own
