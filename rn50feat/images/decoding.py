"""Decode an image to the square that the network sees, or to a thumbnail for people.

In: the bytes of a file, and a `Preprocessing`. Out: a crop of shape
(crop, crop, 3), of the preprocessing's dtype and order of channels, and what
is wrong with the image, or an `ImageError` with the reason. By default a crop
equals what torchvision's ``Resize`` and ``CenterCrop`` make of the same image
with Pillow; it is resampled once, straight from the crop's box in the source.
Of a large JPEG, that source is decoded at a smaller scale unless it must be
exact. What a file declares about its samples comes before its pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rn50feat.errors import ImageError
from rn50feat.images import jpeg, png, resampling, samples, tiff, wide
from rn50feat.images.kinds import holds_picture, named_as_picture, pillow_formats, unread
from rn50feat.images.provenance import Preprocessing

__all__ = ["Decoded", "decode", "holds_picture", "lift_pillow_limit", "named_as_picture", "thumbnail"]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


def lift_pillow_limit() -> None:
    """Leave the size of pictures to `decode`'s own limit, in the whole process."""
    Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Decoded:
    """The crop of an image, of shape (crop, crop, 3), and what is wrong with the image, "" for nothing."""

    crop: NDArray[Any]
    damage: str = ""


def decode(data: bytes, preprocessing: Preprocessing, *, suffix: str, max_pixels: int) -> Decoded:
    """Return the crop of an encoded image, of dtype ``preprocessing.crop_dtype``, and its damage.

    The whole image is decoded before anything is returned: a truncated one
    raises. Animations give their first frame. `suffix` is that of the file's
    name; it matters only for formats without a signature. Raises `ImageError`
    with the reason, for an image of more than `max_pixels` before decoding it.
    """
    with _reasons(data):
        shortest = 2 * preprocessing.resize if preprocessing.decoding == "scaled" else None
        source = _load(data, suffix.lower(), max_pixels, preprocessing, shortest=shortest)
        return Decoded(_crop_as(preprocessing, source), source.damage)


def thumbnail(data: bytes, side: int, *, suffix: str, max_pixels: int) -> bytes:
    """Return the whole of an encoded image, upright, as a JPEG of at most `side` pixels in width and height.

    All that `decode` says of its arguments and errors holds.
    """
    with _reasons(data):
        image = _load(data, suffix.lower(), max_pixels, Preprocessing(), shortest=side).image
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=82, optimize=True, comment="")  # the original's own stays with the original
        return file.getvalue()


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn whatever comes of decoding `data` into an `ImageError` that says why."""
    if not data:
        raise ImageError("is empty")
    if reason := unread(data):
        raise ImageError(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about odd metadata; the pixels decide
            yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_refusal(data)) from error
    except Exception as error:  # Pillow's decoders raise anything from struct.error to SyntaxError on broken data
        raise ImageError(f"cannot be decoded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refusal(data: bytes) -> str:
    """Return why Pillow does not open what it recognises, which it keeps to itself."""
    for name in pillow_formats("") if holds_picture(data[:32]) else ():
        open_as, accepts = Image.OPEN[name]
        if accepts and accepts(data[:16]) is True:
            try:
                open_as(io.BytesIO(data), "")
            except Exception as error:  # whatever a plugin raises on broken data
                if name == "TIFF" and (samples_are := tiff.describe(data)):
                    return f"is a {samples_are}, which is not understood"
                return f"cannot be decoded: {_one_line(error)}"
    return "is no picture in a format that Pillow reads"


def geometry(whole: tuple[int, ...], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return the width and height that a picture of size `whole` is resized to, and left and top of its crop."""
    shorter, crop = min(whole), preprocessing.crop
    width, height = (int(preprocessing.resize * side / shorter) for side in whole)
    # torchvision's Resize cuts off, its CenterCrop rounds half to even.
    return width, height, round((width - crop) / 2.0), round((height - crop) / 2.0)


@dataclass(frozen=True)
class _Source:
    """An image in RGB, its size before a JPEG was scaled down, and what is wrong with it."""

    image: Image.Image
    whole: tuple[int, ...]
    damage: str


def _crop_as(preprocessing: Preprocessing, source: _Source) -> NDArray[Any]:
    if preprocessing.name == "torchvision":
        return np.asarray(_crop(source.image, source.whole, preprocessing))
    if preprocessing.name == "keras":
        return resampling.nearest(source.image, preprocessing.crop)[..., ::-1]  # BGR
    return resampling.tensorflow_bilinear(source.image, preprocessing.resize, preprocessing.crop)


def _load(data: bytes, suffix: str, max_pixels: int, preprocessing: Preprocessing, *, shortest: int | None) -> _Source:
    """Return an image, that of a JPEG scaled down to no less than `shortest` on its shorter side."""
    damage, orientation = "", None
    if data.startswith(png.SIGNATURE):
        data, damage = png.checked(data)
    elif data[:4] in tiff.SIGNATURES:
        data, orientation = tiff.chosen(data)
    with Image.open(io.BytesIO(data), formats=pillow_formats(suffix)) as opened:
        image: Image.Image = opened
        whole = image.size
        if shortest is not None:
            _scale_down(image, shortest)
        _require_size(image, max_pixels)
        if image.format in ("JPEG", "MPO"):
            image, damage = jpeg.load(data, image, fast_dct=preprocessing.decoding == "fast DCT")
            known = samples.Declared()
        else:
            known = samples.declared(data, image)
            if orientation is not None and _orientation(image) != 1:
                orientation = None  # Pillow turns a TIFF by its own when it loads it
            if preprocessing.value_range != "type" and wide.is_wide(opened):
                wide.load(data, opened, preprocessing.value_range)
            image.load()
        if preprocessing.exif == "applied":
            found = _orientation(opened)
            turn = found if found != 1 or orientation is None else orientation
            image = image.transpose(_TURNS[turn]) if turn in _TURNS else image
            whole = whole[::-1] if turn in _SIDEWAYS else whole
        image.info = opened.info
        image, fault = samples.to_rgb(image, known, preprocessing)
        return _Source(image, whole, damage or fault)


def _require_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        megapixels = f"{image.width * image.height / 1e6:.4g} of {max_pixels / 1e6:.0f} megapixels"
        raise ImageError(f"is too large, {image.width}x{image.height} ({megapixels}): raise --max-megapixels")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none that can be read.

    Not Pillow's ``exif_transpose``: it writes the rest of the EXIF anew, and
    fails on an odd tag there (17 of 3,000 mutated pictures).
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's reader raises anything on broken EXIF; the pixels are whole
        return 1


def _scale_down(image: Image.Image, shortest: int) -> None:
    """Let a JPEG decode at a half, quarter or eighth of its size, its shorter side at least `shortest`.

    For 12-megapixel photographs 28 instead of 5.5 a second, 0.5 of 255 away.
    """
    scale = min(image.size) // shortest
    if scale >= 2:  # draft takes the largest of 2, 4 and 8 that leaves this much
        image.draft(image.mode, (image.width // scale, image.height // scale))


def _crop(image: Image.Image, whole: tuple[int, ...], preprocessing: Preprocessing) -> Image.Image:
    """Resize the shorter side of the `whole` picture and cut the central square, in one resampling."""
    crop = preprocessing.crop
    width, height, left, top = geometry(whole, preprocessing)
    scale = round(max(whole) / max(image.size))  # 1, 2, 4 or 8: a partial block at the edge counts in part
    x, y = whole[0] / scale / width, whole[1] / scale / height
    box = (left * x, top * y, (left + crop) * x, (top + crop) * y)
    return image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
