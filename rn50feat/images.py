"""Decode a picture to the square that the network sees, or to a thumbnail for people.

In: the bytes of a file, and a `Preprocessing`. Out: a crop of shape
(crop, crop, 3), of the preprocessing's dtype and order of channels, or an
`ImageError` with the reason. By default a crop equals what torchvision's
``Resize`` and ``CenterCrop`` make of the same picture with Pillow; it is
resampled once, straight from the crop's box in the source. Of a large JPEG,
that source is decoded at a smaller scale unless it must be exact.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from rn50feat import resampling
from rn50feat.errors import ImageError, PreprocessingError
from rn50feat.provenance import Preprocessing

# What Pillow reads by itself. Left out: EPS and WMF (they start other
# programs), and the stubs that only recognise a format (HDF5, GRIB, BUFR, MPEG).
_FORMATS = (
    "AVIF BLP BMP CUR DCX DDS DIB FITS FLI FTEX GBR GIF ICNS ICO JPEG JPEG2000 MSP PCX"
    " PNG PPM PSD QOI SGI SUN TIFF WEBP XBM XPM"
).split()
# These have no signature, and "recognise" other data too: tried for their own names only.
_UNSIGNED = {".im": "IM", ".pcd": "PCD", ".tga": "TGA", ".icb": "TGA", ".vda": "TGA", ".vst": "TGA"}

SUFFIXES = frozenset(
    ".apng .avif .avifs .blp .bmp .cur .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr .gif .heic .heics .heif"
    " .heifs .hif .icb .icns .ico .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .msp .pbm .pcd .pcx"
    " .pfm .pgm .png .pnm .ppm .psd .qoi .ras .rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm".split()
)

# Only formats whose first bytes leave no doubt: a text that begins with "P5 "
# or "BM" is no picture, so PPM and the like are known by their names alone.
_MAGIC = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF....WEBP"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP with a known header size
    rb"|II[*+]\0|MM\0[*+]"  # TIFF and BigTIFF
    rb"|....ftyp(?:avi[fs]|hei[cxms]|hev[cx]|mif1|msf1)"  # AVIF and HEIC
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000
    rb"|8BPS\x00\x01|qoif|DDS \x7c\0\0\0|icns\0",
    re.DOTALL,
)
_HEIC = re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)

try:
    import pillow_heif
except ImportError:
    HEIC = False
else:
    pillow_heif.register_heif_opener()
    _FORMATS.append("HEIF")
    HEIC = True

try:
    import simplejpeg
except ImportError:
    SIMPLEJPEG = False
else:
    SIMPLEJPEG = True


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


def require_decoder(preprocessing: Preprocessing) -> None:
    """Raise `PreprocessingError` when the decoder of `preprocessing` is not installed."""
    if preprocessing.decoding == "fast DCT" and not SIMPLEJPEG:
        raise PreprocessingError(
            f"the preprocessing {preprocessing.name} decodes JPEGs as TensorFlow does, which needs:"
            " pip install 'rn50feat[slim]'; or choose slim-pillow, whose features are about 5e-2 away (relative L2)"
        )


def named_as_picture(location: str) -> bool:
    """Tell whether the name of a file says that it is a picture."""
    return os.path.splitext(location)[1].lower() in SUFFIXES


def holds_picture(head: bytes) -> bool:
    """Tell whether the first bytes of a file (18 or more) are those of a picture."""
    return _MAGIC.match(head) is not None


def decode(
    data: bytes, preprocessing: Preprocessing, *, suffix: str, max_pixels: int
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return the crop of an encoded picture, of shape (crop, crop, 3), dtype ``preprocessing.crop_dtype``.

    The whole picture is decoded before anything is returned: a truncated one
    raises. Animations give their first frame. `suffix` is that of the file's
    name; it matters only for formats without a signature. Raises `ImageError`
    with the reason, for a picture of more than `max_pixels` before decoding it.
    """
    with _reasons(data):
        return _decode(data, preprocessing, suffix.lower(), max_pixels)


def thumbnail(data: bytes, side: int, *, suffix: str, max_pixels: int) -> bytes:
    """Return the whole of an encoded picture, upright, as a JPEG of at most `side` pixels in width and height.

    All that `decode` says of its arguments and errors holds.
    """
    with _reasons(data):
        image, _ = _load(data, suffix.lower(), max_pixels, shortest=side, upright=True)
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=82, optimize=True, comment="")  # the original's own stays with the original
        return file.getvalue()


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn whatever comes of decoding `data` into an `ImageError` that says why."""
    if not data:
        raise ImageError("is empty")
    if not HEIC and _HEIC.match(data):
        raise ImageError("is HEIC, which needs: pip install 'rn50feat[heic]'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about odd metadata; the pixels decide
            yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError("is no picture in a format that Pillow reads") from error
    except Exception as error:  # Pillow's decoders raise anything from struct.error to SyntaxError on broken data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot be decoded: {reason}") from error


@dataclass(frozen=True)
class PlainJpeg:
    """What a decoder must know of a JPEG as most cameras and programs write it; lengths in pixels."""

    width: int
    height: int
    orientation: int  # 1 to 8, as EXIF has it


def plain_jpeg(data: bytes, *, max_pixels: int) -> PlainJpeg | None:
    """Return the header of a whole baseline JPEG of three YCbCr channels in one scan, or None for anything else.

    A decoder other than `decode` may take these; all others, and those that it
    refuses, are for `decode`, which tells what is wrong with them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            orientation = _orientation(image)
        channels = [channel[0] for channel in getattr(image, "layer", ())]
        if (
            image.width * image.height > max_pixels
            or "progressive" in image.info
            or image.info.get("adobe_transform", 1) != 1
            or channels not in ([0, 1, 2], [1, 2, 3])  # others mean RGB, or CMYK
            or orientation not in range(1, 9)
        ):
            return None
        scan = 2
        while data[scan + 1] != 0xDA:  # over the segments, a thumbnail with scans of its own among them
            scan += 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
        # Cut off, it lacks its end marker: some decoders fill the rest with grey and say nothing.
        whole = data[scan] == 0xFF and data[scan + 4] == 3 and data.find(b"\xff\xd9", scan) > 0
        return PlainJpeg(image.width, image.height, orientation) if whole else None
    except Exception:  # whatever Pillow raises: `decode` will name it
        return None


def geometry(whole: tuple[int, ...], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return the width and height that a picture of size `whole` is resized to, and left and top of its crop."""
    shorter, crop = min(whole), preprocessing.crop
    width, height = (int(preprocessing.resize * side / shorter) for side in whole)
    # torchvision's Resize cuts off, its CenterCrop rounds half to even.
    return width, height, round((width - crop) / 2.0), round((height - crop) / 2.0)


def _decode(
    data: bytes, preprocessing: Preprocessing, suffix: str, max_pixels: int
) -> NDArray[np.uint8] | NDArray[np.float32]:
    image, whole = _load(
        data,
        suffix,
        max_pixels,
        shortest=2 * preprocessing.resize if preprocessing.decoding == "scaled" else None,
        upright=preprocessing.exif == "applied",
        transparency=preprocessing.transparency,
        fast_dct=preprocessing.decoding == "fast DCT",
    )
    if preprocessing.name == "torchvision":
        return np.asarray(_crop(image, whole, preprocessing))
    if preprocessing.name == "keras":
        return resampling.nearest(image, preprocessing.crop)[..., ::-1]  # BGR
    return resampling.tensorflow_bilinear(image, preprocessing.resize, preprocessing.crop)


def _load(
    data: bytes,
    suffix: str,
    max_pixels: int,
    *,
    shortest: int | None,
    upright: bool,
    transparency: str = "over white",
    fast_dct: bool = False,
) -> tuple[Image.Image, tuple[int, ...]]:
    """Return a picture in RGB, and its size before a JPEG was scaled down to no less than `shortest`."""
    formats = [*_FORMATS, _UNSIGNED[suffix]] if suffix in _UNSIGNED else _FORMATS
    with Image.open(io.BytesIO(data), formats=formats) as opened:
        image: Image.Image = opened
        whole = image.size
        if shortest is not None:
            _scale_down(image, shortest)
        if image.width * image.height > max_pixels:
            megapixels = f"{image.width * image.height / 1e6:.0f} of {max_pixels / 1e6:.0f} megapixels"
            raise ImageError(
                f"is too large, {image.width}x{image.height} ({megapixels}):"
                " raise --max-megapixels, with --retry-failed"
            )
        if fast_dct and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            image = _decode_fast(data, image)
        else:
            image.load()
        if upright:
            orientation = _orientation(opened)
            image = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
            whole = whole[::-1] if orientation in _SIDEWAYS else whole
        return _to_rgb(image, transparency), whole


def _decode_fast(data: bytes, image: Image.Image) -> Image.Image:
    """Decode a JPEG to RGB as TensorFlow does by default, to the bit: 1.2 of 255 from Pillow's pixels on average."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=True)
    except ValueError:  # a flaw: TensorFlow and Pillow pass over most, but Pillow raises where the picture is cut off
        image.load()
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=True, strict=False)
    return Image.fromarray(pixels)


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


def _to_rgb(image: Image.Image, transparency: str) -> Image.Image:
    """Convert any mode of Pillow's to RGB as a person would expect.

    Transparent parts are laid over white, or show what colour they have when
    transparency is dropped, as Keras and TensorFlow do; integers of 16 bits and floats in
    [0, 1] are scaled to 8 bits; values beyond those ranges are stretched from
    their own smallest to their own largest.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data and transparency == "over white":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = 0.0, 65535.0 if values.dtype.kind in "iu" else 1.0
    if not np.isfinite(values).all():
        raise ImageError("holds pixels that are no finite numbers")
    if values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
    scaled: NDArray[np.float32] = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-30))
    return np.rint(scaled).astype(np.uint8, copy=False)
