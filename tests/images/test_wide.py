"""wide: sixteen bits are scaled, not clipped."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image
from scenes import encoded
from shown import decode, middle, png


def test_16_bit_colour_is_scaled_not_clipped() -> None:
    assert middle(png(30, 30, 16, 2, struct.pack(">HHH", 0x8000, 0x4000, 0xFFFF) * 30)) == (128, 64, 255)
    assert middle(png(30, 30, 16, 0, struct.pack(">H", 0x4000) * 30)) == (64, 64, 64)


def test_values_beyond_their_range_are_stretched() -> None:
    ramp = np.linspace(-3, 5, 300 * 300).reshape(300, 300).astype(np.float32)
    crop = decode(encoded(Image.fromarray(ramp), "TIFF"))
    assert crop.min() < 30
    assert crop.max() > 225
    assert abs(int(crop[112, 112, 0]) - 127) < 3
