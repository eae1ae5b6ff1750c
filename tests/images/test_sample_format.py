"""sample_format: which range of numbers is shown."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL
import pytest
from shown import GREY, RGB, chunk, decoded, distance, numbers
from tiffs import tiff

from rn50feat.errors import ImageError


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


def fits(pixels: np.ndarray, bits: int, **cards: int) -> bytes:
    named = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 300, "NAXIS2": 260, **cards}
    head = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in named.items()) + "END"
    return head.ljust(2880).encode() + pixels[::-1].tobytes()


def test_fits_is_signed_and_shifted_as_it_says() -> None:
    stored = (GREY * 257 - 32768).astype(">i2")
    if int(PIL.__version__.partition(".")[0]) < 13:  # of Python 3.10
        with pytest.raises(ImageError, match="FITS image of more than 8 bits, which Pillow .* reads in the wrong byte"):
            decoded(fits(stored, 16), suffix=".fits")
        return
    assert distance(fits(stored, 16, BZERO=32768, BSCALE=1), suffix=".fits") == 0
    assert distance(fits(stored, 16), suffix=".fits") == 0
    assert distance(fits((GREY * 16).astype(">i2"), 16, BZERO=100), suffix=".fits", value_range="100:4180") == 0
