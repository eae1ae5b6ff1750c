"""samples: what an image declares about its samples comes before its pixels."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import encoded, scene
from shown import GREY, RGB, decoded, distance
from tiffs import raw_file, tiff

from rn50feat.errors import ImageError
from rn50feat.images import decoding
from rn50feat.images.provenance import Preprocessing


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
