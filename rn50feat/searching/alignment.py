"""Align two images, and name how the second comes from the first.

In: two `View`s. Out: a `Relation`, and whether the first shows all of the
second. A guess of how they are aligned is refined. What overlaps must then
show the same details, place by place, whatever their colour and contrast: two
scenes do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rn50feat.searching.groups import Relation
from rn50feat.searching.guesses import Array, View, details, guesses, shifted, warped

VERSION = 1  # of the rules here: relations of another version are not read
_SIDE = 256  # pixels of what is compared, on its longer side
_WHOLE = 0.985  # of an image's area: if less is left, it is a crop
_OVERLAP = 0.4  # of the smaller image's area, at least
_TURNED = 1.5  # degrees
_DETAIL = 2.0  # of 255: the least local standard deviation of something that can be compared
_SAME_DETAIL = 0.6  # the least correlation of a place that shows the same
_RELATED = 0.5  # of the places with details: edits keep more than 0.7, different images had less than 0.4
_MEAN, _SPOT = 8.0, 30.0  # of 255: a greater difference is an edit, of all pixels or of a spot
_FLAT = 0.02  # of the places have details, at least, or the images are compared by colour alone


@dataclass(frozen=True)
class Compared:
    """A relation, None for images that are at most similar, and whether the first shows all of the second."""

    relation: Relation | None
    contained: bool


def compare(first: View, second: View) -> Compared:
    """Name how `second` comes from `first`."""
    if (first.digest, first.width, first.height) == (second.digest, second.width, second.height):
        return Compared("same pixels", True)
    best: _Fit | None = None
    for guess in guesses(first, second):
        fit = _fitted(first, second, guess)
        if fit is not None and (best is None or fit.quality > best.quality):
            best = fit
        if best is not None and not best.edited:
            break
    return Compared(None, False) if best is None else _named(first, second, best)


@dataclass(frozen=True)
class _Fit:
    """A transform of the second view onto the first under which they show the same details.

    ``same`` is the share of places that do, ``mean`` and ``spot`` are the
    difference of colours, in all and where it is greatest.
    """

    transform: Array
    same: float
    mean: float
    spot: float

    @property
    def edited(self) -> bool:
        """Whether more differs than another encoding explains."""
        return self.mean > _MEAN or self.spot > _SPOT

    @property
    def quality(self) -> tuple[bool, float, float]:
        """Order fits, the best one last."""
        return not self.edited, round(self.same, 1), -self.spot


def _named(first: View, second: View, fit: _Fit) -> Compared:
    """Name the relation that a transform and the differences show."""
    seen, shown = _covered(first, second, fit.transform)
    if max(seen, shown) < _OVERLAP:
        return Compared(None, False)
    contained = shown >= _WHOLE
    linear = fit.transform[:2, :2]
    angle = math.degrees(math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    if fit.edited:
        return Compared("edited", contained)
    if np.linalg.det(linear) < 0 or abs(angle) > _TURNED:
        return Compared("rotated or mirrored", contained)
    if min(seen, shown) < _WHOLE:
        return Compared("cropped", contained)
    same_size = (first.width, first.height) == (second.width, second.height)
    return Compared("re-encoded" if same_size else "resized", True)


@dataclass(frozen=True)
class _Frame:
    """The part of the first view that overlaps, drawn at ``size`` (height, width), and its transform into that."""

    first: View
    size: tuple[int, int]
    transform: Array
    grey: Array


def _fitted(first: View, second: View, guess: Array) -> _Fit | None:
    """Refine a guess; None if the images do not show the same under it."""
    if (frame := _frame(first, second, guess)) is None:
        return None
    refined = _refined(frame, second, _refined(frame, second, guess))
    fit = _judged(frame, second, refined)
    if fit is None or fit.edited:  # ECC may lose what has been edited
        fits = [one for one in (fit, _judged(frame, second, guess)) if one is not None]
        fit = max(fits, key=lambda one: one.quality, default=None)
    return fit


def _judged(frame: _Frame, second: View, transform: Array) -> _Fit | None:
    """Compare what overlaps under a transform; None if it is not the same."""
    move = frame.transform @ transform
    inside = _inside(frame.first, frame.transform, frame.size) & _inside(second, move, frame.size)
    if inside.mean() < 0.1:
        return None
    same = _same_details(frame.grey, warped(second.grey, move, frame.size), inside)
    if same < _RELATED:
        return None
    one, other = (
        warped(view.rgb, to, frame.size).astype(np.float32)
        for view, to in ((frame.first, frame.transform), (second, move))
    )
    difference = np.abs(cv2.GaussianBlur(one - other, (0, 0), 1)).max(axis=2)
    difference = cv2.GaussianBlur(difference, (0, 0), 3)[inside]
    fit = _Fit(transform, same, float(difference.mean()), float(difference.max()))
    return None if math.isinf(same) and fit.edited else fit


def _corners(view: View) -> Array:
    height, width = view.grey.shape
    return np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]], np.float32)


def _moved(places: Array, transform: Array) -> Array:
    return (places @ transform[:2, :2].T + transform[:2, 2]).astype(np.float32)


def _frame(first: View, second: View, transform: Array) -> _Frame | None:
    """Draw what overlaps, at most `_SIDE` wide and high; None if nothing does."""
    height, width = first.grey.shape
    moved = _moved(_corners(second), transform)
    left, top = np.maximum(moved.min(axis=0), -0.5)
    right, bottom = np.minimum(moved.max(axis=0), (width - 0.5, height - 0.5))
    if min(right - left, bottom - top) < 8:
        return None
    # No finer than the coarser of the two.
    finest = 1 / max(1.0, math.sqrt(abs(np.linalg.det(transform[:2, :2]))))
    scale = min(finest, _SIDE / max(right - left, bottom - top))
    size = (max(8, round((bottom - top) * scale)), max(8, round((right - left) * scale)))
    to_frame = shifted(-0.5, -0.5) @ np.diag([scale, scale, 1.0]) @ shifted(-left, -top)
    return _Frame(first, size, to_frame, warped(first.grey, to_frame, size))


def _inside(view: View, transform: Array, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of a frame, bool of `size`, a transformed view fills; not those at its edges."""
    filled: Array = np.zeros(size, np.uint8)
    cv2.fillConvexPoly(filled, np.round(_moved(_corners(view), transform)).astype(np.int32), 1)
    return cv2.erode(filled, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def _refined(frame: _Frame, second: View, guess: Array) -> Array:
    """Refine a guess by ECC (Evangelidis and Psarakis, 2008); return it as it is where that fails."""
    move = frame.transform @ guess
    other, mask = warped(second.grey, move, frame.size), _inside(second, move, frame.size).astype(np.uint8)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    correction: Array = np.eye(2, 3, dtype=np.float32)
    try:
        _, correction = cv2.findTransformECC(frame.grey, other, correction, cv2.MOTION_AFFINE, criteria, mask, 5)
        return np.asarray(
            np.linalg.inv(frame.transform) @ np.linalg.inv(np.vstack([correction, [0, 0, 1]])) @ move, np.float64
        )
    except (cv2.error, np.linalg.LinAlgError):  # it does not converge
        return guess


def _same_details(one: Array, other: Array, inside: NDArray[np.bool_]) -> float:
    """Return the share of places with details at which both images show the same ones; infinite if there are none."""
    one, other = (details(cv2.GaussianBlur(image, (0, 0), 0.8)) for image in (one, other))

    def local(image: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), 4))

    means = local(one), local(other)
    variances = [np.maximum(local(image**2) - mean**2, 0) for image, mean in zip((one, other), means)]
    covariance = local(one * other) - means[0] * means[1]
    detailed = inside & (np.maximum(*variances) > _DETAIL**2)
    if detailed.sum() < _FLAT * inside.sum():
        return math.inf
    correlation = covariance / np.sqrt(variances[0] * variances[1] + 1e-3)
    return float((correlation[detailed] > _SAME_DETAIL).mean())


def _covered(first: View, second: View, transform: Array) -> tuple[float, float]:
    """Return the shares of the first view and of the second one that the other shows."""
    moved = _moved(_corners(second), transform)
    whole = [abs(float(cv2.contourArea(corners))) for corners in (_corners(first), moved)]
    common, _ = cv2.intersectConvexConvex(_corners(first), moved)
    return common / whole[0], common / max(whole[1], 1e-6)
