"""Trees of images that move, with or without their store."""

from __future__ import annotations

import shutil
from pathlib import Path

from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.store.summary import Summary

COUNT = 18


def plant(folder: Path) -> Path:
    """Make images/ with 18 images and one that is broken, and features/ next to it for the store."""
    for i in range(COUNT):
        path = folder / f"images/{'odd' if i % 2 else 'even'}/{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (9, 9), (i, 1, 0)), "PNG"))
    (folder / "images/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (folder / "features").mkdir()
    return folder


def moved(tree: Path, *parts: str) -> Path:
    """Move a tree, or `parts` of it, and return the folder that it is in now."""
    target = tree.parent / "elsewhere/of/data"
    target.mkdir(parents=True)
    for part in parts or ("images", "features"):
        shutil.move(tree / part, target / part)
    return target


def extract(images: Path, out: Path, start: FakeStart) -> Summary:
    return rn50feat.extract(images, out, weights="random", start=start)


def ids(out: Path) -> dict[str, int]:
    """Return the id of each row by the location of its image."""
    store = FeatureStore(out)
    return dict(zip(map(store.locate, store.paths()), store.column("ids").tolist()))
