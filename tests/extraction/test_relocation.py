"""relocation: a store and images that move, together or apart, keep one row for each image."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import pytest
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.store.summary import Summary

COUNT = 18


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with 18 images in images/, one that is broken, and features/ next to it for the store."""
    images = tmp_path / "data/images"
    for i in range(COUNT):
        path = images / f"{'odd' if i % 2 else 'even'}/{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (9, 9), (i, 1, 0)), "PNG"))
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "data/features").mkdir()
    return tmp_path / "data"


def extract(images: Path, out: Path, start: FakeStart) -> Summary:
    return rn50feat.extract(images, out, weights="random", start=start)


def ids(out: Path) -> dict[str, int]:
    """Return the id of each row by the location of its image."""
    store = FeatureStore(out)
    return dict(zip(map(store.locate, store.paths()), store.column("ids").tolist()))


def test_a_tree_that_moves_as_a_whole_keeps_its_rows(tree: Path, tmp_path: Path, start: FakeStart) -> None:
    extract(tree / "images", tree / "features/out.h5", start)
    before = ids(tree / "features/out.h5")
    moved = tmp_path / "elsewhere/data"
    moved.parent.mkdir()
    shutil.move(tree, moved)
    summary = extract(moved / "images", moved / "features/out.h5", start)
    assert (summary.unchanged, summary.failed_before, summary.found) == (COUNT, 1, COUNT + 1)
    assert ids(moved / "features/out.h5") == {
        location.replace(str(tree), str(moved)): number for location, number in before.items()
    }
    assert len(start.seen) == COUNT + 1


def test_a_store_of_an_older_version_keeps_its_rows_where_it_is(tree: Path, start: FakeStart) -> None:
    out = tree / "features/out.h5"
    extract(tree / "images", out, start)
    before = ids(out)
    with h5py.File(out, "r+") as file:
        for name in ("paths", "failures/path"):
            for i, path in enumerate(file[name].asstr()[:]):
                file[name][i] = str(tree / path.removeprefix("../"))
        del file.attrs["checksums"]
    summary = extract(tree / "images", out, start)
    assert (summary.unchanged, summary.failed_before, summary.found) == (COUNT, 1, COUNT + 1)
    assert ids(out) == before
    summary = rn50feat.extract(tree / "images", out, prune=True, retry_failed=True, start=start)
    assert (summary.unchanged, summary.failed, summary.removed) == (COUNT, 1, 0)
    assert [failure.attempts for failure in FeatureStore(out).failures()] == [2]
