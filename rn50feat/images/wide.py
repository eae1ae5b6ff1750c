"""Read 16-bit colour in full; Pillow keeps only the upper byte of each sample.

In: an image that Pillow opened but has not decoded yet, its bytes, and the
rule for its value range. Out: the image in 8 bits by that rule.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image, ImageFile

from rn50feat.errors import ImageError
from rn50feat.images.sample_format import SampleFormat, to_8_bits

# The byte order of the samples -> the one with which Pillow keeps their lower bytes.
_OTHER = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}


def is_wide(image: ImageFile.ImageFile) -> bool:
    """Check whether an image that is not decoded yet has several 16-bit channels."""
    return "I" not in image.mode and any(_rawmode(tile)[-4:] in _OTHER for tile in image.tile)


def load(data: bytes, image: ImageFile.ImageFile, rule: str) -> None:
    """Decode an image into `image`, scaling its colours to 8 bits by `rule`; transparency is left as it is.

    Raises `ImageError` for channels other than red, green and blue.
    """
    if image.mode not in ("RGB", "RGBA"):
        raise ImageError(
            "has 16-bit channels other than red, green and blue, which --range does not support: convert it to RGB"
        )
    with Image.open(io.BytesIO(data), formats=[image.format or ""]) as lower:
        lower.tile = [_exchanged(tile) for tile in image.tile]
        low = np.asarray(lower).astype(np.uint16)
    values = np.asarray(image).astype(np.uint16) << 8 | low
    bands = Image.fromarray(to_8_bits(values[..., :3], SampleFormat(bits=16), rule)).split()
    image.im = Image.merge(image.mode, [*bands, *image.split()[3:]]).im


def _rawmode(tile: ImageFile._Tile) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _exchanged(tile: ImageFile._Tile) -> ImageFile._Tile:
    raw = _rawmode(tile)
    other = raw[:-4] + _OTHER[raw[-4:]]
    return tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
