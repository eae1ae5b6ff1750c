"""moves: an image that only moved keeps its row, and in doubt it is a copy."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import h5py
import pytest
from fake import FakeStart, extract

import rn50feat
from rn50feat import FeatureStore
from rn50feat.extraction import extract as extraction
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.moves import Moves
from rn50feat.searching.search import search_stored
from rn50feat.sources.local import Local
from rn50feat.sources.selection import Selection
from rn50feat.store.summary import Summary


def by_path(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the id and the value of each row of `out.h5`, after checking that the store is whole."""
    assert rn50feat.verify(folder / "out.h5").findings == []
    store = FeatureStore(folder / "out.h5")
    values = store.block(0, len(store))[:, 0].astype(int).tolist()
    return dict(zip(store.paths(), zip(store.column("ids").tolist(), values)))


def moved(summary: Summary) -> tuple[int, int, int]:
    return summary.moved, summary.reused - summary.moved, summary.new


def test_a_row_follows_its_image(shades: Path, start: FakeStart) -> None:
    (shades / "x").mkdir()
    (shades / "x/b.png").write_text("no image")
    extract(shades, start)
    before, home = by_path(shades.parent), shades.parent
    rn50feat.index(home / "out.h5", metric="l2")
    (shades / "03.png").rename(shades / "x/a.png")
    (shades / "04.png").rename(shades / "x/b.png")  # where something failed before
    os.utime(shades / "x/a.png", ns=(5, 5))
    summary = extract(shades, start, prune=True)
    assert moved(summary) == (2, 0, 0) and summary.found == 20 and summary.removed == 0
    names = {"pictures/03.png": "pictures/x/a.png", "pictures/04.png": "pictures/x/b.png"}
    assert by_path(home) == {names.get(path, path): row for path, row in before.items()}
    assert FeatureStore(home / "out.h5").failures() == []
    assert extract(shades, start).unchanged == 20
    done = rn50feat.index(home / "out.h5", metric="l2")
    assert (done.added, done.removed) == (0, 0)
    (result,) = search_stored(["pictures/02.png"], home / "out.h5", metric="l2", k=3)
    assert "pictures/x/a.png" in [hit.path for hit in result.hits]


def test_what_may_come_back_is_copied(shades: Path, start: FakeStart) -> None:
    """Outside the sources, excluded, still there, or in a source that is empty now."""
    home, mirror = shades.parent, shades.parent / "mirror"
    shutil.copytree(shades, mirror)
    rn50feat.extract(mirror, home / "out.h5", weights="random", start=start)
    rows = by_path(home)
    (mirror / "00.png").unlink()  # outside
    for i in range(1, 20):
        (shades / f"{i:02}.png").unlink()
    assert moved(extract(shades, start)) == (0, 1, 0)
    (mirror / "01.png").rename(mirror / "new01.png")
    excluding = Selection(mirror, exclude=["01.png"])
    assert moved(rn50feat.extract(excluding, home / "out.h5", start=start)) == (0, 1, 0)
    shutil.copy(mirror / "02.png", mirror / "copy of 02.png")
    assert moved(rn50feat.extract(mirror, home / "out.h5", start=start)) == (0, 1, 0)
    for i in range(5, 10):
        (mirror / f"{i:02}.png").rename(shades / f"moved{i:02}.png")
    shutil.rmtree(mirror)
    mirror.mkdir()
    summary = rn50feat.extract([mirror, shades], home / "out.h5", start=start)
    assert moved(summary) == (0, 5, 0)
    assert by_path(home).items() >= rows.items()


def test_each_of_equal_images_moves_once(shades: Path, start: FakeStart) -> None:
    for name in ("a", "b", "c"):
        shutil.copy(shades / "07.png", shades / f"{name}.png")
    extract(shades, start)
    before = by_path(shades.parent)
    (shades / "b.png").rename(shades / "new1.png")
    (shades / "07.png").rename(shades / "new2.png")
    shutil.copy(shades / "a.png", shades / "new3.png")
    assert moved(extract(shades, start, prune=True)) == (2, 1, 0)
    after = by_path(shades.parent)
    assert {after[f"pictures/new{i}.png"] for i in (1, 2)} == {before[f"pictures/{i}.png"] for i in ("b", "07")}
    assert len(after) == len(before) + 1


def test_equal_images_are_looked_up_once(shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        shutil.copy(shades / "07.png", shades / f"z{i}.png")
    extract(shades, start)
    looked: list[str] = []
    exists = Local.exists
    monkeypatch.setattr(Local, "exists", lambda self: looked.append(self.path) or exists(self))
    for i in range(30):
        shutil.copy(shades / "07.png", shades / f"a{i}.png")
    assert moved(extract(shades, start)) == (0, 30, 0)
    assert len(looked) == len(set(looked)) <= 31


def test_a_file_at_the_place_of_one_that_moved_is_new(shades: Path, start: FakeStart) -> None:
    """It may appear while the run goes on: it must not take the row."""
    extract(shades, start)
    store, selection = FeatureStore(shades.parent / "out.h5"), Selection(shades)
    catalogue = Catalogue(store, selection)
    (row,) = store.rows_of(["pictures/03.png"])
    assert row is not None and catalogue.row("pictures/03.png") == row
    (shades / "03.png").unlink()
    moves = Moves(store, selection, catalogue)
    assert moves.origin(catalogue.digest(row)) == row
    assert catalogue.row("pictures/03.png") is None
    catalogue.met[row] = True
    assert moves.origin(catalogue.digest(row)) is None


def test_a_damaged_row_is_computed_again(shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(shades, start)
    with h5py.File(shades.parent / "out.h5", "r+", libver=("v108", "v108")) as file:
        file["features"][3, 0] = 77
    (shades / "03.png").rename(shades / "moved.png")
    monkeypatch.setattr(extraction, "damaged_rows", lambda store, thorough: frozenset())  # not this run's part
    assert moved(extract(shades, start, prune=True)) == (0, 0, 1)
    assert by_path(shades.parent)["pictures/moved.png"][1] == 3
    assert len(by_path(shades.parent)) == 20


def test_members_follow_their_archive_and_leave_it(shades: Path, start: FakeStart) -> None:
    pack(shades / "a.zip", [shades / f"{i:02}.png" for i in range(10)])
    extract(shades, start)
    before = by_path(shades.parent)
    ids = [before[f"pictures/a.zip::{i:02}.png"][0] for i in range(10)]
    (shades / "a.zip").rename(shades / "b.zip")
    assert moved(extract(shades, start, prune=True)) == (10, 0, 0)
    after = by_path(shades.parent)
    assert [after[f"pictures/b.zip::{i:02}.png"][0] for i in range(10)] == ids
    assert extract(shades, start).unchanged == 30
    pack(shades / "b.zip", [shades / f"{i:02}.png" for i in range(1, 10)])
    shutil.copy(shades / "00.png", shades / "out of b.png")
    assert moved(extract(shades, start, prune=True)) == (1, 0, 0)
    assert by_path(shades.parent)["pictures/out of b.png"][0] == ids[0]
    assert len(by_path(shades.parent)) == 30


def pack(path: Path, files: list[Path]) -> None:
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.name)
