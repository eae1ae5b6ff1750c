"""What images show once they are decoded, and images written by hand."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from scenes import encoded, scene
from tiffs import tiff

from rn50feat.images import decoding
from rn50feat.images.provenance import Preprocessing

PLAIN = Preprocessing()
RGB = np.asarray(scene(3, 300, 260))
GREY = np.asarray(scene(3, 300, 260).convert("L")).astype(np.int64)


def decoded(data: bytes, suffix: str = ".tif", **settings: str) -> decoding.Decoded:
    return decoding.decode(data, replace(Preprocessing(), **settings), suffix=suffix, max_pixels=10**7)


def distance(data: bytes, twin: np.ndarray = GREY, suffix: str = ".tif", **settings: str) -> int:
    """Return how far the crop of an image is from that of a plain PNG, at most, of 255."""
    plain = decoded(encoded(Image.fromarray(twin.astype(np.uint8)), "PNG")).crop
    return int(np.abs(decoded(data, suffix, **settings).crop.astype(int) - plain).max())


def numbers(kind: str, order: str, inverted: bool) -> bytes:
    """Return the grey scene as a TIFF of a dtype."""
    dtype = np.dtype(kind)
    values: Any = (255 - GREY if inverted else GREY) / 255
    if dtype.kind in "iu":
        # Numbers of 32 bits have no range that anybody uses whole: 16 of them count.
        values = np.rint(values * (2 ** min(8 * dtype.itemsize, 16) - 1))
        values -= 2 ** (8 * dtype.itemsize - 1) if dtype.kind == "i" and dtype.itemsize < 4 else 0
    form = {"u": 1, "i": 2, "f": 3}[dtype.kind]
    return tiff(values.astype(dtype), order=order, meaning=int(not inverted), t339=(form,))


def decode(data: bytes, settings: Preprocessing = PLAIN, suffix: str = ".png") -> np.ndarray:
    return decoding.decode(data, settings, suffix=suffix, max_pixels=10**7).crop


def middle(data: bytes, **settings: str) -> tuple[int, ...]:
    return tuple(int(value) for value in decode(data, **settings)[112, 112])


def chunk(name: bytes, data: bytes, *, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


def png(width: int, height: int, depth: int, kind: int, line: bytes) -> bytes:
    """Write a PNG by hand: what Pillow cannot save."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress((b"\0" + line) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
