"""reader: rows, paths and columns by the rules of numpy, as of the last commit."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import add, hundred

from rn50feat import FeatureStore
from rn50feat.errors import ArgumentError, RowError, StoreError
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hundred(tmp_path / "out.h5")


def test_plain_h5py_reads_a_store(path: Path) -> None:
    with h5py.File(path) as file:
        assert file["features"].shape == (100, 2048)
        assert file["paths"].asstr()[5] == "5.jpg"
        assert file.attrs["next_id"] == 100


def test_a_reader_sees_the_last_commit_while_a_writer_works(path: Path) -> None:
    store = FeatureStore(path)
    with open_store(path) as writer:
        add(writer, 100, 10)
        assert len(store) == 100
        writer.commit()
        assert len(store) == 110


def test_what_a_store_knows(path: Path) -> None:
    with open_store(path) as writer:
        writer.fail(Reference(str(path.parent / "bad.jpg"), 9, 9), "is broken")
        writer.fail(Reference("/elsewhere/bad.jpg", 9, 9), "is broken")
        writer.fail(Reference("/elsewhere/bad.jpg", 10, 10), "is still broken")
    catalogue = Catalogue(FeatureStore(path))
    assert [catalogue.row(name) for name in ("0.jpg", "99.jpg", "100.jpg")] == [0, 99, None]
    assert catalogue.unchanged(5, Reference("", 5, 5))
    assert not catalogue.unchanged(5, Reference("", 5, 6))
    assert [catalogue.may_hold_copy(size) for size in (0, 99, 100, -1)] == [True, True, False, False]
    assert catalogue.row_of_copy((7).to_bytes(16, "big")) == 7
    assert catalogue.row_of_copy((700).to_bytes(16, "big")) is None
    assert catalogue.failure("bad.jpg", Reference("", 9, 9))
    assert not catalogue.failure("/elsewhere/bad.jpg", Reference("", 9, 9))
    assert catalogue.failures["/elsewhere/bad.jpg"].attempts == 2


@pytest.mark.parametrize(
    "name", ["nothing.h5", "text.h5", "other.h5", "newer.h5", "cut.h5", "folder.h5", "pipe.h5", "loop.h5"]
)
def test_a_file_that_is_no_store_says_so(tmp_path: Path, path: Path, name: str) -> None:
    (tmp_path / "folder.h5").mkdir()
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    h5py.File(tmp_path / "other.h5", "w").close()
    (tmp_path / "newer.h5").write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "newer.h5", "r+") as file:
        file.attrs["schema"] = 2
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:4000])
    reason = {
        "cut.h5": "is a truncated HDF5 file: restore it from a backup; without one, move it away",
        "nothing.h5": "No such file or directory: name an existing store",
        "text.h5": "is not an HDF5 file: name another store",
        "other.h5": "not an rn50feat store",
        "newer.h5": "has schema 2, but this version reads 1: upgrade",
        "folder.h5": "is a folder: name a file for the store",
        "pipe.h5": "is not a regular file: name a file for the store",
        "loop.h5": r"cannot be found \(Too many levels of symbolic links\): name a file for the store",
    }[name]
    with pytest.raises(StoreError, match=f"{name}.*{reason}"):
        FeatureStore(tmp_path / name)


def test_paths_and_columns_follow_the_rules_of_numpy(path: Path) -> None:
    store = FeatureStore(path)
    assert [store.path_of(row) for row in (0, -1, np.uint8(3))] == ["0.jpg", "99.jpg", "3.jpg"]
    for row in (100, -101, "3", [3], True):
        with pytest.raises(RowError):
            store.path_of(row)  # type: ignore[arg-type]
    assert store.column("ids", -3).tolist() == [97, 98, 99]
    assert store.column("ids", None, 10**30).tolist() == list(range(100))
    assert store.column("ids", 50, 20).tolist() == []
    assert store.paths(-2) == ["98.jpg", "99.jpg"]
    for name in ("foo", "features", "failures/path"):
        with pytest.raises(ArgumentError, match=f"out.h5 has no column {name}: use one of ids, size, mtime_ns, digest"):
            store.column(name)
    for attempt in (
        lambda: store.block(-1, 3),
        lambda: store.references(0, -1),
        lambda: list(store.blocks(0)),
        lambda: store.rows_of("0.jpg"),
    ):
        with pytest.raises(ArgumentError):
            attempt()
