"""Turn an image of any kind into 8 bits of red, green and blue, by what its file declares of its samples.

In: an image that Pillow opened, and what `Preprocessing` says of transparency,
colour profiles and the range of values. Out: RGB as a person would expect it,
and what is wrong with the image; or an `ImageError` for samples that are not
understood.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rn50feat.errors import ImageError
from rn50feat.images import colors, png, tiff
from rn50feat.images.numbers import Numbers, to_8_bits
from rn50feat.images.provenance import Preprocessing

_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
# Programs that know of no transparency leave zeros in the fourth byte of these.
_BLANK_ALPHA = ("BMP", "CUR", "DIB", "ICO", "TGA")

_BY_MODE = {"I;16": Numbers(bits=16), "I": Numbers("i", 32), "F": Numbers("f", 32)}


@dataclass(frozen=True)
class Declared:
    """What a file says of its samples; `alpha` is false where its last channel is no transparency."""

    numbers: Numbers = Numbers()
    alpha: bool = True


def declared(data: bytes, image: Image.Image) -> Declared:
    """Return what the file of an image says of its samples, before they are decoded.

    Corrects what Pillow is about to read otherwise, and raises `ImageError`
    where that cannot be done.
    """
    if image.format == "TIFF":
        return Declared(tiff.numbers(image), not tiff.undeclared_alpha(image))
    if image.format == "TGA":
        return Declared(alpha=_tga_alpha(data, image))
    if image.format == "FITS":
        return Declared(_fits_numbers(data, image))
    if image.format == "PNG":
        png.scale_transparency(data, image)
    return Declared(_BY_MODE.get(image.mode[:4], Numbers()))


def to_rgb(image: Image.Image, known: Declared, settings: Preprocessing) -> tuple[Image.Image, str]:
    """Convert any mode of Pillow's to RGB, and return what is wrong with the image, "" for nothing.

    Transparent parts are laid over white, or show what colour they have when
    transparency is dropped, as Keras and TensorFlow do. Numbers of more than
    8 bits become 8 by the range that `settings` name.
    """
    profile = image.info.get("icc_profile") if settings.profile == "converted to sRGB" else None
    clear = image.info.get("transparency")
    if image.mode == "RGB" and clear is None and not profile:
        return image, ""
    over_white, alpha = settings.transparency == "over white", None
    if _is_wide(image, known.numbers):
        values = known.numbers.of(image)
        if over_white and isinstance(clear, int):
            alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        image = Image.fromarray(to_8_bits(values, known.numbers, settings.value_range))
    elif image.mode == "LAB":
        image = colors.from_lab(image)
        profile = None  # described the numbers that are gone
    elif known.alpha and over_white and image.has_transparency_data and not _blank(image):
        image = _with_alpha(image)
        alpha = image.getchannel("A")
    fault = ""
    if profile:
        image, fault = colors.to_srgb(_opaque(image), profile)
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image, fault


def _is_wide(image: Image.Image, numbers: Numbers) -> bool:
    """Check whether an image holds one number a pixel that is no unsigned byte."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or (image.mode == "L" and numbers.kind == "i")


def _blank(image: Image.Image) -> bool:
    """Check whether an image's transparency hides all of it, in a format that often says so without meaning it."""
    return image.format in _BLANK_ALPHA and "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0)


def _with_alpha(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _opaque(image: Image.Image) -> Image.Image:
    """Return the colours of an image alone."""
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _tga_alpha(data: bytes, image: Image.Image) -> bool:
    """Check whether a TGA calls its last channel transparency: in its header, and in its extension if it has one."""
    if not data[17] & 15:
        if image.mode == "LA":
            raise ImageError("is a TGA of 16 bits of grey, which is not understood: convert it to PNG")
        return False
    if not data.endswith(_TGA_FOOTER):
        return True
    (extension,) = struct.unpack_from("<L", data, len(data) - 26)
    # 3 and 4 are transparency; of the others, there is none, or it is not to be used.
    return not extension or data[extension + 494 : extension + 495] in (b"\3", b"\4", b"")


def _fits_numbers(data: bytes, image: Image.Image) -> Numbers:
    """Return what the numbers of a FITS image are: signed, scaled and shifted as its first header says."""
    cards = {data[at : at + 8].rstrip(): data[at + 10 : at + 80] for at in range(0, min(len(data), 28800), 80)}

    def value(name: bytes, default: float) -> float:
        try:
            return float(cards[name].partition(b"/")[0].replace(b"D", b"E"))
        except (KeyError, ValueError):
            return default

    scale, zero = value(b"BSCALE", 1.0), value(b"BZERO", 0.0)
    known = Numbers("i", 16) if image.mode == "I;16" else _BY_MODE.get(image.mode, Numbers())
    return replace(known, scale=scale, zero=zero)
