"""Recognise images by the first bytes of a file and by its name.

In: the head or the name of a file. Out: whether it is an image, which of
Pillow's formats to try, and how to convert a format that rn50feat does not
read. Nothing is decoded here.
"""

from __future__ import annotations

import os
import re

# What Pillow reads by itself, except EPS and WMF (they start other programs)
# and the stubs that only recognise a format (HDF5, GRIB, BUFR, MPEG).
_FORMATS = (
    "AVIF BLP BMP CUR DCX DDS DIB FITS FLI FTEX GBR GIF ICNS ICO JPEG JPEG2000 MSP PCX"
    " PNG PPM PSD QOI SGI SUN TIFF WEBP XBM XPM"
).split()
# These have no signature and "recognise" other data too, so they are tried for their own suffixes only.
_UNSIGNED = {".im": "IM", ".pcd": "PCD", ".tga": "TGA", ".icb": "TGA", ".vda": "TGA", ".vst": "TGA"}

try:
    import pillow_heif
except ImportError:
    HEIC = False
else:
    pillow_heif.register_heif_opener()
    _FORMATS.append("HEIF")
    HEIC = True

SUFFIXES = frozenset(
    ".apng .avif .avifs .blp .bmp .cur .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr .gif .heic .heics .heif"
    " .heifs .hif .icb .icns .ico .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .msp .pbm .pcd .pcx"
    " .pfm .pgm .png .pnm .ppm .psd .qoi .ras .rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm"
    # Camera files based on TIFF, and formats that go into the ledger as unsupported.
    " .3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .exr .fff .iiq .jxl .jxr .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef"
    " .psb .raf .rw2 .rwl .sr2 .srf .srw .wdp .x3f .xcf".split()
)

# Only unmistakable first bytes: a text may begin with "P5 " or "BM", so PPM
# and the like are recognised by their suffixes only.
_MAGIC = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF....WEBP"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP with a known header size
    rb"|II[*+]\0|MM\0[*+]"  # TIFF and BigTIFF
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000
    rb"|8BPS\x00\x01|qoif|DDS \x7c\0\0\0|icns\0",
    re.DOTALL,
)
_CONVERTER = "convert it to PNG, for example with {}"
_DEVELOPER = "convert it to JPEG or TIFF, for example with darktable-cli"
_UNSUPPORTED = [
    (re.compile(signature, re.DOTALL), name, remedy)
    for signature, name, remedy in (
        (rb"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _CONVERTER.format("djxl")),
        (rb"II\xbc[\0\x01]", "JPEG XR", _CONVERTER.format("JxrDecApp")),
        (rb"v/1\x01", "OpenEXR", _CONVERTER.format("ImageMagick")),
        (rb"#\?R(?:ADIANCE|GBE)\n", "Radiance HDR", _CONVERTER.format("ImageMagick")),
        (rb"8BPS\0\x02", "a large Photoshop document (PSB)", _CONVERTER.format("ImageMagick")),
        (rb"gimp xcf ", "a GIMP image (XCF)", "export it as PNG with GIMP"),
        (rb"FUJIFILMCCD-RAW ", "a Fujifilm raw image (RAF)", _DEVELOPER),
        (rb"II(?:RO|RS)\x08\0|MMOR\0", "an Olympus raw image (ORF)", _DEVELOPER),
        (rb"IIU\0", "a Panasonic raw image (RW2)", _DEVELOPER),
        (rb"....ftypcrx ", "a Canon raw image (CR3)", _DEVELOPER),
        (rb"II\x1a\0\0\0HEAPCCDR", "a Canon raw image (CRW)", _DEVELOPER),
        (rb"\0MRM", "a Minolta raw image (MRW)", _DEVELOPER),
        (rb"FOVb", "a Sigma raw image (X3F)", _DEVELOPER),
    )
]
# Two bytes are too few to recognise an image, but enough to name the format of a file with an image suffix.
_JPEG_XL_STREAM = b"\xff\x0a"

_AVIF = frozenset({b"avif", b"avis", b"avio"})
_HEVC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF = frozenset({b"mif1", b"mif2", b"msf1", b"miaf"})  # these name the container, not the codec


def pillow_formats(suffix: str) -> list[str]:
    """List Pillow's formats to try for a file with this lower-case suffix."""
    return [*_FORMATS, _UNSIGNED[suffix]] if suffix in _UNSIGNED else _FORMATS


def has_image_suffix(location: str) -> bool:
    """Check whether a file name has an image suffix."""
    return os.path.splitext(location)[1].lower() in SUFFIXES


def has_image_signature(head: bytes) -> bool:
    """Check whether a file's first bytes (at least 18) are those of an image, supported or not."""
    if _MAGIC.match(head) or _brands(head) & (_AVIF | _HEVC | _HEIF):
        return True
    return any(signature.match(head) for signature, _, _ in _UNSUPPORTED)


def named_as_appledouble(location: str) -> bool:
    """Check whether a file name is one that macOS gives to AppleDouble files."""
    *folders, name = location.rpartition("::")[2].split("/")
    return name.startswith("._") or "__MACOSX" in folders or ".AppleDouble" in folders


def is_appledouble(head: bytes) -> bool:
    """Check whether a file's first bytes (at least 8) are those of AppleDouble, macOS metadata (RFC 1740)."""
    return head[:8] in (b"\0\5\x16\7\0\1\0\0", b"\0\5\x16\7\0\2\0\0")


def unsupported(data: bytes) -> str:
    """Explain why a file's format cannot be read, and what to do; "" for any other file."""
    if is_appledouble(data[:8]):
        return "is macOS metadata (AppleDouble), not an image"
    brands = _brands(data)
    if brands & _AVIF:
        return ""  # Pillow reads these, whichever brand comes first
    if brands & (_HEVC | _HEIF):
        return "" if HEIC else "is HEIC, which needs: pip install 'rn50feat[heic]'"
    for signature, name, remedy in _UNSUPPORTED:
        if signature.match(data):
            return f"is {name}, which rn50feat does not read: {remedy}"
    if data.startswith(_JPEG_XL_STREAM):
        return f"is JPEG XL, which rn50feat does not read: {_CONVERTER.format('djxl')}"
    return ""


def supports(name: str) -> bool:
    """Check whether this installation reads the format that `unsupported`, perhaps elsewhere, called `name`."""
    return HEIC if name == "HEIC" else all(name != other for _, other, _ in _UNSUPPORTED)


def _brands(data: bytes) -> frozenset[bytes]:
    """Read the major and compatible brands of an ISO 14496-12 file; none for any other file."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), len(data), 1024)
    return frozenset((data[8:12], *(data[i : i + 4] for i in range(16, end - 3, 4))))
