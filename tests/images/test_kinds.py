"""kinds: what a file is, and what reads it."""

from __future__ import annotations

import pytest
from PIL import Image
from scenes import encoded, scene
from shown import decode, decoded, middle

from rn50feat.errors import ImageError
from rn50feat.images import kinds

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


def test_unsigned_formats_are_tried_for_their_names_only() -> None:
    data = encoded(Image.new("RGB", (30, 30), "red"), "TGA")
    assert middle(data, suffix=".TGA") == (255, 0, 0)
    with pytest.raises(ImageError, match="not an image"):
        decode(data, suffix=".jpg")


def test_heic_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "HEIC", False)
    with pytest.raises(ImageError, match="pip install 'rn50feat\\[heic\\]'"):
        decode(b"\0\0\0\x18ftypheic" + bytes(50))
