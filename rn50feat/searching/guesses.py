"""Guess how one image may have been turned, scaled and shifted into another.

In: two `View`s. Out: transforms, 3x3, from places in the second view to those
in the first, most likely first. Whole images are compared in the eight ways to
turn and mirror them, then features (SIFT) that agree on one transform.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rn50feat.images.views import SmallCopy

Array = NDArray[Any]

SIDE = 512  # pixels of a view, on its longer side
_COARSE = 96  # of whole images
_PROMISING = 0.25  # correlation of whole images that may be the same
_MATCHES = 8  # features that agree on a transform, at least


class View(SmallCopy):
    """A small copy of at most `SIDE`, and what is computed from it when it is needed."""

    @cached_property
    def grey(self) -> Array:
        """The view as float32 (height, width)."""
        return cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)

    @cached_property
    def features(self) -> tuple[Array, Array]:
        """The places of features, float32 (n, 2), and their descriptors, float32 (n, 128)."""
        return _features(self.grey)

    @cached_property
    def mirrored(self) -> tuple[Array, Array]:
        """The features of the mirrored view, at their places in this one."""
        places, descriptors = _features(np.ascontiguousarray(self.grey[:, ::-1]))
        return np.array([self.grey.shape[1] - 1, 0], np.float32) - places * np.array([1, -1], np.float32), descriptors


def guesses(first: View, second: View) -> Iterator[Array]:
    """Yield transforms, (3, 3), that may take places in the second view to those in the first, most likely first."""
    whole = sorted(((_likeness(first, second, turn), -i) for i, turn in enumerate(_TURNS)), reverse=True)
    promising = [-i for likeness, i in whole[:2] if likeness >= _PROMISING]
    for i in dict.fromkeys([*promising, 0]):  # an edit may hide that nothing was turned
        yield onto(first.grey.shape, second.grey.shape, _TURNS[i])
    for mirrored in (False, True):
        if (
            found := _by_features(first.features, second.mirrored if mirrored else second.features, mirrored)
        ) is not None:
            yield found


# Rows: x and y of the first, from the centre, by x and y of the second.
_TURNS = [
    np.array(turn)
    for turn in (
        [[1, 0], [0, 1]],
        [[-1, 0], [0, 1]],
        [[0, -1], [1, 0]],
        [[0, 1], [-1, 0]],
        [[-1, 0], [0, -1]],
        [[1, 0], [0, -1]],
        [[0, 1], [1, 0]],
        [[0, -1], [-1, 0]],
    )
]


def onto(first: tuple[int, ...], second: tuple[int, ...], turn: Array) -> Array:
    """Return the transform that turns a whole view of shape `second` and stretches it onto one of shape `first`."""
    unit = np.diag([2 / second[1], 2 / second[0], 1.0]) @ shifted(0.5 - second[1] / 2, 0.5 - second[0] / 2)
    turned = np.eye(3)
    turned[:2, :2] = turn
    back = shifted(first[1] / 2 - 0.5, first[0] / 2 - 0.5) @ np.diag([first[1] / 2, first[0] / 2, 1.0])
    return np.asarray(back @ turned @ unit)


def shifted(x: float, y: float) -> Array:
    """Return the transform that adds `x` and `y`."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def _likeness(first: View, second: View, turn: Array) -> float:
    """Correlate the details of whole images, the second one turned."""
    scale = min(1.0, _COARSE / max(first.grey.shape))
    size = tuple(max(8, round(side * scale)) for side in first.grey.shape)
    one = details(warped(first.grey, onto(size, first.grey.shape, _TURNS[0]), size))
    other = details(warped(second.grey, onto(size, second.grey.shape, turn), size))
    return float((one * other).sum() / (np.sqrt((one**2).sum() * (other**2).sum()) + 1e-6))


def details(grey: Array) -> Array:
    """Remove what is larger than details."""
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 4))


def warped(image: Array, transform: Array, size: tuple[int, ...]) -> Array:
    """Draw a transformed image into a frame of `size` (height, width), without aliasing."""
    for axis in (0, 1):
        scale = float(np.linalg.norm(transform[:2, axis]))
        if scale < 0.9:
            sigma = 0.5 * math.sqrt(1 / scale**2 - 1)
            image = cv2.GaussianBlur(image, (0, 0), sigmaX=sigma if axis == 0 else 1e-3, sigmaY=sigma if axis else 1e-3)
    return np.asarray(
        cv2.warpAffine(image, transform[:2], size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )


def _features(grey: Array) -> tuple[Array, Array]:
    scale = min(4.0, max(1.0, 400 / max(grey.shape)))
    image = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    image = np.clip(image, 0, 255).astype(np.uint8)
    found, descriptors = cv2.SIFT.create(nfeatures=800, contrastThreshold=0.02).detectAndCompute(image, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    places = (np.array([point.pt for point in found], np.float32) + 0.5) / scale - 0.5
    # Their roots compare better (Arandjelovic and Zisserman, 2012).
    return places, np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))


def _by_features(first: tuple[Array, Array], second: tuple[Array, Array], mirrored: bool) -> Array | None:
    """Find the rotation, scale and shift on which matching features agree."""
    (places, descriptors), (others, their) = first, second
    if min(len(places), len(others)) < _MATCHES:
        return None
    products = their @ descriptors.T
    nearest = np.argpartition(-products, 1, axis=1)[:, :2]
    scores = np.take_along_axis(products, nearest, axis=1)
    best, next_best = scores.max(axis=1), scores.min(axis=1)
    # The square of the distance of roots is 2 - 2 times their product; 0.8: Lowe's ratio.
    good = (1 - best) < 0.8**2 * (1 - next_best)
    if good.sum() < _MATCHES:
        return None
    source, target = (
        others[good],
        places[np.take_along_axis(nearest, scores.argmax(axis=1)[:, None], axis=1)[:, 0]][good],
    )
    flip = np.array([-1, 1], np.float32) if mirrored else np.array([1, 1], np.float32)
    found, inliers = cv2.estimateAffinePartial2D(source * flip, target, ransacReprojThreshold=3.0, maxIters=2000)
    if found is None or inliers.sum() < _MATCHES or not 0.05 < np.hypot(found[0, 0], found[1, 0]) < 20:
        return None
    # Features at a few places agree on anything.
    if len(np.unique(np.round(target[inliers[:, 0] > 0] / 4), axis=0)) < _MATCHES:
        return None
    return np.vstack([found, [0, 0, 1]]) @ np.diag([*flip, 1.0])
