"""checksums: what was written is what is read, or is said to be damaged; and rows that other versions wrote are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from stores import store

from rn50feat import FeatureStore, duplicates, export, merge, verify
from rn50feat.errors import DamagedStoreError
from rn50feat.searching.search import search_stored
from rn50feat.sources.reference import Reference
from rn50feat.store.checksums import spans
from rn50feat.store.writer import open_store

COUNT = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of rows that differ, with a failure and a damaged image."""
    path = store(tmp_path / "out.h5", [(f"{i}.png", i, i + 1) for i in range(COUNT)])
    with open_store(path) as writer:
        writer.fail(Reference(str(tmp_path / "bad.png"), 9, 9), "is broken")
        odd = Reference(str(tmp_path / "odd.png"), 9, 9, b"o" * 16, damage="ends early")
        writer.append([odd], np.random.default_rng(0).random((1, 2048), np.float32))
    return path


def sound(path: Path) -> bool:
    found = FeatureStore(path)
    return found.has_checksums and not found.wrong_rows(0, len(found)) and not found.wrong_tables()


def change(path: Path, name: str, row: int, value: object) -> None:
    """Change one value, as a bit that flips would."""
    with h5py.File(path, "r+") as file:
        file[name][row] = value


def test_all_that_a_writer_does_keeps_them_up_to_date(path: Path, tmp_path: Path) -> None:
    assert sound(path)
    for step in range(4):
        with open_store(path) as writer:
            references = [Reference(str(tmp_path / f"{step}-{i}.png"), 9, i, bytes([step, i] * 8)) for i in range(9)]
            writer.append(references, np.full((9, 2048), step + 0.5))
            writer.replace(step, Reference(str(tmp_path / f"{step}.png"), 8, 8, b"c" * 16), np.ones(2048))
            writer.touch(20, Reference(str(tmp_path / "20.png"), 9, 99 + step, b"t" * 16))
            writer.remove(np.array([3, 7, len(FeatureStore(path)) - 1]))
            writer.touch(3, Reference(str(tmp_path / "x.png"), 9, step, b"x" * 16))
            writer.fail(Reference(str(tmp_path / f"bad{step}.png"), 9, 9), "is broken")
            writer.clear_failures(["bad0.png"])
            writer.record({"started": str(step), "ended": None, "device": None, "precision": None, "counts": {}})
        assert sound(path), step


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        ("features", 5, np.full(2048, 6.00001)),
        ("paths", 5, "6.pnh"),
        ("ids", 5, 1000),
        ("size", 5, 10),
        ("mtime_ns", 5, 6),
        ("digest", 5, np.arange(16)),
        ("checksum", 5, 1),
    ],
)
def test_a_change_of_anything_in_a_row_is_found(path: Path, tmp_path: Path, name: str, row: int, value: object) -> None:
    change(path, name, row, value)
    found = FeatureStore(path)
    assert found.wrong_rows(0, COUNT) == [row]
    where = found.path_of(row)
    assert any(f"row {row} ({where}) differs from its checksum" in fault for fault in verify(path).findings)
    for act in (
        lambda: search_stored([where], path, k=3),
        lambda: search_stored(["0.png"], path, k=COUNT),
        lambda: duplicates(path, threshold=0.01),
        lambda: export(path, tmp_path / "out.npy"),
        lambda: merge([path], tmp_path / "all.h5"),
    ):
        with pytest.raises(DamagedStoreError, match=f"the row of {where} in .*out.h5 is damaged: run rn50feat extract"):
            act()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5"]
    assert [hit.path for hit in search_stored(["odd.png"], path, k=1)[0].hits] == ["odd.png"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("failures/reason", "is brokem"),
        ("runs", '{"started": "", "ended": "", "device": "cpu", "precision": "fp32", "counts": {"new": 1}}'),
        ("damaged/reason", "ends late"),
        ("history", np.arange(16)),
    ],
)
def test_a_change_of_a_small_table_is_found(path: Path, name: str, value: object) -> None:
    change(path, name, 0, value)
    assert FeatureStore(path).wrong_tables() == [name.partition("/")[0]]
    assert f"what it holds in {name.partition('/')[0]} differs from its checksum" in verify(path).findings


def test_a_commit_reads_none_of_the_earlier_runs_and_marks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = h5py.Dataset.__getitem__

    def noted(dataset: h5py.Dataset, *arguments: Any) -> Any:
        values = original(dataset, *arguments)
        if dataset.name in ("/runs", "/history"):
            read.append(np.size(values))
        return values

    for _ in range(20):
        store(path, [])
    monkeypatch.setattr(h5py.Dataset, "__getitem__", noted)
    store(path, [])
    assert max(read) <= 16
    monkeypatch.undo()
    assert sound(path)


def test_a_damaged_history_stays_one_when_it_grows(path: Path) -> None:
    change(path, "history", 0, np.arange(16))
    store(path, [("more.png", 1, 7)])
    assert FeatureStore(path).wrong_tables() == ["history"]


def test_older_versions_write_none_and_the_next_run_adds_them(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["checksum"], file.attrs["checksums"]
    assert not FeatureStore(path).has_checksums
    assert f"{COUNT + 1} rows without a checksum: the next run that writes adds them" in verify(path).notes
    store(path, [("more.png", 1, 7)])
    assert sound(path)
    with h5py.File(path, "r+") as file:  # an older version removes a row, and records its run
        for name in ("features", "paths", "ids", "size", "mtime_ns", "digest"):
            file[name][3] = file[name][COUNT + 1]
            file[name].resize(COUNT + 1, axis=0)
        file["runs"].resize(len(file["runs"]) + 1, axis=0)
        file["runs"][-1] = file["runs"][0]
    assert not FeatureStore(path).has_checksums and not verify(path).findings
    store(path, [("more.png", 1, 8)])
    assert sound(path)


def test_spans_are_neighbours() -> None:
    assert [*spans([3, 1, 2, 9, 9, 1023, 1024])] == [slice(1, 4), slice(9, 10), slice(1023, 1024), slice(1024, 1025)]


def test_a_changed_provenance_is_found_before_anything_is_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["provenance"] = file.attrs["provenance"].replace("random:0", "random:1")
    with pytest.raises(DamagedStoreError, match="its id or provenance differs from its checksum"):
        FeatureStore(path)


def test_a_changed_table_is_not_shown_or_merged(path: Path, tmp_path: Path) -> None:
    change(path, "failures/reason", 0, "is fine")
    for act in (lambda: FeatureStore(path).failures(), lambda: merge([path], tmp_path / "all.h5")):
        with pytest.raises(DamagedStoreError, match="what .*out.h5 holds in failures is damaged: run rn50feat extract"):
            act()
