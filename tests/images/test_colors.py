"""colors: profiles are ignored, or converted to sRGB."""

from __future__ import annotations

from PIL import Image, ImageCms
from scenes import encoded
from shown import RGB, decoded, distance


def test_profiles_are_ignored_or_converted_to_srgb() -> None:
    # The channels of sRGB in another order: a profile that shows at once whether it was used.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = Image.fromarray(RGB[..., ::-1].copy())
    for kind in ("PNG", "TIFF", "WEBP"):
        more = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(swapped, kind, icc_profile=bytes(profile), **more)
        assert distance(data, RGB[..., ::-1]) == 0
        assert distance(data, RGB, profile="converted to sRGB") <= 2
    clear = swapped.convert("RGBA")
    clear.putalpha(0)
    assert distance(encoded(clear, "PNG", icc_profile=bytes(profile)), 255 + 0 * RGB, profile="converted to sRGB") == 0
    broken = decoded(encoded(swapped, "PNG", icc_profile=b"no profile" * 20), profile="converted to sRGB")
    assert broken.damage.startswith("has a colour profile that cannot be used")
    assert decoded(encoded(swapped, "PNG"), profile="converted to sRGB").damage == ""
