"""comparison: the images of one store that are in another, next to those there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake import FakeStart
from PIL import Image
from scenes import encoded
from webpages import Page

from rn50feat import EngineOptions, FeatureStore, compare, extract
from rn50feat.pages import comparison
from rn50feat.pages.comparison import comparison_page


@pytest.fixture
def stores(pictures: Path, tmp_path: Path, start: FakeStart) -> list[FeatureStore]:
    """Two stores: of the pictures, and of copies of three of them, a red one that is near, and two others."""
    others = tmp_path / "others"
    shutil.copytree(pictures / "sub", others / "<sub>")
    shutil.copy(pictures / "white.png", others / "white.png")
    for name, colour in (("near", (254, 0, 0)), ("magenta", "magenta"), ("yellow", "yellow")):
        (others / f"{name}.png").write_bytes(encoded(Image.new("RGB", (40, 30), colour), "PNG"))
    for folder, name in ((pictures, "a"), (others, "b")):
        extract(folder, tmp_path / f"{name}.h5", weights="random", start=start)
    return [FeatureStore(tmp_path / f"{name}.h5") for name in "ab"]


def page(stores: list[FeatureStore], out: Path) -> Page:
    found = compare(*stores)
    return Page(comparison_page(found, *stores, out=out, threshold=0.9998, options=EngineOptions(workers=1)))


def test_pairs_are_side_by_side_with_what_is_known_of_them(
    stores: list[FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = page(stores, tmp_path / "page.html")
    title, *headings = shown.headings
    assert title == "Images of b.h5 in a.h5"
    assert sorted(heading.partition(": ")[2] for heading in headings) == ["near-identical", *["same bytes"] * 3]
    pairs = {one.path: other.path for one, other in zip(shown.figures[::2], shown.figures[1::2])}
    assert pairs == {
        "others/<sub>/blue.png": "pictures/sub/blue.png",
        "others/<sub>/green.png": "pictures/sub/green.png",
        "others/white.png": "pictures/white.png",
        "others/near.png": "pictures/red.png",
    }
    assert all(figure.picture for figure in shown.figures)
    assert "4, of which 3 are copies" in shown.source
    monkeypatch.setattr(comparison, "MOST", 2)
    shown = page(stores, tmp_path / "page.html")
    assert len(shown.figures) == 4
    assert "The page has the first 2 of 4: --csv and --json list all." in shown.source


def test_a_file_that_is_gone_is_told_and_nothing_found_is_said(stores: list[FeatureStore], tmp_path: Path) -> None:
    (tmp_path / "others/white.png").unlink()
    shown = page(stores, tmp_path / "page.html")
    assert sum(not figure.picture for figure in shown.figures) == 1
    few = comparison_page(compare(*stores[::-1], exact=True), *stores[::-1], out=tmp_path, threshold=None)
    assert "Images of a.h5 in b.h5" in (text := "".join(few))
    assert "the same bytes" in text
    assert "cosine of at least" not in text
