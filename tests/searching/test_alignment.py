"""Relations are named as they came about, and images of two scenes have none."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from edits import EDITS, Edit, coded, view
from PIL import Image
from scenes import scene

from rn50feat.searching.alignment import Compared, compare


@pytest.mark.parametrize(("relation", "edit"), EDITS)
def test_an_edit_is_named(relation: str, edit: Edit) -> None:
    image = scene(1, 240, 180)
    found = compare(view(image), view(edit(image, random.Random(7))))
    # A rotation may leave corners that the original does not show.
    assert (found.relation, found.contained or relation == "rotated or mirrored") == (relation, True)


def test_a_crop_does_not_show_all_of_its_original() -> None:
    image = scene(2, 240, 180)
    assert compare(view(image.crop((20, 20, 200, 160))), view(image)) == Compared("cropped", False)


def test_different_scenes_are_not_related() -> None:
    views = [view(scene(seed, 160, 120)) for seed in range(4)]
    for one, other in pairwise(views):
        assert compare(one, other).relation is None


def test_plain_images_are_told_apart_by_their_colour() -> None:
    red, other_red, blue = (Image.new("RGB", (60, 40), color) for color in ("red", "#fc0202", "blue"))
    assert compare(view(red), view(coded(other_red))).relation == "re-encoded"
    assert compare(view(red), view(blue)).relation is None
    assert compare(view(red), view(scene(1, 60, 40))).relation is None
