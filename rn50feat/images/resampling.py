"""Resample images exactly as Keras and TF-slim do.

In: an upright RGB image. Out: a crop of shape (crop, crop, 3): uint8 for
Keras, float32 in [0, 255] for slim, which does not round. torchvision's
resampling, the default, is in `decoding`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def nearest(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Squash an image to a square, as Keras's ``load_img(target_size=(side, side))`` does with Pillow.

    It has to be Pillow: torch picks different nearest neighbours.
    """
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def tensorflow_bilinear(image: Image.Image, resize: int, crop: int) -> NDArray[np.float32]:
    """Resize the shorter side to `resize` and cut out the central square, as slim's `vgg_preprocessing` does.

    TensorFlow 1's ``resize_bilinear`` samples output pixel i at i times the
    ratio of the sides, without today's half-pixel offset, and interpolates
    between two neighbours only, however much the image shrinks. All
    arithmetic is float32, as there.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    scale = np.float32(resize) / np.float32(min(height, width))
    top, bottom, y = _axis(height, int(np.rint(np.float32(height) * scale)), crop)
    left, right, x = _axis(width, int(np.rint(np.float32(width) * scale)), crop)
    upper, lower = (_between(pixels[row][:, left], pixels[row][:, right], x[:, None]) for row in (top, bottom))
    return _between(upper, lower, y[:, None, None])


def _axis(length: int, resized: int, crop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Find both source neighbours of the central `crop` of `resized` pixels, and the weight of the second."""
    places = np.arange((resized - crop) // 2, (resized - crop) // 2 + crop, dtype=np.float32)
    places *= np.float32(length) / np.float32(resized)
    first = np.floor(places)
    neighbour = first.astype(np.int64)
    return neighbour, np.minimum(neighbour + 1, length - 1), places - first


def _between(a: NDArray[np.generic], b: NDArray[np.generic], share: NDArray[np.float32]) -> NDArray[np.float32]:
    start: NDArray[np.float32] = a.astype(np.float32)
    return start + (b.astype(np.float32) - start) * share
