"""images.jpeg: the pixels of Pillow, and what is wrong with those that still have pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scenes import encoded, scene

from rn50feat.errors import ImageError
from rn50feat.images import decoding, jpeg
from rn50feat.images.provenance import PREPROCESSINGS, Preprocessing

KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "subsampled": {"subsampling": 2, "optimize": True},
}
WHOLE = encoded(scene(3, 300, 260), quality=90)
NO_END = "has no end marker"


def decoded(data: bytes, preprocessing: Preprocessing = Preprocessing()) -> decoding.Decoded:
    return decoding.decode(data, preprocessing, suffix=".jpg", max_pixels=10**7)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_pillows(kind: str, mode: str, scale: int) -> None:
    data = encoded(scene(3, 331, 250).convert(mode), quality=90, **KINDS[kind])
    expected, header = (Image.open(io.BytesIO(data)) for _ in range(2))
    for image in (expected, header):
        image.draft(mode, (image.width // scale, image.height // scale))
    found, fault = jpeg.load(data, header)
    assert np.array_equal(found.convert("RGB"), expected.convert("RGB"))
    assert fault == ""


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_only_the_end_may_be_missing(kind: str, mode: str) -> None:
    whole = encoded(scene(3, 300, 260).convert(mode), quality=90, **KINDS[kind])
    expected = decoded(whole).crop
    for data in (whole[:-2], whole[:-1], whole[:-2] + bytes(4000)):
        found = decoded(data)
        assert (found.damage, np.array_equal(found.crop, expected)) == (NO_END, True)
    for data in (whole[:-20], whole[: len(whole) // 2], whole[: len(whole) // 2] + bytes(400_000)):
        with pytest.raises(ImageError, match="truncated"):
            decoded(data)


def test_a_progressive_jpeg_needs_all_its_scans() -> None:
    data = encoded(scene(3, 300, 260), quality=90, progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        tables = data.rindex(b"\xff\xc4", 0, at)  # which stand before their scan
        cut = tables if tables > max(scan for scan in scans if scan < at) else at
        with pytest.raises(ImageError, match="truncated"):
            decoded(data[:cut])


def test_what_follows_the_end_or_precedes_the_scan_harms_nothing() -> None:
    at = WHOLE.index(b"\xff\xda")
    for data in (WHOLE + b"a trailer", WHOLE + bytes(999), WHOLE + WHOLE, WHOLE[:at] + b"\1\2\3" + WHOLE[at:]):
        assert np.array_equal(decoded(data).crop, decoded(WHOLE).crop)
    assert decoded(WHOLE + b"a trailer").damage == decoded(WHOLE + WHOLE).damage == ""


@pytest.mark.parametrize("name", ["torchvision", "keras", "slim", "slim-pillow"])
def test_damage_that_decodes_is_told_in_the_decoders_words(name: str) -> None:
    middle = len(WHOLE) // 2
    damaged = WHOLE[:middle] + bytes(200) + WHOLE[middle + 200 :]
    found = decoded(damaged, PREPROCESSINGS[name])
    assert found.damage.startswith("Corrupt JPEG data: ")
    assert not np.array_equal(found.crop, decoded(WHOLE, PREPROCESSINGS[name]).crop)
    assert decoded(WHOLE, PREPROCESSINGS[name]).damage == ""


def test_what_simplejpeg_refuses_is_for_pillow() -> None:
    data = encoded(scene(3, 300, 260).convert("CMYK"), quality=90, subsampling=2)
    assert np.abs(decoded(data).crop.astype(int) - decoded(encoded(scene(3, 300, 260))).crop).mean() < 12
    with pytest.raises(ImageError, match="truncated"):
        decoded(data[:-200])


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_an_end_marker_does_not_make_a_truncated_jpeg_whole(kind: str) -> None:
    whole = encoded(scene(3, 300, 260), quality=90, **KINDS[kind])
    for part in (0.5, 0.8):
        cut = whole[: int(len(whole) * part)]
        with pytest.raises(ImageError, match="is truncated: some of its pixels are missing|broken data stream"):
            decoded(cut + b"\xff\xd9")
