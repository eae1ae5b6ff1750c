"""Compare int8 and bf16 rows with those of fp32, and measure what the network costs.

    python tests/benchmarks/int8.py WEIGHTS FOLDER

Ranges are measured on crops of three fifths of the photographs in FOLDER. The
rest are checked, as crops and changed in ways that photographs are not; so are
drawn shapes, stripes, flat colours and noise. The time is that of a core, in
ms per image, so that other programs matter little; the networks take turns.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from rn50feat.backends import check
from rn50feat.backends.int8 import Int8Backend, Maxima
from rn50feat.backends.openvino import OpenVinoBackend
from rn50feat.engines.calibration import agreement, centred_cosines
from rn50feat.images.decoding import has_image_suffix
from rn50feat.images.provenance import Preprocessing
from rn50feat.images.quantization import Quantization
from rn50feat.model import network, weights

SIDE = 224
ROUNDS = 5


def cut(image: Image.Image, rng: np.random.Generator, least: float = 0.15) -> Image.Image:
    """Return a random square of at least this share of the shorter side, squared, perhaps mirrored."""
    side = int(min(image.size) * rng.uniform(least, 1) ** 0.5)
    left, top = (int(rng.integers(0, whole - side + 1)) for whole in image.size)
    crop = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def shapes(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 15))):
        (left, right), (top, bottom) = np.sort(rng.integers(0, SIDE, (2, 2)), axis=1).tolist()
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        (draw.rectangle if rng.random() < 0.5 else draw.ellipse)((left, top, right, bottom), fill=color)
    return image


def material(photos: list[Image.Image], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return crops by kind, photographs first."""
    whole = [ImageOps.fit(photo, (SIDE, SIDE)) for photo in photos]
    pixels = np.stack([np.asarray(image) for image in whole]).astype(np.float32)

    def stacked(images: list[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(image.convert("RGB")) for image in images])

    def clipped(values: np.ndarray) -> np.ndarray:
        return values.clip(0, 255).astype(np.uint8)

    edges = [ImageOps.invert(ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES)) for image in whole]
    flat = ["black", "white", "red", "green", "blue", "grey", "yellow", "navy", "magenta", "cyan"]
    return {
        "photographs": stacked(whole + [cut(photo, rng) for photo in photos for _ in range(12)]),
        "small parts": stacked([cut(photo, rng, 0.01) for photo in photos]),
        "dark": clipped(pixels * 0.1),
        "bright": clipped(pixels * 2.5),
        "contrast": clipped((pixels - 128) * 4 + 128),
        "saturated": stacked([ImageEnhance.Color(image).enhance(4) for image in whole]),
        "grey": stacked([ImageOps.grayscale(image) for image in whole]),
        "inverted": stacked([ImageOps.invert(image) for image in whole]),
        "posterized": stacked([ImageOps.posterize(image, 1) for image in whole]),
        "black and white": stacked([image.convert("1") for image in whole]),
        "noisy": clipped(pixels + rng.normal(0, 50, pixels.shape)),
        "sharpened": stacked([image.filter(ImageFilter.UnsharpMask(3, 500, 0)) for image in whole]),
        "blurred": stacked([image.filter(ImageFilter.GaussianBlur(6)) for image in whole]),
        "drawings": stacked([image.point(lambda value: 0 if value < 200 else 255) for image in edges]),
        "shapes": stacked([shapes(rng) for _ in range(40)]),
        "flat": stacked([Image.new("RGB", (SIDE, SIDE), color) for color in flat]),
        "patterns": np.asarray(check.crops(Preprocessing())),
        "noise": rng.integers(0, 256, (20, SIDE, SIDE, 3), np.uint8),
    }


def seconds(backend: OpenVinoBackend, crops: np.ndarray) -> float:
    """Return the processor time of the features, per image."""
    begun = resource.getrusage(resource.RUSAGE_SELF)
    backend.features(crops)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return (ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime) / len(crops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    paths = sorted(path for path in arguments.folder.rglob("*") if has_image_suffix(path.name))
    photos = [Image.open(paths[i]).convert("RGB") for i in rng.permutation(len(paths))]
    split = len(photos) * 3 // 5
    chosen = weights.find(arguments.weights)
    provenance = weights.provenance(chosen)
    load = cache(lambda: network.load(chosen))
    measured = np.stack([np.asarray(cut(photo, rng)) for photo in photos[:split] for _ in range(5)])
    quantization = Quantization(Maxima(provenance, load).ranges(measured))
    plain, exact = (OpenVinoBackend(provenance, load, precision=precision) for precision in ("auto", "fp32"))
    int8 = Int8Backend(replace(provenance, quantization=quantization), load)

    rows: dict[str, list[np.ndarray]] = {}
    print(f"{'':16} images  computed again   worst and median cosine: int8, {plain.precision}")
    found = material(photos[split:], rng)
    mean = exact.features(found["photographs"]).mean(axis=0)
    for kind, crops in found.items():
        before = int8.recomputed
        fp32, *others = rows[kind] = [backend.features(crops) for backend in (exact, int8, plain)]
        cosines = [centred_cosines(other, fp32, mean) for other in others]
        words = "   ".join(f"{values.min():.4f} {np.median(values):.5f}" for values in cosines)
        print(f"{kind:16} {len(crops):6} {(int8.recomputed - before) / len(crops):14.1%}   {words}", flush=True)
    fp32, *others = rows["photographs"]
    print("the same neighbours, int8 and", plain.precision, *(f"{agreement(other, fp32):.4f}" for other in others))

    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for backend in (plain, int8):
            times.setdefault(backend.precision, []).append(seconds(backend, found["photographs"][:256]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    words = ", ".join(f"{name} {1000 * value:.1f}" for name, value in medians.items())
    ratio = medians[plain.precision] / medians["int8"]
    print(f"ms of a core per photograph: {words}; int8 is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
