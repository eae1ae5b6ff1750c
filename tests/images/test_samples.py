"""images.samples, tiff, png and kinds: what a file declares about its samples comes before its pixels."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from scenes import encoded, scene
from tiffs import raw_file, tiff

from rn50feat.errors import ImageError
from rn50feat.images import decoding, kinds
from rn50feat.images.provenance import Preprocessing

RGB = np.asarray(scene(3, 300, 260))
GREY = np.asarray(scene(3, 300, 260).convert("L")).astype(np.int64)


def decoded(data: bytes, suffix: str = ".tif", **settings: str) -> decoding.Decoded:
    return decoding.decode(data, replace(Preprocessing(), **settings), suffix=suffix, max_pixels=10**7)


def distance(data: bytes, twin: np.ndarray = GREY, suffix: str = ".tif", **settings: str) -> int:
    """Return how far the crop of an image is from that of a plain PNG, at most, of 255."""
    plain = decoded(encoded(Image.fromarray(twin.astype(np.uint8)), "PNG")).crop
    return int(np.abs(decoded(data, suffix, **settings).crop.astype(int) - plain).max())


def numbers(kind: str, order: str, inverted: bool) -> bytes:
    """Return the grey scene as a TIFF of a dtype."""
    dtype = np.dtype(kind)
    values: Any = (255 - GREY if inverted else GREY) / 255
    if dtype.kind in "iu":
        # Numbers of 32 bits have no range that anybody uses whole: 16 of them count.
        values = np.rint(values * (2 ** min(8 * dtype.itemsize, 16) - 1))
        values -= 2 ** (8 * dtype.itemsize - 1) if dtype.kind == "i" and dtype.itemsize < 4 else 0
    form = {"u": 1, "i": 2, "f": 3}[dtype.kind]
    return tiff(values.astype(dtype), order=order, meaning=int(not inverted), t339=(form,))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_a_tiff_of_any_numbers_shows_the_image(kind: str, order: str, inverted: bool) -> None:
    assert distance(numbers(kind, order, inverted)) == 0


def test_twelve_bits_may_be_packed_or_lie_in_sixteen() -> None:
    values = np.rint(GREY / 255 * 4095).astype(">u2")
    bits = np.unpackbits(values.reshape(-1, 1).view(np.uint8), axis=1)[:, 4:]
    assert distance(tiff(np.packbits(bits).tobytes(), (300, 260), bits=(12,))) == 0
    loose = tiff(values.astype(np.uint16))
    assert decoded(loose).crop.max() < 17
    assert distance(loose, value_range="0:4095") == 0
    own = decoded(loose, value_range="own").crop
    assert own.min() < 10 and own.max() > 245


def test_a_range_is_for_more_than_eight_bits() -> None:
    assert distance(tiff(GREY.astype(np.uint8)), value_range="0:4095") == 0
    assert distance(numbers("i1", "<", False), value_range="0:4095") == 0
    assert distance(tiff(RGB, meaning=2), RGB, value_range="own") == 0
    clipped = decoded(numbers("u2", "<", False), value_range="20000:30000").crop
    assert (clipped.min(), clipped.max()) == (0, 255)
    assert distance(numbers("f4", "<", True), value_range="0:1") == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_range_is_for_colours_of_sixteen_bits_too(order: str, alpha: bool) -> None:
    channels = [np.rint(RGB / 255 * 4095), *([np.full((260, 300, 1), 65535)] if alpha else [])]
    pixels = np.concatenate(channels, axis=-1).astype(np.uint16)
    data = tiff(pixels, order=order, meaning=2, **({"t338": (2,)} if alpha else {}))
    assert decoded(data).crop.max() < 17
    assert distance(data, RGB, value_range="0:4095") == 0
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 300, 260, 16, 6 if alpha else 2, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert distance(data, RGB, value_range="0:4095") == 0


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_numbers_are_read_in_their_byte_order(compression: str) -> None:
    for values in ((GREY / 255).astype(np.float32), (GREY * 257).astype(np.int32), (GREY * 257).astype(np.uint16)):
        assert distance(encoded(Image.fromarray(values), "TIFF", compression=compression)) == 0


@pytest.mark.parametrize(
    ("pixels", "settings", "words"),
    [
        (GREY, {"t339": (2,)}, "64 bits"),
        ((RGB / 255).astype(np.float32), {"meaning": 2, "t339": (3, 3, 3)}, "3 samples of 32 bits .float"),
        (RGB.view(np.int8), {"meaning": 2, "t339": (2, 2, 2)}, "signed"),
        (np.dstack([GREY, GREY]).astype(np.uint8), {}, "2 samples of 8 bits"),
        (RGB.astype(np.uint16), {"meaning": 8}, "photometric interpretation 8"),
        (RGB[::2], {"meaning": 6, "size": (300, 260)}, "subsampled YCbCr"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tiff_that_is_not_understood_says_what_it_is(pixels: np.ndarray, settings: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decoded(tiff(pixels, **settings))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("more", [{}, {"t338": (0,)}])
def test_a_fourth_sample_is_transparency_only_by_declaration(dtype: Any, more: Any) -> None:
    top = np.iinfo(dtype).max
    pixels = np.dstack([RGB.astype(np.int64) * (top // 255), np.zeros((260, 300))]).astype(dtype)
    assert distance(tiff(pixels, meaning=2, **more), RGB) == 0
    white = np.full_like(RGB, 255)
    assert distance(tiff(pixels, meaning=2, t338=(2,)), white) == 0


def tga(alpha: int, declared: int, *, extension: int | None = None) -> bytes:
    pixels = np.dstack([RGB[..., ::-1], np.full((260, 300), alpha)]).astype(np.uint8).tobytes()
    data = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 300, 260, 32, declared | 0x20) + pixels
    if extension is None:
        return data
    area = struct.pack("<H", 495) + bytes(492) + bytes([extension])
    return data + area + struct.pack("<LL", len(data), 0) + b"TRUEVISION-XFILE.\0"


def test_a_tga_declares_its_transparency() -> None:
    white = np.full_like(RGB, 255)
    assert distance(tga(0, 0), RGB, ".tga") == 0
    assert distance(tga(0, 8), RGB, ".tga") == 0  # an image that is nowhere seen means something else
    assert distance(tga(255, 8), RGB, ".tga") == 0
    for kind in (0, 1, 2):
        assert distance(tga(9, 8, extension=kind), RGB, ".tga") == 0
    assert distance(tga(1, 8, extension=3), white, ".tga") <= 2
    grey = struct.pack("<BBBHHBHHHHBB", 0, 0, 3, 0, 0, 0, 0, 0, 300, 260, 16, 0x20)
    with pytest.raises(ImageError, match="TGA with 16-bit grey"):
        decoded(grey + (GREY * 257).astype("<u2").tobytes(), ".tga")


@pytest.mark.parametrize(("kind", "suffix"), [(1, ".ico"), (2, ".cur")])
@pytest.mark.parametrize("alpha", [0, 255])
def test_an_icon_without_transparency_shows(kind: int, suffix: str, alpha: int) -> None:
    small = np.asarray(scene(3, 64, 64))
    pixels = np.dstack([small[..., ::-1], np.full((64, 64), alpha)]).astype(np.uint8)[::-1].tobytes()
    bitmap = struct.pack("<LllHHLLllLL", 40, 64, 128, 1, 32, 0, len(pixels), 0, 0, 0, 0) + pixels + bytes(512)
    head = struct.pack("<HHHBBBBHHLL", 0, kind, 1, 64, 64, 0, 0, 1, 32, len(bitmap), 22)
    assert distance(head + bitmap, small, suffix) == 0


def fits(pixels: np.ndarray, bits: int, **cards: int) -> bytes:
    named = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 300, "NAXIS2": 260, **cards}
    head = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in named.items()) + "END"
    return head.ljust(2880).encode() + pixels[::-1].tobytes()


def test_fits_is_signed_and_shifted_as_it_says() -> None:
    stored = (GREY * 257 - 32768).astype(">i2")
    assert distance(fits(stored, 16, BZERO=32768, BSCALE=1), suffix=".fits") == 0
    assert distance(fits(stored, 16), suffix=".fits") == 0
    assert distance(fits((GREY * 16).astype(">i2"), 16, BZERO=100), suffix=".fits", value_range="100:4180") == 0


def chunk(name: bytes, data: bytes, *, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_png_names_its_transparent_grey_at_its_own_depth(depth: int) -> None:
    value, byte = (1, sum(1 << i for i in range(0, 8, depth))) if depth < 8 else (0x2F, 0x2F)
    row = b"\0" + (struct.pack(">H", value) * 64 if depth == 16 else bytes([byte]) * (64 * depth // 8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, depth, 0, 0, 0, 0))
    for clear, shown in ((value, 255), (0, round(value / (2**depth - 1) * 255))):
        rest = chunk(b"tRNS", struct.pack(">H", clear)) + chunk(b"IDAT", zlib.compress(row * 64)) + chunk(b"IEND", b"")
        assert distance(b"\x89PNG\r\n\x1a\n" + head + rest, np.full((64, 64, 3), shown), ".png") == 0


def with_chunk(data: bytes, extra: bytes, before: bytes) -> bytes:
    at = data.index(before) - 4
    return data[:at] + extra + data[at:]


def test_a_png_is_judged_chunk_by_chunk() -> None:
    whole = encoded(scene(3, 300, 260), "PNG")
    for before in (b"IDAT", b"IEND"):
        data = with_chunk(whole, chunk(b"tEXt", b"a\0b", wrong=True), before)
        assert distance(data, RGB) == 0
        assert decoded(data).damage == "the checksum of its chunk tEXt is wrong"
    at, length = whole.index(b"IDAT") + 4, int.from_bytes(whole[whole.index(b"IDAT") - 4 :][:4], "big")
    flawed = bytearray(whole)
    flawed[at + length] ^= 1
    assert decoded(bytes(flawed)).damage == "the checksum of its chunk IDAT is wrong"
    flawed[at + length // 2] ^= 0xFF
    with pytest.raises(ImageError, match="cannot be decoded"):
        decoded(bytes(flawed))
    assert decoded(whole[:-12]).damage == "its end is missing"
    assert decoded(whole).damage == ""
    header = bytearray(whole)
    header[8 + 8 + 13] ^= 1
    with pytest.raises(ImageError, match="checksum in b'IHDR'"):
        decoded(bytes(header))


def test_of_a_raw_file_the_largest_preview_counts() -> None:
    image = scene(5, 640, 480)
    small, large = encoded(image.resize((160, 120))), encoded(image, quality=92)
    expected = decoded(large, ".jpg").crop
    for previews, sizes in (((small, large), ((160, 120), (640, 480))), ((large, small), ((640, 480), (160, 120)))):
        assert np.array_equal(decoded(raw_file(previews, sizes), ".dng").crop, expected)
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), quality=92)
    upright = decoded(raw_file([turned], [(480, 640)], orientation=6), ".dng").crop.astype(int)
    assert np.abs(upright - expected).mean() < 1
    with pytest.raises(ImageError, match="raw camera image whose largest embedded preview has 160x120 pixels: convert"):
        decoded(raw_file([small], [(160, 120)]), ".dng")
    with pytest.raises(ImageError, match="raw camera image without an embedded preview"):
        decoded(tiff(GREY.astype(np.uint16), meaning=32803))


UNREAD = {
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "Fujifilm": b"FUJIFILMCCD-RAW 0201",
    "Olympus": b"IIRO\x08\0\0\0",
    "Panasonic": b"IIU\0\x18\0\0\0",
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1",
    "JPEG XR": b"II\xbc\1\x20\0\0\0",
    "OpenEXR": b"v/1\1\2\0\0\0",
    "PSB": b"8BPS\0\2",
}


@pytest.mark.parametrize("name", UNREAD)
def test_formats_that_are_not_read_are_known_and_say_what_reads_them(name: str) -> None:
    data = UNREAD[name] + bytes(100)
    assert kinds.has_image_signature(data[:32])
    with pytest.raises(ImageError, match=f"{name}.*which rn50feat does not read: (convert|export) it"):
        decoded(data)


def test_two_bytes_make_a_jpeg_xl_only_under_its_name() -> None:
    data = b"\xff\x0a" + bytes(100)
    assert not kinds.has_image_signature(data[:32])
    assert kinds.has_image_suffix("image.JXL")
    with pytest.raises(ImageError, match="is JPEG XL"):
        decoded(data, ".jxl")


def test_what_is_coded_is_said_by_any_brand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "HEIC", False)
    data = encoded(scene(3, 300, 260), "AVIF")
    for brand in (b"mif1", b"miaf", b"msf1"):
        assert kinds.unsupported(data[:8] + brand + data[12:]) == ""
    assert not kinds.unsupported(data)
    heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50)
    assert "pip install 'rn50feat[heic]'" in kinds.unsupported(heic)
    assert kinds.has_image_signature(heic[:32])
    assert not kinds.has_image_signature(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(8))


def test_profiles_are_ignored_or_converted_to_srgb() -> None:
    # The channels of sRGB in another order: a profile that shows at once whether it was used.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = Image.fromarray(RGB[..., ::-1].copy())
    for kind in ("PNG", "TIFF", "WEBP"):
        more = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(swapped, kind, icc_profile=bytes(profile), **more)
        assert distance(data, RGB[..., ::-1]) == 0
        assert distance(data, RGB, profile="converted to sRGB") <= 2
    clear = swapped.convert("RGBA")
    clear.putalpha(0)
    assert distance(encoded(clear, "PNG", icc_profile=bytes(profile)), 255 + 0 * RGB, profile="converted to sRGB") == 0
    broken = decoded(encoded(swapped, "PNG", icc_profile=b"no profile" * 20), profile="converted to sRGB")
    assert broken.damage.startswith("has a colour profile that cannot be used")
    assert decoded(encoded(swapped, "PNG"), profile="converted to sRGB").damage == ""


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [3, 4])
def test_planes_of_16_bits_are_read_in_full(channels: int, order: str) -> None:
    values = np.asarray(scene(3, 60, 50).convert("RGBA"))[..., :channels].astype(np.uint16) * 257
    planes, size = np.moveaxis(values, -1, 0), 60 * 50 * 2
    more = {"t284": (2,), "t273": [8 + i * size for i in range(channels)], "t279": [size] * channels}
    more |= {"t338": (2,)} if channels == 4 else {}
    data = tiff(planes.astype(f"{order}u2").tobytes(), (60, 50), order=order, meaning=2, bits=(16,) * channels, **more)
    plain = encoded(scene(3, 60, 50), "PNG")
    for rule in ("type", "0:65535"):
        settings = replace(Preprocessing(), value_range=rule)
        crops = [decoding.decode(one, settings, suffix="", max_pixels=10**6).crop for one in (data, plain)]
        assert np.abs(crops[0].astype(int) - crops[1]).max() <= 1


def test_planes_of_16_bits_in_cmyk_are_refused() -> None:
    more = {"t284": (2,), "t273": [8 + i * 6000 for i in range(4)], "t279": [6000] * 4}
    data = tiff(bytes(24000), (60, 50), meaning=5, bits=(16,) * 4, **more)
    with pytest.raises(ImageError, match="16-bit CMYK in planes, which is not supported"):
        decoding.decode(data, Preprocessing(), suffix=".tif", max_pixels=10**6)


def test_jpeg_2000_with_wide_channels_is_refused() -> None:
    """Pillow would turn white to black: it rounds 65408 to 65535 up to 256, and keeps the lower byte."""
    data = bytearray(encoded(scene(3, 64, 64), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 4
    assert decoding.decode(bytes(data), Preprocessing(), suffix=".jp2", max_pixels=10**6).damage == ""
    data[at + 38] = 15  # 16 bits in its first channel
    with pytest.raises(ImageError, match="JPEG 2000 with 3 channels of 16 bits, which is not supported: convert it"):
        decoding.decode(bytes(data), Preprocessing(), suffix=".jp2", max_pixels=10**6)


def test_ones_are_black_in_a_photoshop_bitmap() -> None:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, 256, 256, 1, 0) + bytes(12) + b"\0\0"
    crop = decoding.decode(head + b"\xff" * 4096 + b"\0" * 4096, Preprocessing(), suffix=".psd", max_pixels=10**6).crop
    assert (crop[20].max(), crop[-20].min()) == (0, 255)
