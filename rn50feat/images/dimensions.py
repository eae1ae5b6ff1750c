"""Read the width and height of an image from the first bytes of its file.

In: the beginning of a JPEG, PNG, GIF, BMP, TIFF or WebP file. Out: its
dimensions. Nothing is decoded, and only parsers written in Python are used:
unlike those in C, a hostile file cannot crash them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from rn50feat.images.decoding import SIDEWAYS, orientation_of

_PARSERS: dict[bytes, Callable[..., ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}


@dataclass(frozen=True)
class Dimensions:
    """Width and height in pixels, of the upright image."""

    width: int
    height: int


def dimensions(head: bytes) -> Dimensions | None:
    """Read the dimensions from the `head` of a file; None where it does not have them, or is of another format."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    parser = next((parser for signature, parser in _PARSERS.items() if head.startswith(signature)), None)
    if parser is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = parser(io.BytesIO(head), "")
            sides = image.size[::-1] if orientation_of(image) in SIDEWAYS else image.size
    except Exception:  # Pillow's parsers raise anything on data that is broken or ends too early
        return None
    return Dimensions(*sides)


def _webp(head: bytes) -> Dimensions | None:
    """Read the header of a WebP file (RFC 9649); its EXIF orientation, which is at the end, is ignored."""
    kind, data = head[12:16], head[20:30]
    if len(data) < 10:
        return None
    if kind == b"VP8X":
        return Dimensions(1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return Dimensions(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        return Dimensions(*(int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (6, 8)))
    return None
