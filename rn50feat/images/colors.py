"""Convert an image from its embedded ICC profile to sRGB.

In: an image of 8 bits a channel without transparency, and the bytes of a
profile. Out: the image in sRGB, or as it was with the reason why its profile
is of no use.
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageCms

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """Return an image in sRGB, by the perceptual intent, and the fault of its profile, "" for none."""
    try:
        space, transform = _transform(profile)
        mode = _MODES[space]
        if mode == "CMYK" and image.mode != "CMYK":
            return image, "has a colour profile for CMYK, but other channels"
        converted = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError) as error:
        return image, f"has a colour profile that cannot be used: {' '.join(str(error).split())}"
    assert converted is not None
    return converted, ""


@lru_cache(8)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    """Return the colour space of a profile, and what converts from it: 0.3 ms to build, and most images share one."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    return space, ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), _MODES[space], "RGB")


def from_lab(image: Image.Image) -> Image.Image:
    """Return an image of CIELAB in sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted
