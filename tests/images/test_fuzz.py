"""Broken pictures of all formats, `FUZZ_PICTURES` of them: each becomes a row or a ledger entry, none stops the run."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fake import FakeBackend
from mutations import mutated
from PIL import Image
from scenes import encoded, scene

import rn50feat
from rn50feat import FeatureStore
from rn50feat.engines.local import BUFFERS, LocalEngine
from rn50feat.engines.pool import DecoderPool
from rn50feat.images.provenance import Preprocessing

PICTURES = int(os.environ.get("FUZZ_PICTURES", "600"))
SECONDS = 10.0
SUFFIXES = {
    "JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif",
    "JPEG2000": "jp2", "PPM": "ppm", "TGA": "tga", "PCX": "pcx", "ICO": "ico", "SGI": "sgi", "DDS": "dds",
    "HEIF": "heic",
}  # fmt: skip


def originals() -> list[tuple[str, bytes]]:
    image = scene(1, 90, 70)
    made = [(suffix, encoded(image, kind)) for kind, suffix in SUFFIXES.items()]
    made.append(("jpg", encoded(image, "JPEG", progressive=True)))
    made.append(("jpg", encoded(image.convert("CMYK"), "JPEG")))
    made.append(("png", encoded(image.convert("P"), "PNG")))
    made += [("tif", encoded(image, "TIFF", compression=name)) for name in ("tiff_lzw", "tiff_deflate", "jpeg")]
    made.append(("gif", encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", (90, 70))])))
    return made


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    pytest.importorskip("pillow_heif")
    rng = random.Random(7)
    made = originals()
    folder = tmp_path / "hostile"
    folder.mkdir()
    for i in range(PICTURES):
        suffix, data = made[i % len(made)]
        (folder / f"{i:04}.{suffix}").write_bytes(mutated(data, rng.choice(made)[1], rng))
    return folder


def test_every_broken_picture_is_a_row_or_a_ledger_entry(hostile: Path, tmp_path: Path) -> None:
    def start(*arguments: object, **settings: object) -> LocalEngine:
        pool = DecoderPool(Preprocessing(), slots=BUFFERS * 32, workers=2, max_pixels=50_000_000, seconds=SECONDS)
        return LocalEngine(FakeBackend(), pool, 32)

    summary = rn50feat.extract(hostile, tmp_path / "out.h5", weights="random", start=start)
    store = FeatureStore(tmp_path / "out.h5")
    rows, failures = store.paths(), store.failures()
    assert sorted([*rows, *(f.path for f in failures)]) == [
        f"hostile/{path.name}" for path in sorted(hostile.iterdir())
    ]
    assert (summary.new, summary.failed) == (len(rows), len(failures))
    assert min(len(rows), len(failures)) > PICTURES / 10
    assert [f for f in failures if "took longer" in f.reason or "ended its" in f.reason] == []
    assert all(f.reason and "\n" not in f.reason for f in failures)
