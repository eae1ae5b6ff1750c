"""resampling and images: the input of Keras and of slim, to the last digit."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import reference
import simplejpeg
from PIL import Image
from scenes import encoded, scene, turned

from rn50feat.errors import ImageError
from rn50feat.images import decoding
from rn50feat.images.provenance import PREPROCESSINGS, Preprocessing

KERAS, SLIM, SLIM_PILLOW = (PREPROCESSINGS[name] for name in ("keras", "slim", "slim-pillow"))
SLIM_MEAN = np.array(SLIM.mean, np.float32)


def decode(data: bytes, settings: Preprocessing, suffix: str = ".png") -> np.ndarray:
    return decoding.decode(data, settings, suffix=suffix, max_pixels=10**7).crop


@pytest.mark.parametrize(
    "size", [(256, 256), (224, 224), (640, 480), (333, 1000), (1001, 333), (257, 255), (3000, 2000), (31, 30)]
)
def test_slims_crop_is_that_of_vgg_preprocessing(size: tuple[int, int]) -> None:
    image = scene(3, *size)
    crop = decode(encoded(image, "PNG"), SLIM)
    assert (crop.shape, crop.dtype) == ((224, 224, 3), np.float32)
    assert np.abs(crop - SLIM_MEAN - reference.vgg_preprocessing(np.asarray(image))).max() < 1e-4


@pytest.mark.parametrize("size", [(224, 224), (640, 480), (333, 1000), (31, 30)])
def test_keras_squashes_to_the_nearest_pixels_in_bgr(size: tuple[int, int]) -> None:
    image = scene(3, *size)
    crop = decode(encoded(image, "PNG"), KERAS)
    expected = np.asarray(image.resize((224, 224), Image.Resampling.NEAREST))[..., ::-1]
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, expected)


def test_slim_decodes_jpegs_as_tensorflow_does() -> None:
    image = scene(4, 300, 256)
    data = encoded(image, quality=85)
    pixels = simplejpeg.decode_jpeg(data, fastdct=True)
    crop = decode(data, SLIM, ".jpg")
    assert np.abs(crop - SLIM_MEAN - reference.vgg_preprocessing(pixels)).max() < 1e-4
    pillow = decode(data, SLIM_PILLOW, ".jpg")
    assert 0.1 < np.abs(crop - pillow).mean() < 3
    assert (
        np.abs(pillow - SLIM_MEAN - reference.vgg_preprocessing(np.asarray(Image.open(io.BytesIO(data))))).max() < 1e-4
    )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_colours(mode: str) -> None:
    data = encoded(scene(4, 300, 256).convert(mode), quality=95)
    slim, pillow = decode(data, SLIM, ".jpg"), decode(data, SLIM_PILLOW, ".jpg")
    assert np.abs(slim - pillow).mean() < 3


def test_a_truncated_jpeg_is_a_failure_for_either_decoder() -> None:
    data = encoded(scene(4, 300, 256))
    for settings in (SLIM, SLIM_PILLOW, KERAS):
        with pytest.raises(ImageError):
            decode(data[: len(data) // 2], settings, ".jpg")


def test_a_flaw_that_every_decoder_passes_over_is_no_failure() -> None:
    data = encoded(scene(4, 300, 256))
    at = data.index(b"\xff\xda") + 400
    flawed = data[:at] + bytes(9) + data[at + 9 :]
    slim, pillow = decode(flawed, SLIM, ".jpg"), decode(flawed, SLIM_PILLOW, ".jpg")
    assert np.abs(slim - pillow).mean() < 3


@pytest.mark.parametrize("name", ["keras", "slim", "slim-pillow"])
def test_orientations_are_left_as_they_lie_unless_asked_for(name: str) -> None:
    lying = turned(scene(5, 330, 250), 6)
    plain = encoded(scene(5, 330, 250), quality=92)
    settings = PREPROCESSINGS[name]
    assert settings.exif == "ignored"
    left, upright, expected = (
        decode(data, replace(settings, exif=exif), ".jpg").astype(float)
        for data, exif in ((lying, "ignored"), (lying, "applied"), (plain, "ignored"))
    )
    assert np.abs(upright - expected).mean() < 3 < np.abs(left - expected).mean()


@pytest.mark.parametrize("name", ["keras", "slim"])
def test_transparent_parts_show_their_own_colour(name: str) -> None:
    crop = decode(encoded(Image.new("RGBA", (300, 300), (200, 10, 30, 0)), "PNG"), PREPROCESSINGS[name])
    assert crop[100, 100].tolist() == ([30, 10, 200] if name == "keras" else [200, 10, 30])
