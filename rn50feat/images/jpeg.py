"""Decode JPEGs, and detect damage that still leaves pixels.

In: the bytes of a JPEG, and its header as Pillow opened it. Out: the pixels
that Pillow would return, and libjpeg's warning, which Pillow drops.
simplejpeg decodes (same pixels for every photograph tried, also at 1/2, 1/4
and 1/8 of the size); Pillow decodes what simplejpeg refuses.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from rn50feat.errors import ImageError

_END = b"\xff\xd9"
_ENDS_EARLY = "premature end of data segment"  # in libjpeg's words
_TRUNCATED = "is truncated: some of its pixels are missing"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not a stuffed byte, a restart or padding
_PROGRESSIVE, _SCAN = (0xC2, 0xCA), 0xDA
_LOSSY = (0xC0, 0xC1, 0xC2)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))


def load(data: bytes, image: Image.Image, *, fast_dct: bool = False) -> tuple[Image.Image, str]:
    """Decode a JPEG at the size of `image`, its opened header; also return what is wrong with it, or "".

    `fast_dct` decodes bit for bit as TensorFlow does by default: 1.2 of 255
    from Pillow's pixels on average. Raises `ImageError` if pixels are missing,
    and Pillow's own errors if it cannot decode the file.
    """
    try:
        return _decode(data, image, fast_dct), ""
    except ValueError as error:
        fault = str(error)
    try:
        ended = _has_end(data)
        if not ended:
            data, fault = _add_end(data, image)
        found = _decode(data, image, fast_dct, strict=False)
    except ValueError:  # simplejpeg refuses it, for example some subsamplings of CMYK
        image.load()
        return image, ""
    if ended and (not _all_scans(data) or (_ENDS_EARLY in fault and _ends_flat(found))):
        raise ImageError(_TRUNCATED)
    return found, fault


def size(data: bytes) -> tuple[int, int] | None:
    """Read a JPEG's width and height; None for other data and for lossless JPEGs, which hold raw images."""
    if not data.startswith(b"\xff\xd8"):
        return None
    for marker, segment in _segments(data):
        if marker in _FRAMES:
            height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
            return (width, height) if marker in _LOSSY else None
    return None


def _decode(data: bytes, image: Image.Image, fast_dct: bool = False, strict: bool = True) -> Image.Image:
    """Decode with simplejpeg; raise ValueError for what it refuses and, if `strict`, for libjpeg's warnings."""
    colors = "CMYK" if image.mode == "CMYK" else "RGB"
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, colors, fastdct=fast_dct, min_height=image.height, min_width=image.width, strict=strict
    )
    if pixels.shape[:2] != (image.height, image.width):
        raise ValueError(f"decoded to {pixels.shape[1]}x{pixels.shape[0]}")
    # Adobe's programs write CMYK inverted, and Pillow assumes that everyone does.
    return Image.fromarray(255 - pixels, "CMYK") if colors == "CMYK" else Image.fromarray(pixels)


def _fault(data: bytes, image: Image.Image) -> str:
    """Get libjpeg's first warning, or why simplejpeg refuses a JPEG; "" if nothing is wrong."""
    try:
        _decode(data, image)
    except ValueError as error:
        return str(error)
    return ""


def _has_end(data: bytes) -> bool:
    return data.rstrip(b"\0").endswith(_END) or any(marker == _END[1] for marker, _ in _segments(data))


def _add_end(data: bytes, image: Image.Image) -> tuple[bytes, str]:
    """Add the missing end marker to a JPEG, and say what is wrong; raise `ImageError` if pixels are missing too.

    Zeros that pad the last disk block are not pixels, but the first of them
    may be the last byte of the pixels.
    """
    stripped = data.rstrip(b"\0")
    for whole in (stripped + _END, stripped + b"\0" + _END):
        fault = _fault(whole, image)
        if _ENDS_EARLY not in fault and _all_scans(whole):
            return whole, fault or "has no end marker"
    raise ImageError(_TRUNCATED)


def _ends_flat(image: Image.Image) -> bool:
    """Check whether the last rows have a single colour, as libjpeg fills those whose data is missing."""
    pixels = np.asarray(image)
    last = pixels[-max(2, len(pixels) // 50) :]
    return bool((last == last[0, 0]).all())


def _all_scans(data: bytes) -> bool:
    """Check whether the scans of a JPEG are complete.

    A truncated progressive JPEG has all pixels, but coarse ones. It is
    complete if it has every coefficient of every component down to the last
    bit (ITU-T T.81, G.1.1.1).
    """
    components: list[int] = []
    progressive = False
    lowest: defaultdict[int, dict[int, int]] = defaultdict(dict)  # component -> coefficient -> its lowest bit
    for marker, segment in _segments(data):
        if marker in _FRAMES:
            components = list(segment[6::3][: segment[5]])
            progressive = marker in _PROGRESSIVE
        elif marker == _SCAN:
            count = segment[0]
            first, last, bits = segment[2 * count + 1 : 2 * count + 4]
            for component in segment[1 : 2 * count : 2]:
                lowest[component].update(dict.fromkeys(range(first, last + 1), bits & 15))
    wanted = range(64) if progressive else range(1)
    return all(lowest[component].get(k, 1) == 0 for component in components for k in wanted)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment, skipping the data between segments."""
    at = 2
    while match := _MARKER.search(data, at):
        at, marker = match.end(), match[0][1]
        if marker == _END[1]:
            yield marker, b""
            return
        length = int.from_bytes(data[at : at + 2], "big")
        yield marker, data[at + 2 : at + length]
        at += length
