"""Draw pictures for the tests and the demo: landscapes from a seed.

``python tests/scenes.py FOLDER`` draws those in examples/images.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Return a landscape: sky, sun, ridges, and houses or trees; each seed another."""
    rng = np.random.default_rng(seed)
    horizon = float(rng.uniform(0.35, 0.7))
    sky = np.linspace(0, 1, height)[:, None, None]
    top, bottom = rng.uniform(20, 200, 3), rng.uniform(120, 255, 3)
    image = Image.fromarray((top + (bottom - top) * np.broadcast_to(sky, (height, width, 3))).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    radius, x, y = rng.uniform(0.04, 0.14) * height, rng.uniform(0, width), rng.uniform(0, horizon) * height
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_color(rng, 200, 256))
    for layer in range(int(rng.integers(2, 5))):
        base = (horizon + 0.12 * layer) * height
        steps = np.linspace(0, 1, 9 + 4 * layer)
        ridge = [(s * width, base - rng.uniform(0, 0.25) * height / (layer + 1)) for s in steps]
        draw.polygon([(0, height), *ridge, (width, height)], fill=_color(rng, 10, 200))
    for _ in range(int(rng.integers(3, 14))):
        _thing(draw, rng, rng.uniform(0, width), rng.uniform(horizon, 1) * height, rng.uniform(0.06, 0.25) * height)
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _thing(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    if rng.random() < 0.5:
        draw.rectangle((x - size / 2, y - size, x + size / 2, y), fill=_color(rng, 60, 256))
        roof = [(x - size * 0.6, y - size), (x, y - size * 1.5), (x + size * 0.6, y - size)]
        draw.polygon(roof, fill=_color(rng, 40, 200))
    else:
        draw.rectangle((x - size / 12, y - size / 2, x + size / 12, y), fill=(90, 60, 30))
        draw.ellipse((x - size / 3, y - size * 1.2, x + size / 3, y - size / 2), fill=_color(rng, 20, 180))


def _color(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(value) for value in rng.integers(low, high, 3))


def encoded(image: Image.Image, kind: str = "JPEG", **settings: object) -> bytes:
    """Return an encoded picture."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


# Where each EXIF orientation stores the upright picture's pixels: how to undo what a viewer will do.
_UNTURN = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(image: Image.Image, orientation: int) -> bytes:
    """Return a JPEG whose EXIF orientation makes `image` of it."""
    turn = _UNTURN[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image if turn is None else image.transpose(turn), quality=92, exif=exif)


def draw_examples(folder: Path) -> None:
    """Draw the pictures of examples/images: six scenes, and near-duplicates of some."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["coast", "hills", "harbour", "meadow", "ridge", "village"]
    scenes = {name: scene(seed) for seed, name in enumerate(names, 10)}
    for name, image in scenes.items():
        (folder / f"{name}.jpg").write_bytes(encoded(image, quality=88))
    (folder / "coast-cropped.jpg").write_bytes(encoded(scenes["coast"].crop((12, 9, 308, 231)), quality=88))
    (folder / "harbour-small.png").write_bytes(encoded(scenes["harbour"].resize((160, 120)), "PNG"))
    (folder / "hills-rotated.jpg").write_bytes(turned(scenes["hills"], 6))
    (folder / "meadow-reencoded.webp").write_bytes(encoded(scenes["meadow"], "WEBP", quality=40))
    (folder / "ridge-low-quality.jpg").write_bytes(encoded(scenes["ridge"], quality=25))
    (folder / "village-grey.jpg").write_bytes(encoded(scenes["village"].convert("L"), quality=88))


if __name__ == "__main__":
    draw_examples(Path(sys.argv[1]))
