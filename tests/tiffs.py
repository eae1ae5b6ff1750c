"""Write TIFFs by hand: what Pillow cannot save, and what cameras do."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, HEIGHT, BITS, COMPRESSION, MEANING, OFFSETS, ORIENTATION = 256, 257, 258, 259, 262, 273, 274
SAMPLES, LENGTHS, BELOW, EXTRA, FORMAT, KIND, SUBSAMPLING, DNG = 277, 279, 330, 338, 339, 254, 530, 50706


def directory(order: str, tags: Mapping[int, Sequence[int]], at: int, following: int = 0) -> bytes:
    """Return a directory that lies at `at`, with all values as LONGs, and behind it what does not fit into it."""
    rest, entries = b"", b""
    end = at + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) > 1:
            rest, packed = rest + packed, struct.pack(f"{order}L", end + len(rest))
        entries += struct.pack(f"{order}HHL", tag, 4, len(values)) + packed
    return struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}L", following) + rest


def tiff(
    pixels: np.ndarray | bytes,
    size: tuple[int, int] | None = None,
    *,
    order: str = "<",
    meaning: int = 1,
    bits: Sequence[int] | None = None,
    **more: Sequence[int],
) -> bytes:
    """Return a TIFF of one strip; `pixels` are written in the byte order `order`, `more` are tags like t339=(2,)."""
    if isinstance(pixels, np.ndarray):
        size = size or (pixels.shape[1], pixels.shape[0])
        count = pixels.shape[2] if pixels.ndim == 3 else 1
        bits = bits or (pixels.dtype.itemsize * 8,) * count
        pixels = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    assert size is not None and bits is not None
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8 + len(pixels))
    tags: dict[int, Sequence[int]] = {WIDTH: (size[0],), HEIGHT: (size[1],), BITS: bits, COMPRESSION: (1,)}
    tags |= {MEANING: (meaning,), OFFSETS: (8,), SAMPLES: (len(bits),), LENGTHS: (len(pixels),)}
    tags |= {int(name[1:]): values for name, values in more.items()}
    return head + pixels + directory(order, tags, 8 + len(pixels))


def raw_file(previews: Sequence[bytes], sizes: Sequence[tuple[int, int]], *, orientation: int = 1) -> bytes:
    """Return a DNG: a thumbnail of 16x12 first, below it a raw image, and previews that are JPEGs."""
    thumbnail, sensor = bytes(16 * 12 * 3), bytes(64 * 64 * 2)
    body, places = b"", []
    for part in (thumbnail, sensor, *previews):
        places.append(8 + len(body))
        body += part
    at, below = 8 + len(body), b""
    offsets = []
    kinds: list[dict[int, Sequence[int]]] = [
        {WIDTH: (64,), HEIGHT: (64,), BITS: (16,), COMPRESSION: (1,), MEANING: (32803,), SAMPLES: (1,), KIND: (0,)}
    ]
    for width, height in sizes:
        kinds.append(
            {WIDTH: (width,), HEIGHT: (height,), BITS: (8, 8, 8), COMPRESSION: (7,), MEANING: (6,), KIND: (1,)}
        )
    for tags, place, part in zip(kinds, places[1:], (sensor, *previews)):
        offsets.append(at + len(below))
        below += directory("<", {**tags, OFFSETS: (place,), LENGTHS: (len(part),)}, at + len(below))
    first: dict[int, Sequence[int]] = {WIDTH: (16,), HEIGHT: (12,), BITS: (8, 8, 8), COMPRESSION: (1,), MEANING: (2,)}
    first |= {SAMPLES: (3,), OFFSETS: (places[0],), LENGTHS: (len(thumbnail),), KIND: (1,), ORIENTATION: (orientation,)}
    first |= {BELOW: offsets, DNG: (0x0401,)}
    return b"II*\0" + struct.pack("<L", at + len(below)) + body + below + directory("<", first, at + len(below))
