"""png: transparency and damage, chunk by chunk."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from scenes import encoded, scene
from shown import RGB, chunk, decoded, distance

from rn50feat.errors import ImageError


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
