"""Guesses of how images were turned, scaled and shifted."""

from __future__ import annotations

import numpy as np
import pytest
from edits import view
from PIL import Image, ImageOps
from scenes import scene

from rn50feat.searching.guesses import guesses


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_is_found_by_its_features(mirrored: bool) -> None:
    image = scene(4)
    part = image.crop((90, 60, 290, 210))
    found = [*guesses(view(image), view(ImageOps.mirror(part) if mirrored else part))]
    corner = np.array([199.0 if mirrored else 0.0, 0, 1])
    assert min(np.abs((guess @ corner)[:2] - (90, 60)).max() for guess in found) < 1


def test_a_whole_image_is_turned_back() -> None:
    image = scene(5)
    guess = next(guesses(view(image), view(image.transpose(Image.Transpose.ROTATE_90))))
    assert np.allclose(guess @ (0, 0, 1), (319, 0, 1))


def test_images_without_features_have_one_guess() -> None:
    plain = view(Image.new("RGB", (60, 40), "red"))
    (guess,) = guesses(plain, plain)
    assert np.allclose(guess, np.eye(3))
