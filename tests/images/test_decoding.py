"""decoding: every kind of image becomes the crop that a person would expect."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features
from scenes import encoded, scene, turned
from shown import PLAIN, decode, middle, png
from torchvision import transforms

from rn50feat.errors import ImageError
from rn50feat.images import decoding
from rn50feat.images.provenance import Preprocessing


@pytest.mark.parametrize("size", [(256, 256), (640, 480), (333, 1000), (40, 30), (1, 1), (3, 900), (257, 255)])
@pytest.mark.parametrize("resize", [256, 232])
def test_the_crop_is_that_of_torchvision(size: tuple[int, int], resize: int) -> None:
    image = scene(4, *size) if min(size) > 20 else Image.new("RGB", size, (9, 99, 199))
    plain = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(224)])
    expected = np.asarray(plain(image)).astype(int)
    crop = decode(encoded(image, "PNG"), replace(PLAIN, resize=resize))
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    # One resampling instead of two steps: rounding, and nothing else, may differ.
    assert np.abs(crop - expected).max() <= 2
    assert np.abs(crop - expected).mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_turned_upright(orientation: int) -> None:
    image = scene(5, 330, 250)
    upright, left = (decode(turned(image, orientation), replace(PLAIN, exif=exif)) for exif in ("applied", "ignored"))
    expected = decode(encoded(image, quality=92)).astype(int)
    assert np.abs(upright - expected).mean() < 1.5
    assert (np.abs(left - expected).mean() < 1.5) == (orientation == 1)


def test_an_odd_tag_beside_the_orientation_harms_nothing() -> None:
    tags = [(0x0112, 3, 1, 6), (0x0100, 2, 1, 7)]  # turned by a quarter; a width in letters
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    exif += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    image = scene(3, 300, 260)
    sideways = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG")
    assert (
        decode(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)) == decode(encoded(image, "PNG"))
    ).all()
    broken = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif[:14] + b"\xff" * 40)
    assert (decode(broken) == decode(sideways)).all()


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "HEIF"]
)
def test_formats(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    image = scene(6, 300, 280)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    data = encoded(image, kind)
    crop = decode(data, suffix=f".{kind.lower()}")
    assert np.abs(crop.astype(int) - decode(encoded(image, "PNG"))).mean() < 6
    assert decoding.has_image_signature(data[:32]) == (kind not in ("PPM", "TGA"))


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(np.array(middle(data)) - (255, 0, 0)).max() < 5, kind


def grey16(big: bool = False) -> Image.Image:
    return Image.fromarray(np.full((30, 30), 0x8000, ">u2" if big else "<u2"))


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("1", (30, 30), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (30, 30), 77), "PNG", (77, 77, 77)),
        (Image.new("LA", (30, 30), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (30, 30), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (30, 30), (0, 0, 0, 128)), "PNG", (127, 127, 127)),
        (Image.new("CMYK", (30, 30), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("CMYK", (30, 30), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (grey16(), "PNG", (128, 128, 128)),
        (grey16(), "TIFF", (128, 128, 128)),
        (grey16(big=True), "TIFF", (128, 128, 128)),
        (Image.new("I", (30, 30), 0x8000), "TIFF", (128, 128, 128)),
        (Image.new("F", (30, 30), 0.5), "TIFF", (128, 128, 128)),
        (Image.new("LAB", (30, 30), (255, 128, 128)), "TIFF", (255, 255, 255)),
        (Image.new("YCbCr", (30, 30), (255, 128, 128)), "JPEG", (255, 255, 255)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes_become_what_a_person_sees(image: Image.Image, kind: str, expected: tuple[int, ...]) -> None:
    assert np.abs(np.array(middle(encoded(image, kind))) - expected).max() <= 2


def test_a_palette_with_transparency_lies_over_white() -> None:
    image = Image.new("P", (30, 30), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    assert middle(encoded(image, "PNG", transparency=1)) == (255, 255, 255)
    assert middle(encoded(image, "GIF", transparency=1)) == (255, 255, 255)
    assert middle(encoded(image, "PNG", transparency=0)) == (200, 0, 0)
    # RGB with one colour named as transparent
    assert middle(encoded(Image.new("RGB", (30, 30), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


def broken() -> dict[str, bytes]:
    jpeg, whole = encoded(scene(7), quality=90), encoded(scene(7), "PNG")
    checksum = bytearray(whole)
    checksum[whole.index(b"IDAT") + 200] ^= 0xFF
    return {
        "empty": b"",
        "text": b"this is a text",
        "zeros": bytes(5000),
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "JPEG header": jpeg[:200],
        "truncated PNG": whole[: len(whole) // 2],
        "checksum": bytes(checksum),
        "bomb": png(50_000, 50_000, 8, 0, b""),
        "store": b"\x89HDF\r\n\x1a\n" + bytes(1000),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "NaN": encoded(Image.new("F", (30, 30), float("nan")), "TIFF"),
    }


@pytest.mark.parametrize("name", broken())
def test_broken_pictures_fail_with_a_reason(name: str) -> None:
    with pytest.raises(ImageError) as error:
        decode(broken()[name], suffix=".jpg")
    assert len(str(error.value)) > 5
    assert "\n" not in str(error.value)


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    decoding.lift_pillow_limit()
    with pytest.raises(ImageError, match="50000x50000 .2500 of 10 megapixels.: raise --max-megapixels"):
        decode(png(50_000, 50_000, 8, 0, b""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "scale"), [((1023, 2000), 1), ((1024, 1500), 2), ((2047, 2100), 2), ((2048, 3001), 4), ((4100, 4096), 8)]
)
def test_large_jpegs_are_decoded_at_a_smaller_scale(
    size: tuple[int, int], scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[int, int]] = []
    crop = decoding._crop

    def watch(image: Image.Image, whole: tuple[int, ...], settings: Preprocessing) -> Image.Image:
        loaded.append(image.size)
        return crop(image, whole, settings)

    monkeypatch.setattr(decoding, "_crop", watch)
    data = encoded(scene(9, *size), quality=95)
    scaled, exact = (
        decoding.decode(data, replace(PLAIN, decoding=how), suffix=".jpg", max_pixels=10**8).crop
        for how in ("scaled", "exact")
    )
    assert loaded == [tuple(-(-side // scale) for side in size), size]
    assert min(loaded[0]) >= 2 * PLAIN.resize
    assert np.sqrt(np.mean((scaled.astype(float) - exact) ** 2)) < 1.5


@pytest.mark.slow
def test_a_large_jpeg_is_measured_at_the_scale_at_which_it_is_decoded() -> None:
    data = encoded(scene(9, 4096, 4096))
    decoding.decode(data, PLAIN, suffix=".jpg", max_pixels=300_000)
    with pytest.raises(ImageError, match="4096x4096"):
        decoding.decode(data, replace(PLAIN, decoding="exact"), suffix=".jpg", max_pixels=300_000)
