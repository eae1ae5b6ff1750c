"""Convert an image of any mode to 8-bit RGB, guided by what its file declares about its samples.

In: an image that Pillow opened, and the `Preprocessing` for transparency,
colour profiles and value ranges. Out: RGB as a person would expect it, and
what is wrong with the image; or an `ImageError` for unsupported samples.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
import PIL
from PIL import Image, ImageFile

from rn50feat.errors import ImageError
from rn50feat.images import colors, png, tiff
from rn50feat.images.provenance import Preprocessing
from rn50feat.images.sample_format import SampleFormat, to_8_bits

_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
# Programs without transparency support leave zeros in the fourth byte of these.
_BLANK_ALPHA = ("BMP", "CUR", "DIB", "ICO", "TGA")

_BY_MODE = {"I;16": SampleFormat(bits=16), "I": SampleFormat("i", 32), "F": SampleFormat("f", 32)}


@dataclass(frozen=True)
class Declared:
    """What a file declares about its samples; `alpha` is false if its last channel is not transparency."""

    samples: SampleFormat = SampleFormat()
    alpha: bool = True


def declared(data: bytes, image: Image.Image) -> Declared:
    """Read what an image's file declares about its samples, before they are decoded.

    Corrects what Pillow would read wrongly; raises `ImageError` if that is
    not possible.
    """
    if image.format == "TIFF":
        return Declared(tiff.sample_format(image), not tiff.undeclared_alpha(image))
    if image.format == "TGA":
        return Declared(alpha=_tga_alpha(data, image))
    if image.format == "FITS":
        return Declared(_fits_samples(data, image))
    if image.format == "PNG":
        png.scale_transparency(data, image)
    if image.format == "JPEG2000":
        _require_narrow_channels(data, image)
    if image.format == "PSD" and image.mode == "1" and isinstance(image, ImageFile.ImageFile):
        image.tile = [tile._replace(args="1;I") if tile.args == "1" else tile for tile in image.tile]  # ones are black
    return Declared(_BY_MODE.get(image.mode[:4], SampleFormat()))


def to_rgb(image: Image.Image, declared: Declared, settings: Preprocessing) -> tuple[Image.Image, str]:
    """Convert an image of any Pillow mode to RGB; also return what is wrong with it, or "".

    Transparent parts are composited over white, or keep their colour if
    `settings` drop transparency, as Keras and TensorFlow do. Samples of more
    than 8 bits are scaled to 8 from the range that `settings` name.
    """
    profile = image.info.get("icc_profile") if settings.profile == "converted to sRGB" else None
    clear = image.info.get("transparency")
    if image.mode == "RGB" and clear is None and not profile:
        return image, ""
    over_white, alpha = settings.transparency == "over white", None
    if _is_wide(image, declared.samples):
        values = declared.samples.values(image)
        if over_white and isinstance(clear, int):
            alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        image = Image.fromarray(to_8_bits(values, declared.samples, settings.value_range))
    elif image.mode == "LAB":
        image = colors.from_lab(image)
        profile = None  # it described samples that no longer exist
    elif declared.alpha and over_white and image.has_transparency_data and not _blank(image):
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


def _is_wide(image: Image.Image, samples: SampleFormat) -> bool:
    """Check whether an image has one sample per pixel that is not an unsigned byte."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or (image.mode == "L" and samples.kind == "i")


def _blank(image: Image.Image) -> bool:
    """Check whether an image is fully transparent in a format where that usually means no transparency at all."""
    return image.format in _BLANK_ALPHA and "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0)


def _with_alpha(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _opaque(image: Image.Image) -> Image.Image:
    """Drop an image's transparency."""
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _tga_alpha(data: bytes, image: Image.Image) -> bool:
    """Check whether a TGA declares its last channel as transparency, in its header and in its extension if any."""
    if not data[17] & 15:
        if image.mode == "LA":
            raise ImageError("is a TGA with 16-bit grey, which is not supported: convert it to PNG")
        return False
    if not data.endswith(_TGA_FOOTER):
        return True
    (extension,) = struct.unpack_from("<L", data, len(data) - 26)
    # 3 and 4 mean transparency; the other values mean none, or none to be used.
    return not extension or data[extension + 494 : extension + 495] in (b"\3", b"\4", b"")


def _require_narrow_channels(data: bytes, image: Image.Image) -> None:
    """Raise `ImageError` for a JPEG 2000 with several channels of more than 8 bits: Pillow turns their white black."""
    size = data.find(b"\xff\x4f\xff\x51") + 4  # of the image, ISO 15444-1, A.5.1
    (channels,) = struct.unpack_from(">H", data, size + 36)
    depths = [(data[size + 38 + 3 * i] & 127) + 1 for i in range(channels)]
    if channels > 1 and max(depths) > 8:
        raise ImageError(
            f"is a JPEG 2000 with {channels} channels of {max(depths)} bits, which is not supported: convert it to PNG"
        )


def _fits_samples(data: bytes, image: Image.Image) -> SampleFormat:
    """Read the sample format of a FITS image (sign, scale and zero) from its first header."""
    if image.mode != "L" and int(PIL.__version__.partition(".")[0]) < 13:
        raise ImageError(
            f"is a FITS image of more than 8 bits, which Pillow {PIL.__version__} reads in the wrong byte order:"
            " use Pillow 13 or newer (with Python 3.11 or newer), or convert it to PNG"
        )
    cards = {data[at : at + 8].rstrip(): data[at + 10 : at + 80] for at in range(0, min(len(data), 28800), 80)}

    def value(name: bytes, default: float) -> float:
        try:
            return float(cards[name].partition(b"/")[0].replace(b"D", b"E"))
        except (KeyError, ValueError):
            return default

    scale, zero = value(b"BSCALE", 1.0), value(b"BZERO", 0.0)
    stored = SampleFormat("i", 16) if image.mode == "I;16" else _BY_MODE.get(image.mode, SampleFormat())
    return replace(stored, scale=scale, zero=zero)
