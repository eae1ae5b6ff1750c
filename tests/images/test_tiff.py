"""tiff: a TIFF of any numbers shows its image, or says what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import encoded, scene
from shown import GREY, RGB, decoded, distance, numbers
from tiffs import tiff

from rn50feat.errors import ImageError
from rn50feat.images import decoding
from rn50feat.images.provenance import Preprocessing


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
        (RGB[::2], {"meaning": 6, "size": (300, 260)}, "subsampled YCbCr|truncated"),  # Pillow 12
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tiff_that_is_not_understood_says_what_it_is(pixels: np.ndarray, settings: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decoded(tiff(pixels, **settings))


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
