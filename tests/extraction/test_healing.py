"""healing: damaged rows are computed again from their images, those of images that are gone stay and are named."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import rows
from fake import FakeStart

from rn50feat import FeatureStore, extract, verify
from rn50feat.extraction import healing
from rn50feat.store.layout import Column
from rn50feat.store.writer import open_store


@pytest.fixture
def path(pictures: Path, start: FakeStart) -> Path:
    """A store of five images, and one that failed."""
    (pictures / "bad.png").write_text("text")
    extract(pictures, pictures.parent / "out.h5", weights="random", start=start)
    return pictures.parent / "out.h5"


def change(path: Path, name: str, row: int, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file[name][row] = value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", np.full(2048, 7)),
        ("paths", "pictures/gone.png"),
        ("ids", 900),
        ("size", 10),
        ("mtime_ns", 6),
        ("digest", np.arange(16)),
        ("checksum", 1),
    ],
)
def test_a_damaged_row_is_computed_again(
    path: Path, pictures: Path, start: FakeStart, caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    before = {path: row[0] for path, row in rows(path).items()}
    change(path, name, 2, value)
    assert verify(path).findings
    done = extract(pictures, path, start=start)
    assert "has 1 damaged row" in caplog.text
    assert done.new + done.changed + done.reused == 1
    assert verify(path).findings == []
    assert {path: row[0] for path, row in rows(path).items()} == before
    assert extract(pictures, path, start=start).unchanged == 5


def test_a_row_whose_image_is_gone_stays_and_is_named(
    path: Path, pictures: Path, start: FakeStart, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "red.png").unlink()
    row = FeatureStore(path).paths().index("pictures/red.png")
    change(path, "features", row, np.full(2048, 7))
    extract(pictures, path, start=start)
    assert "1 damaged row" in caplog.text and "pictures/red.png" in caplog.text
    assert FeatureStore(path).wrong_rows(0, 9) == [row]
    extract(pictures, path, start=start, prune=True)
    assert verify(path).findings == [] and len(FeatureStore(path)) == 4


def test_a_second_row_of_an_image_goes(
    path: Path, pictures: Path, start: FakeStart, caplog: pytest.LogCaptureFixture
) -> None:
    """An older version does not find the rows that a newer one has written, and adds others under the same paths."""
    before, store = rows(path), FeatureStore(path)
    doubled = [store.paths().index(name) for name in ("pictures/red.png", "pictures/sub/blue.png")]
    with open_store(path) as writer:
        for row in doubled:
            writer.append(store.references(row, 1), store.block(row, 1))
    assert verify(path).differing == 2
    change(path, "features", doubled[1], np.full(2048, 7))
    done = extract(pictures / "sub", path, start=start, heal=True)  # the damaged one of two goes
    assert (done.unchanged, done.removed) == (2, 1) and "removed 1 row of images that have another" in caplog.text
    done = extract(pictures, path, start=start)
    assert (done.unchanged, done.removed) == (5, 1)
    assert verify(path).findings == [] and rows(path).keys() == before.keys()
    assert extract(pictures, path, start=start).removed == 0


def test_a_damaged_ledger_is_found_out_again(
    path: Path, pictures: Path, start: FakeStart, caplog: pytest.LogCaptureFixture
) -> None:
    change(path, "failures/reason", 0, "is fine")
    assert extract(pictures, path, start=start).failed == 1
    assert "holds in failures is damaged: found out again by extract" in caplog.text
    assert verify(path).findings == []
    assert [failure.path for failure in FeatureStore(path).failures()] == ["pictures/bad.png"]


def test_every_row_is_checked_within_some_runs(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(healing, "LEAST", 1)
    monkeypatch.setattr(healing, "RUNS", 3)
    store = FeatureStore(path)
    parts: list[tuple[int, int]] = []
    monkeypatch.setattr(store, "wrong_rows", lambda first, rows: parts.append((first, rows)) or [])
    for runs in range(3):
        monkeypatch.setattr(store, "layout", lambda runs=runs: {"runs": Column((runs,), np.dtype(object))})
        healing.damaged_rows(store, thorough=False)
    assert {row for first, count in parts for row in range(first, min(5, first + count))} == set(range(5))
    parts.clear()
    healing.damaged_rows(store, thorough=True)
    assert parts == [(0, 5)]


def test_a_damaged_path_that_is_that_of_another_row(path: Path, pictures: Path, start: FakeStart) -> None:
    before, names = rows(path), FeatureStore(path).paths()
    for row, other in ((1, 3), (3, 1)):
        change(path, "paths", row, names[other])
        extract(pictures, path, start=start, heal=True)
        assert verify(path).findings == []
        assert {name: row[0] for name, row in rows(path).items()} == {name: row[0] for name, row in before.items()}


def test_a_row_that_refers_to_the_text_of_another_row_leaves_it_alone(
    path: Path, pictures: Path, start: FakeStart
) -> None:
    before = {name: row[0] for name, row in rows(path).items()}
    with h5py.File(path) as file:
        chunk = file["paths"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:  # HDF5 would free that text when the row is removed
        raw.seek(chunk + 16 * 3)
        text = raw.read(16)
        raw.seek(chunk + 16)
        raw.write(text)
    extract(pictures, path, start=start, heal=True)
    assert verify(path).findings == []
    assert {name: row[0] for name, row in rows(path).items()} == before
