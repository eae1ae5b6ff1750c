"""Small copies keep what their image was."""

from __future__ import annotations

import numpy as np
from scenes import encoded, scene, turned

from rn50feat.images.decoding import view
from rn50feat.images.views import SmallCopy


def test_a_copy_comes_out_as_it_went_in() -> None:
    made = view(encoded(scene(1, 300, 200), "PNG"), 64, suffix=".png", max_pixels=10**6)
    assert (made.rgb.shape, made.width, made.height) == ((43, 64, 3), 300, 200)
    packed = made.packed()
    assert len(packed) < 3 * 65**2
    back = SmallCopy.unpacked(memoryview(packed + bytes(9)))
    assert (back.width, back.height, back.digest) == (300, 200, made.digest)
    assert np.array_equal(back.rgb, made.rgb)


def test_the_hash_is_that_of_the_upright_pixels_whatever_the_format() -> None:
    image = scene(2, 64, 48)
    files = [encoded(image, "PNG"), encoded(image, "BMP"), turned(image, 6), encoded(scene(3, 64, 48), "PNG")]
    copies = [view(data, 32, suffix="", max_pixels=10**6) for data in files]
    assert copies[0].digest == copies[1].digest != copies[3].digest
    assert (copies[2].width, copies[2].height) == (64, 48)
