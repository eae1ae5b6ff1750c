"""Dimensions come from the head of a file, upright, whatever the rest of the file is."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image
from scenes import encoded, scene

from rn50feat.images.dimensions import Dimensions, dimensions

FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]


@pytest.mark.parametrize("kind", FORMATS)
def test_dimensions_of_each_format(kind: str) -> None:
    image = scene(0, 60, 40)
    assert dimensions(encoded(image, kind)) == Dimensions(60, 40)


def test_dimensions_need_only_the_head() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(scene(0, 300, 200), kind)
        assert dimensions(data[: len(data) // 2]) == Dimensions(300, 200)
        assert dimensions(data[:15]) is None


def test_they_are_those_of_the_upright_image() -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    scene(0, 60, 40).save(file, "JPEG", exif=exif)
    assert dimensions(file.getvalue()) == Dimensions(40, 60)


@pytest.mark.parametrize("settings", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0II*\0"}])
def test_all_kinds_of_webp(settings: dict[str, object]) -> None:
    file = io.BytesIO()
    scene(0, 61, 40).save(file, "WEBP", **settings)
    assert dimensions(file.getvalue()) == Dimensions(61, 40)


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP9 " + bytes(20)])
def test_what_has_none(data: bytes) -> None:
    assert dimensions(data) is None


@pytest.mark.parametrize("kind", FORMATS)
def test_broken_heads_raise_nothing(kind: str) -> None:
    data, drawn = encoded(scene(0, 60, 40), kind), random.Random(0)
    for _ in range(100):
        broken = bytearray(data[: drawn.randrange(len(data))])
        for _ in range(min(len(broken), 4)):
            broken[drawn.randrange(min(len(broken), 200))] = drawn.randrange(256)
        dimensions(bytes(broken))
