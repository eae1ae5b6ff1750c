"""Convert an image from its embedded ICC profile to sRGB.

In: an image with 8 bits per channel and no transparency, and the bytes of a
profile. Out: the image in sRGB, or the image unchanged and the reason why its
profile cannot be used.
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageCms

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """Convert an image to sRGB with the perceptual intent; also return what is wrong with its profile, or ""."""
    try:
        space, transform = _transform(profile)
        mode = _MODES[space]
        if mode == "CMYK" and image.mode != "CMYK":
            return image, "has a colour profile for CMYK but is not CMYK"
        converted = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError) as error:
        return image, f"has a colour profile that cannot be used: {' '.join(str(error).split())}"
    assert converted is not None
    return converted, ""


@lru_cache(8)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    """Build the transform from a profile, and name its colour space: 0.3 ms, and most images share one profile."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    return space, ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), _MODES[space], "RGB")


def from_lab(image: Image.Image) -> Image.Image:
    """Convert an image from CIELAB to sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted
