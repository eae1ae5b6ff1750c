"""thumbnails: the whole picture, upright, for every location in its order, whatever the files hold."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import encoded, scene, turned

from rn50feat.engines.contract import EngineOptions
from rn50feat.pages.thumbnails import SIDE, Thumbnail, thumbnails

ONE = EngineOptions(workers=1)


def made(folder: Path, *pictures: bytes, **settings: int) -> list[Thumbnail]:
    for i, data in enumerate(pictures):
        (folder / str(i)).write_bytes(data)
    options = EngineOptions(**{"workers": 1, **settings})
    return list(thumbnails([str(folder / str(i)) for i in range(len(pictures))], options))


def opened(thumbnail: Thumbnail) -> Image.Image:
    assert thumbnail.reason == ""
    return Image.open(io.BytesIO(thumbnail.jpeg))


def test_a_thumbnail_shows_the_whole_picture_in_its_own_shape(tmp_path: Path) -> None:
    sizes = {(900, 600): (SIDE, 213), (600, 900): (213, SIDE), (40, 30): (40, 30), (1, 1): (1, 1), (2000, 3): (SIDE, 1)}
    pictures = [scene(4, *size) if min(size) > 20 else Image.new("RGB", size, "red") for size in sizes]
    found = made(tmp_path, *(encoded(picture, "PNG") for picture in pictures))
    assert [opened(thumbnail).size for thumbnail in found] == list(sizes.values())
    for picture, thumbnail in zip(pictures[:2], found):
        image = opened(thumbnail)
        assert np.abs(np.asarray(image, int) - np.asarray(picture.resize(image.size), int)).mean() < 6
    assert max(len(thumbnail.jpeg) for thumbnail in found) < 30_000


def test_it_is_upright_and_transparent_parts_are_white(tmp_path: Path) -> None:
    image = scene(5, 330, 250)
    glass = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    *upright, white = made(tmp_path, *(turned(image, i) for i in range(1, 9)), encoded(glass, "PNG"))
    expected = np.asarray(image.resize((SIDE, 242)), int)
    for thumbnail in upright:
        assert np.abs(np.asarray(opened(thumbnail), int) - expected).mean() < 6
    assert opened(white).getpixel((15, 15)) == (255, 255, 255)


def test_a_large_jpeg_is_as_good_as_its_png(tmp_path: Path) -> None:
    image = scene(6, 3000, 2000)
    jpeg, png = made(tmp_path, encoded(image, quality=95), encoded(image, "PNG", compress_level=1))
    difference = np.abs(np.asarray(opened(jpeg), int) - np.asarray(opened(png), int))
    assert difference.mean() < 1.5


def test_nothing_of_a_file_but_its_pixels_comes_along(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    data = encoded(scene(1, 99, 80), comment=b"secret comment", exif=exif)
    (thumbnail,) = made(tmp_path, data)
    assert b"secret" in data
    assert b"secret" not in thumbnail.jpeg


def test_a_picture_that_cannot_be_shown_says_why_and_the_others_are_shown(tmp_path: Path) -> None:
    good = encoded(Image.new("RGB", (30, 30), "lime"), "PNG")
    found = made(tmp_path, good, b"text", b"", encoded(scene(2), "PNG")[:5000], good, encoded(scene(3, 1100, 1000)))
    assert [thumbnail.reason for thumbnail in found[:2]] == ["", "is not an image in a format that Pillow reads"]
    assert found[2] == Thumbnail(b"", "is empty")
    assert found[3].reason.startswith("cannot be decoded: ")
    assert opened(found[4]).size == (30, 30)
    (small,) = made(tmp_path, encoded(scene(3, 1100, 1000), "PNG"), max_megapixels=1)
    assert small.reason.startswith("is too large, 1100x1000")
    os.mkfifo(tmp_path / "pipe")
    strange = ["/none/at/all.png", str(tmp_path / "pipe"), str(tmp_path), "https://host/picture.jpg", "a\0b"]
    reasons = [thumbnail.reason for thumbnail in thumbnails(strange, ONE)]
    assert reasons[0] == "has vanished"
    assert reasons[1] == "is no longer a regular file"
    assert all(reasons)


def test_many_come_in_their_order_and_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(encoded(Image.new("RGB", (8, 8), (6 * i, 0, 0)), "PNG"))
    taken: list[int] = []

    def stream() -> Iterator[str]:
        for i in range(40):
            taken.append(i)
            yield str(tmp_path / f"{i}.png")

    with closing(thumbnails(stream(), EngineOptions(workers=2))) as found:
        next(found)
        assert len(taken) == 4
        for i, thumbnail in enumerate(found, 1):
            assert abs(opened(thumbnail).getpixel((4, 4))[0] - 6 * i) <= 3
    assert i == 39
    assert list(thumbnails([], ONE)) == []


@pytest.mark.parametrize("name", [b"caf\xe9.png", "🦜\n\u202e<b>.png".encode()])
def test_any_name(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encoded(Image.new("RGB", (8, 8), "red"), "PNG"))
    (thumbnail,) = thumbnails([str(path)], ONE)
    assert opened(thumbnail).size == (8, 8)
