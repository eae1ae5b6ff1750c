"""Do what no way of decoding an image avoids, to measure how long that takes.

In: the bytes of an image, and a `Preprocessing`. Out: nothing.
"""

from __future__ import annotations

from contextlib import suppress

import simplejpeg
from PIL import Image

from rn50feat.images.decoding import decode
from rn50feat.images.provenance import Preprocessing


def least_work(data: bytes, preprocessing: Preprocessing, *, suffix: str, max_pixels: int) -> None:
    """Decode a JPEG at 1/8 of its size, which is little more than the Huffman pass, and resize an image once.

    Other formats are decoded as they always are. Raises `ImageError` as `decode` does.
    """
    with suppress(ValueError):  # not a JPEG, or one that simplejpeg refuses
        simplejpeg.decode_jpeg(data, min_width=1, min_height=1, strict=False)
        image = Image.new("RGB", (2 * preprocessing.crop, 2 * preprocessing.crop))
        image.resize((preprocessing.crop, preprocessing.crop), Image.Resampling.BILINEAR)
        return
    decode(data, preprocessing, suffix=suffix, max_pixels=max_pixels)
