"""in_memory: what is encoded decodes to the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rn50feat.errors import ImageError
from rn50feat.images.in_memory import as_png, from_pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_every_mode_keeps_its_pixels(mode: str) -> None:
    image = Image.new("I;16" if mode == "I;16" else "RGB", (9, 7), 300 if mode == "I;16" else (200, 30, 90))
    image = image.convert(mode)
    with Image.open(io.BytesIO(as_png(image))) as read:
        assert read.size == (9, 7)
        expected = image.convert("RGB") if mode in ("CMYK", "YCbCr") else image
        assert read.convert(expected.mode).tobytes() == expected.tobytes()


def test_the_orientation_stays() -> None:
    image = Image.new("RGB", (4, 3))
    image.getexif()[0x0112] = 6
    with Image.open(io.BytesIO(as_png(image))) as read:
        assert read.getexif()[0x0112] == 6


def test_pixels_of_another_kind_are_named() -> None:
    assert from_pixels(np.zeros((3, 4, 3), np.uint8)).size == (4, 3)
    with pytest.raises(ImageError, match="of shape .2, 3, 4, 5. and uint8 is no image: give uint8 pixels"):
        from_pixels(np.zeros((2, 3, 4, 5), np.uint8))
