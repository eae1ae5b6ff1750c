"""Encode images that are only in memory, so that they are decoded like files."""

from __future__ import annotations

import io
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from rn50feat.errors import ImageError

InMemory = Image.Image


def from_pixels(pixels: NDArray[Any]) -> InMemory:
    """Make an image of its pixels, uint8 of shape (height, width) or (height, width, 3); raise `ImageError`."""
    try:
        return Image.fromarray(pixels)
    except (TypeError, ValueError) as error:
        raise ImageError(f"of shape {pixels.shape} and {pixels.dtype} is no image: give uint8 pixels") from error


def as_png(image: InMemory) -> bytes:
    """Encode an image as PNG, with its EXIF; one in a mode that PNG does not have, such as CMYK, becomes RGB."""
    file = io.BytesIO()
    try:
        image.save(file, "PNG", exif=image.getexif())
    except OSError:
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG", exif=image.getexif())
    return file.getvalue()
