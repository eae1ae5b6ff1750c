"""Decode an image into the square crop that the network sees, or into a thumbnail.

In: the bytes of a file, and a `Preprocessing`. Out: a crop of shape
(crop, crop, 3) in the preprocessing's dtype and channel order, and what is
wrong with the image; or an `ImageError` with the reason. By default the crop
equals what torchvision's ``Resize`` and ``CenterCrop`` produce with Pillow,
but it is resampled only once, directly from the crop's box in the source; for
timm and transformers, it is equal to the last bit. A large JPEG is decoded at a
reduced scale unless the preprocessing is exact. What a file declares about its
samples is read before its pixels.
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
from rn50feat.images.kinds import has_image_signature, has_image_suffix, pillow_formats, unsupported
from rn50feat.images.provenance import Preprocessing
from rn50feat.images.views import SmallCopy

__all__ = ["Decoded", "decode", "has_image_signature", "lift_pillow_limit", "has_image_suffix", "thumbnail"]

_ORIENTATION = 0x0112
_TRANSPOSES = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_IN_TWO_STEPS = ("timm", "transformers")
_LONGEST = 8  # times its shorter side: a longer image takes too much memory when it is resized as a whole


def lift_pillow_limit() -> None:
    """Disable Pillow's limit on the size of images in this process: `decode` has its own."""
    Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Decoded:
    """The crop of an image, shape (crop, crop, 3), and what is wrong with the image: "" if nothing."""

    crop: NDArray[Any]
    damage: str = ""


def decode(data: bytes, preprocessing: Preprocessing, *, suffix: str, max_pixels: int) -> Decoded:
    """Decode an encoded image into a crop of dtype ``preprocessing.crop_dtype``, and report its damage.

    The whole image is decoded first, so a truncated one raises. An animation
    gives its first frame. `suffix` is the file name's; it matters only for
    formats without a signature. Raises `ImageError` with the reason; an image
    of more than `max_pixels` is refused before it is decoded.
    """
    with _image_errors(data):
        shortest = 2 * preprocessing.resize if preprocessing.decoding == "scaled" else None
        source = _load(data, suffix.lower(), max_pixels, preprocessing, shortest=shortest)
        return Decoded(_crop_as(preprocessing, source), source.damage)


def thumbnail(data: bytes, side: int, *, suffix: str, max_pixels: int) -> bytes:
    """Shrink a whole encoded image, upright, to a JPEG of at most `side` pixels in width and height.

    Arguments and errors are those of `decode`.
    """
    with _image_errors(data):
        image = _load(data, suffix.lower(), max_pixels, Preprocessing(), shortest=side).image
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        file = io.BytesIO()
        quality = 82 if side > 200 else 70  # small ones are for pages of many
        image.save(file, "JPEG", quality=quality, optimize=True, comment="")  # drops the original's comment
        return file.getvalue()


def view(data: bytes, side: int, *, suffix: str, max_pixels: int) -> SmallCopy:
    """Decode a whole image, upright, and copy it, at most `side` pixels wide and high; otherwise like `thumbnail`."""
    with _image_errors(data):
        return SmallCopy.of(_load(data, suffix.lower(), max_pixels, Preprocessing(), shortest=None).image, side)


def excerpt(
    data: bytes, box: tuple[int, int, int, int], preprocessing: Preprocessing, *, suffix: str, max_pixels: int
) -> bytes:
    """Cut a part out of an encoded image, and encode it as PNG.

    `box` is left, top, width and height in pixels of the upright image. The
    other arguments and errors are those of `decode`; a box that is not inside
    the image is an `ImageError`, too.
    """
    with _image_errors(data):
        image = _load(data, suffix.lower(), max_pixels, preprocessing, shortest=None).image
        left, top, width, height = box
        if min(left, top) < 0 or min(width, height) < 1 or left + width > image.width or top + height > image.height:
            raise ImageError(
                f"has {image.width}x{image.height} pixels, and {left},{top},{width},{height} is not inside"
            )
        file = io.BytesIO()
        image.crop((left, top, left + width, top + height)).save(file, "PNG")
        return file.getvalue()


@contextmanager
def _image_errors(data: bytes) -> Iterator[None]:
    """Turn any error from decoding `data` into an `ImageError` with the reason."""
    if not data:
        raise ImageError("is empty")
    if reason := unsupported(data):
        raise ImageError(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, but only the pixels matter
            yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_unidentified(data)) from error
    except KeyError as error:  # a table of Pillow's lacks it
        raise ImageError("has samples in a format that Pillow does not read: convert it to PNG") from error
    except Exception as error:  # Pillow's decoders raise anything from struct.error to SyntaxError on broken data
        raise ImageError(f"cannot be decoded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unidentified(data: bytes) -> str:
    """Find out why Pillow cannot identify a file: it discards the errors of the formats that recognise it."""
    for name in pillow_formats("") if has_image_signature(data[:32]) else ():
        open_as, accepts = Image.OPEN[name]
        if accepts and accepts(data[:16]) is True:
            try:
                open_as(io.BytesIO(data), "")
            except Exception as error:  # whatever a plugin raises on broken data
                if name == "TIFF" and (description := tiff.describe(data)):
                    return f"is a {description}, which is not supported"
                return f"cannot be decoded: {_one_line(error)}"
    return "is not an image in a format that Pillow reads"


def geometry(whole: tuple[int, ...], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Compute the width and height that an image of size `whole` is resized to, and its crop's left and top."""
    shorter, crop = min(whole), preprocessing.crop
    width, height = (int(preprocessing.resize * side / shorter) for side in whole)
    if preprocessing.name == "transformers":
        return width, height, (width - crop) // 2, (height - crop) // 2
    # torchvision's Resize truncates, its CenterCrop rounds half to even.
    return width, height, round((width - crop) / 2.0), round((height - crop) / 2.0)


@dataclass(frozen=True)
class _Source:
    """An RGB image, its size before a JPEG was scaled down, and what is wrong with it."""

    image: Image.Image
    whole: tuple[int, ...]
    damage: str


def _crop_as(preprocessing: Preprocessing, source: _Source) -> NDArray[Any]:
    if preprocessing.filtered:
        crop = np.asarray(_crop(source.image, source.whole, preprocessing))
        return crop[..., ::-1] if preprocessing.channels == "BGR" else crop
    if preprocessing.name == "keras":
        return resampling.nearest(source.image, preprocessing.crop)[..., ::-1]  # BGR
    return resampling.tensorflow_bilinear(source.image, preprocessing.resize, preprocessing.crop)


def _load(data: bytes, suffix: str, max_pixels: int, preprocessing: Preprocessing, *, shortest: int | None) -> _Source:
    """Decode an image upright; a JPEG may be scaled down to at least `shortest` pixels on its shorter side."""
    damage, orientation = "", None
    if data.startswith(png.SIGNATURE):
        data, damage = png.check(data)
    elif data[:4] in tiff.SIGNATURES:
        data, orientation = tiff.main_image(data)
    with Image.open(io.BytesIO(data), formats=pillow_formats(suffix)) as opened:
        image: Image.Image = opened
        whole = image.size
        if shortest is not None:
            _scale_down(image, shortest)
        _require_size(image, max_pixels)
        if image.format in ("JPEG", "MPO"):
            image, damage = jpeg.load(data, image, fast_dct=preprocessing.decoding == "fast DCT")
            declared = samples.Declared()
        else:
            declared = samples.declared(data, image)
            if orientation is not None and orientation_of(image) != 1:
                orientation = None  # Pillow applies the TIFF's own orientation when it loads it
            if preprocessing.value_range != "type" and wide.is_wide(opened):
                wide.load(data, opened, preprocessing.value_range)
            image.load()
        if preprocessing.exif == "applied":
            own = orientation_of(opened)
            applied = own if own != 1 or orientation is None else orientation
            image = image.transpose(_TRANSPOSES[applied]) if applied in _TRANSPOSES else image
            whole = whole[::-1] if applied in SIDEWAYS else whole
        image.info = opened.info
        image, fault = samples.to_rgb(image, declared, preprocessing)
        return _Source(image, whole, damage or fault)


def _require_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        megapixels = f"{image.width * image.height / 1e6:.4g} of {max_pixels / 1e6:.0f} megapixels"
        raise ImageError(f"is too large, {image.width}x{image.height} ({megapixels}): raise --max-megapixels")


def orientation_of(image: Image.Image) -> int:
    """Read the EXIF orientation; 1 if there is none or it cannot be read.

    Pillow's ``exif_transpose`` also rewrites the rest of the EXIF and fails on
    odd tags there (17 of 3,000 mutated images).
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's reader raises anything on broken EXIF; the pixels are still good
        return 1


def _scale_down(image: Image.Image, shortest: int) -> None:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 of its size, with at least `shortest` pixels on its shorter side.

    Decodes 28 instead of 5.5 photographs of 12 megapixels per second; pixels
    differ by 0.5 of 255.
    """
    scale = min(image.size) // shortest
    if scale >= 2:  # draft picks the largest of 2, 4 and 8 that leaves at least this size
        image.draft(image.mode, (image.width // scale, image.height // scale))


def _crop(image: Image.Image, whole: tuple[int, ...], preprocessing: Preprocessing) -> Image.Image:
    """Resize the shorter side of the `whole` image and cut out the central square, in one resampling."""
    crop = preprocessing.crop
    width, height, left, top = geometry(whole, preprocessing)
    scale = round(max(whole) / max(image.size))  # 1, 2, 4 or 8; a partial block at the edge counts partially
    x, y = whole[0] / scale / width, whole[1] / scale / height
    box = (left * x, top * y, (left + crop) * x, (top + crop) * y)
    kernel = Image.Resampling[preprocessing.interpolation.removesuffix(", antialiased").upper()]
    if preprocessing.name in _IN_TWO_STEPS and max(width, height) <= _LONGEST * min(width, height):
        # Pillow rounds the sides of a box to float32: then 1.5 % of the values differ by 1 of 255.
        return image.resize((width, height), kernel).crop((left, top, left + crop, top + crop))
    return image.resize((crop, crop), kernel, box=box)
