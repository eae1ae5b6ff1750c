"""Small copies of whole images, for comparing their pixels.

In: an upright RGB image. Out: a copy of bounded size, its size before, and a
hash of all its pixels; packed as bytes for another process, and back.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_Copy = TypeVar("_Copy", bound="SmallCopy")
_HEADER = struct.Struct("<4I16s")


@dataclass(frozen=True)
class SmallCopy:
    """A copy, ``rgb``, uint8 (height, width, 3), of an image of ``width`` x ``height``; the hash of all its pixels."""

    rgb: NDArray[Any]
    width: int
    height: int
    digest: bytes

    @classmethod
    def of(cls: type[_Copy], image: Image.Image, side: int) -> _Copy:
        """Copy an RGB image, at most `side` pixels wide and high."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        width, height = image.size
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        return cls(np.asarray(image), width, height, digest)

    def packed(self) -> bytes:
        """Return the copy as bytes, fewer than ``3 * (side + 1) ** 2``."""
        return _HEADER.pack(*self.rgb.shape[:2], self.width, self.height, self.digest) + self.rgb.tobytes()

    @classmethod
    def unpacked(cls: type[_Copy], data: memoryview) -> _Copy:
        """Return the copy that `data` begins with."""
        rows, columns, width, height, digest = _HEADER.unpack_from(data)
        rgb = np.frombuffer(data, np.uint8, 3 * rows * columns, _HEADER.size).reshape(rows, columns, 3).copy()
        return cls(rgb, width, height, digest)
