"""Edit images in ways whose names are known."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scenes import encoded

from rn50feat.searching.guesses import SIDE, View

Edit = Callable[[Image.Image, random.Random], Image.Image]


def view(image: Image.Image) -> View:
    return View.of(image.convert("RGB"), SIDE)


def coded(image: Image.Image, quality: int = 85, kind: str = "JPEG") -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, kind, quality=quality))).convert("RGB")


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    return image.resize((int(image.width * x), int(image.height * y)), Image.Resampling.LANCZOS)


def cut(image: Image.Image, rng: random.Random, share: float) -> Image.Image:
    """Cut out a share of an image's area, somewhere."""
    width, height = (int(side * share**0.5) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def covered(image: Image.Image, rng: random.Random) -> Image.Image:
    """Draw a rectangle over 2 to 12 % of an image."""
    image = image.copy()
    width, height = (side * rng.uniform(0.15, 0.35) for side in image.size)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    color = tuple(rng.randint(0, 255) for _ in range(3))
    ImageDraw.Draw(image).rectangle((left, top, left + width, top + height), fill=color)
    return image


_TURNS = [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270]
EDITS: list[tuple[str, Edit]] = [
    ("same pixels", lambda image, rng: image.copy()),
    ("re-encoded", lambda image, rng: coded(image, rng.choice([20, 40, 60, 85]))),
    ("re-encoded", lambda image, rng: coded(image, rng.choice([30, 60, 80]), "WEBP")),
    ("resized", lambda image, rng: coded(scaled(image, 0.5, 0.5))),
    ("resized", lambda image, rng: scaled(image, *[rng.uniform(0.25, 0.9)] * 2)),
    ("resized", lambda image, rng: coded(scaled(image, 0.75, 0.5))),
    ("cropped", lambda image, rng: coded(cut(image, rng, 0.92))),
    ("cropped", lambda image, rng: coded(cut(image, rng, 0.7))),
    ("cropped", lambda image, rng: coded(cut(image, rng, 0.4), 70)),
    ("cropped", lambda image, rng: coded(scaled(cut(image, rng, 0.6), 0.5, 0.5))),
    ("rotated or mirrored", lambda image, rng: coded(image.transpose(rng.choice(_TURNS)))),
    ("rotated or mirrored", lambda image, rng: coded(ImageOps.mirror(image))),
    (
        "rotated or mirrored",
        lambda image, rng: coded(image.rotate(rng.choice([-1, 1]) * rng.uniform(3, 20), Image.Resampling.BICUBIC)),
    ),
    ("rotated or mirrored", lambda image, rng: coded(ImageOps.mirror(cut(image, rng, 0.7)))),
    ("edited", lambda image, rng: coded(covered(image, rng))),
    ("edited", lambda image, rng: coded(ImageEnhance.Brightness(image).enhance(rng.choice([0.7, 1.4])))),
    ("edited", lambda image, rng: coded(ImageOps.grayscale(image).convert("RGB"))),
    ("edited", lambda image, rng: coded(ImageEnhance.Contrast(image).enhance(rng.choice([0.6, 1.5])))),
    ("edited", lambda image, rng: coded(scaled(covered(image, rng), 0.5, 0.5))),
]
