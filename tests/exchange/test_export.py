"""export: the files hold every row, are read by the programs that they are for, and are written whole or not at all."""

from __future__ import annotations

import csv
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import Run
from pyarrow import parquet
from stores import store

import rn50feat
from rn50feat import FeatureStore, export
from rn50feat.durable.disk import Disk
from rn50feat.errors import ExchangeError, StoreError
from rn50feat.searching import many_queries
from rn50feat.searching.neighbours import Neighbours, NeighbourSearch
from rn50feat.sources import lists
from rn50feat.sources.reference import Reference
from rn50feat.store import snapshot
from rn50feat.store.writer import open_store

NAMES = ["plain.jpg", "a b, c.jpg", "quote'\".jpg", "🦜.jpg", "/elsewhere/é.jpg"]
ODD = [*NAMES, os.fsdecode(b"\xff.jpg"), "line\nbreak.jpg", "re\rturn.jpg"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK", 3)


def made(folder: Path, names: list[str], dtype: str = "float32") -> FeatureStore:
    """Make a store whose rows are of random numbers."""
    path = store(folder / "out.h5", ((name, i + 5, i + 1) for i, name in enumerate(names)), dtype=dtype)
    rng = np.random.default_rng(0)
    with open_store(path) as writer:
        for row, reference in enumerate(FeatureStore(path).references(0, len(names))):
            writer.replace(row, reference, rng.random(2048, np.float32))
    return FeatureStore(path)


def features(opened: FeatureStore) -> np.ndarray:
    return opened.block(0, 1000)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_npy_is_what_numpy_loads_with_a_line_for_each_path(tmp_path: Path, dtype: str) -> None:
    opened = made(tmp_path, NAMES, dtype)
    assert export(opened, tmp_path / "rows.npy") == 5
    loaded = np.load(tmp_path / "rows.npy")
    assert loaded.dtype == dtype
    assert np.array_equal(loaded, features(opened))
    assert (tmp_path / "rows.paths.txt").read_text().splitlines() == NAMES
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "rows.npy", "rows.paths.txt"]


def test_names_with_line_breaks_need_nuls(tmp_path: Path) -> None:
    opened = made(tmp_path, ODD)
    with pytest.raises(ExchangeError, match="has a line break in its name: use -0"):
        export(opened, tmp_path / "rows.npy")
    assert os.listdir(tmp_path) == ["out.h5"]
    export(opened, tmp_path / "rows.npy", null=True)
    assert list(lists.names(tmp_path / "rows.paths.txt", null=True)) == ODD


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("first", ["\ufeffx.jpg", os.fsdecode(b"\xff\xfex.jpg")])
def test_a_first_name_like_a_byte_order_mark_comes_back(tmp_path: Path, first: str, null: bool) -> None:
    export(made(tmp_path, [first, "y.jpg"]), tmp_path / "rows.npy", null=null)
    assert list(lists.names(tmp_path / "rows.paths.txt", null=null)) == [first, "y.jpg"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_csv_gives_back_every_number_and_name(tmp_path: Path, dtype: str) -> None:
    opened = made(tmp_path, ODD, dtype)
    export(opened, tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == ODD
    assert [row["location"] for row in table] == [opened.locate(name) for name in ODD]
    assert [int(row["id"]) for row in table] == opened.column("ids").tolist()
    assert table[2]["digest"] == f"{3:032x}"
    numbers = np.array([[float(row[f"f{i}"]) for i in range(2048)] for row in table])
    assert np.array_equal(numbers.astype(dtype), features(opened))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_parquet_is_what_pandas_reads(tmp_path: Path, dtype: str) -> None:
    opened = made(tmp_path, NAMES, dtype)
    export(opened, tmp_path / "rows.parquet")
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    assert list(frame.columns) == ["id", "path", "location", "size", "mtime_ns", "digest", "features"]
    assert frame["path"].tolist() == NAMES
    assert frame["id"].tolist() == opened.column("ids").tolist()
    assert frame["mtime_ns"].tolist() == [5, 6, 7, 8, 9]
    assert frame["digest"][2] == (3).to_bytes(16, "big")
    stacked = np.stack(frame["features"])
    assert stacked.dtype == np.float32
    assert np.array_equal(stacked, features(opened).astype(np.float32))


def test_parquet_spells_out_what_is_not_utf_8_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(made(tmp_path, ODD), tmp_path / "rows.parquet")
    paths = pandas.read_parquet(tmp_path / "rows.parquet")["path"].tolist()
    assert paths == [*NAMES, "\\xff.jpg", *ODD[-2:]]
    assert [(record.levelno, record.getMessage()[:20]) for record in caplog.records] == [
        (logging.WARNING, "1 name is not UTF-8,")
    ]


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_normalized_rows_have_length_1_and_an_empty_store_no_rows(tmp_path: Path, suffix: str) -> None:
    opened = made(tmp_path, NAMES)
    export(opened, tmp_path / f"rows{suffix}", normalize=True)
    expected = features(opened) / np.linalg.norm(features(opened), axis=1, keepdims=True)
    assert np.allclose(read(tmp_path / f"rows{suffix}"), expected, rtol=1e-6)
    empty = FeatureStore(store(tmp_path / "empty.h5", []))
    assert export(empty, tmp_path / f"none{suffix}") == 0
    assert len(read(tmp_path / f"none{suffix}")) == 0


def read(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".csv":
        return pandas.read_csv(path).filter(regex="f[0-9]+").to_numpy()
    return np.array(pandas.read_parquet(path)["features"].tolist())


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    opened = made(tmp_path, NAMES)
    for taken in ("rows.npy", "rows.paths.txt"):
        (tmp_path / taken).write_text("mine")
        with pytest.raises(ExchangeError, match=f"{taken} exists: name another file, or use --overwrite"):
            export(opened, tmp_path / "rows.npy")
        assert (tmp_path / taken).read_text() == "mine"
        (tmp_path / taken).unlink()
    (tmp_path / "rows.npy").write_text("mine")
    export(opened, tmp_path / "rows.npy", overwrite=True)
    assert len(np.load(tmp_path / "rows.npy")) == 5


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_rows_that_move_meanwhile_end_an_export_without_a_trace(tmp_path: Path, suffix: str) -> None:
    opened = made(tmp_path, NAMES)
    (tmp_path / f"rows{suffix}").write_text("mine")

    def move(stage: str, done: int, total: int) -> None:
        with open_store(opened.path) as writer:
            writer.remove(np.array([3]))

    with pytest.raises(StoreError, match="changed while it was read"):
        export(opened, tmp_path / f"rows{suffix}", overwrite=True, on_stage=move)
    assert (tmp_path / f"rows{suffix}").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out.h5", f"rows{suffix}"]


def test_rows_that_are_appended_meanwhile_are_left_out(tmp_path: Path) -> None:
    opened = made(tmp_path, NAMES)

    def add(stage: str, done: int, total: int) -> None:
        store(opened.path, [(f"late{done}.jpg", 1, 1)])

    assert export(opened, tmp_path / "rows.npy", on_stage=add) == 5
    assert len(np.load(tmp_path / "rows.npy")) == 5
    assert len(opened) == 7


def test_an_export_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = made(tmp_path, NAMES)
    with pytest.raises(ExchangeError, match=r"rows.csv cannot be written \(No such file or directory\): name a file"):
        export(opened, tmp_path / "no/rows.csv")
    (tmp_path / "rows.npy").write_text("mine")

    def full(self: Disk, handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Disk, "sync", full)
    with pytest.raises(ExchangeError, match=r"rows.npy cannot be written \(No space left on device\)"):
        export(opened, tmp_path / "rows.npy", overwrite=True)
    assert (tmp_path / "rows.npy").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "rows.npy"]


def test_the_command_line(rn50feat: Run, tmp_path: Path) -> None:
    made(tmp_path, NAMES)
    done = rn50feat("export", "rows.npy", "--normalize")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[0] == "rows.npy: 5 rows of 2048"
    assert "random:0" in done.stderr
    assert rn50feat("export", "out.h5", "rows.csv", "--quiet").stderr == ""
    for arguments, code, message in (
        (["out.h5"], 1, "has no known suffix: name a file that ends in .npy, .csv or .parquet"),
        (["out.h5", "rows.npy"], 1, "rows.npy exists"),
        (["out.h5", "rows.xlsx"], 1, "has no known suffix"),
        (
            ["out.h5", "http://127.0.0.1:1"],
            1,
            "http://127.0.0.1:1 has no known suffix: name a file that ends in",
        ),
        (["out.h5", "http://127.0.0.1:1"], 1, ".parquet, or use --to qdrant"),
        (["a.npy", "b.npy"], 2, "Give a STORE that ends in .h5 or .hdf5, and one OUT."),
        (["out.h5", "rows.csv", "-0"], 1, "--null requires a .npy file"),
        (["out.h5", "rows.csv", "--collection", "x"], 2, "--collection requires --to"),
        (["none.h5", "x.npy"], 1, "none.h5: No such file"),
    ):
        done = rn50feat("export", *arguments)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert code == 2 or done.stderr.count("\n") == 1


def test_a_signal_ends_an_export_without_a_trace(tmp_path: Path) -> None:
    store(tmp_path / "out.h5", [("1.jpg", 1, 1)])
    code = (
        "import os, signal; from rn50feat.store import snapshot; from rn50feat.cli.main import main\n"
        "taken = snapshot.Snapshot._block\n"
        "def block(*arguments): os.kill(os.getpid(), signal.SIGTERM); return taken(*arguments)\n"
        "snapshot.Snapshot._block = block; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "export", "rows.csv"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 143
    assert os.listdir(tmp_path) == ["out.h5"]


def test_an_extra_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExchangeError, match=r"pip install 'rn50feat\[parquet\]'"):
        export(made(tmp_path, NAMES), tmp_path / "rows.parquet")
    assert os.listdir(tmp_path) == ["out.h5"]


def nearest_by_hand(opened: FeatureStore, k: int) -> list[list[int]]:
    rows = features(opened).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    ids = opened.column("ids")
    return [ids[row].tolist() for row in np.argsort(-cosines, axis=1)[:, :k]]


@pytest.mark.parametrize("at_once", [3, 16, 4096])
def test_parquet_has_the_neighbours_of_every_row(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_queries, "most", lambda k: at_once)
    opened = made(tmp_path, [f"{i}.jpg" for i in range(40)])
    assert export(opened, tmp_path / "rows.parquet", neighbours=4) == 40
    table = pandas.read_parquet(tmp_path / "rows.parquet")
    assert [ids.tolist() for ids in table["neighbour_ids"]] == nearest_by_hand(opened, 4)
    assert all((np.diff(scores) <= 0).all() and scores[0] < 1 for scores in table["neighbour_scores"])
    (row, *_), (result,) = table["neighbour_scores"], rn50feat.search([features(opened)[0]], opened, k=5)
    assert row.tolist() == pytest.approx([hit.score for hit in result.hits[1:]], abs=1e-12)


def test_lists_of_neighbours_end_with_nulls_where_there_are_fewer_rows(tmp_path: Path) -> None:
    opened = made(tmp_path, NAMES)
    export(opened, tmp_path / "rows.parquet", neighbours=7)
    ids = parquet.read_table(tmp_path / "rows.parquet")["neighbour_ids"]
    assert str(ids.type) == "fixed_size_list<element: int64>[7]"
    for own, row in zip(opened.column("ids"), ids.to_pylist()):
        assert {*row[:4], own} == set(opened.column("ids"))
        assert row[4:] == [None] * 3
    export(made(tmp_path / "one", ["a.jpg"]), tmp_path / "one.parquet", neighbours=1)
    assert parquet.read_table(tmp_path / "one.parquet")["neighbour_scores"].to_pylist() == [[None]]


def test_neighbours_need_a_parquet_file_and_a_number(tmp_path: Path) -> None:
    opened = made(tmp_path, NAMES)
    with pytest.raises(ExchangeError, match=r"--neighbours requires a .parquet file, .*rows.csv has none"):
        export(opened, tmp_path / "rows.csv", neighbours=3)
    for wrong in (0, 1001):
        with pytest.raises(ExchangeError, match="use 1 to 1000"):
            export(opened, tmp_path / "rows.parquet", neighbours=wrong)


@pytest.mark.parametrize("moved", [False, True])
def test_rows_that_come_while_neighbours_are_sought_are_left_out_and_moved_ones_end_it(
    tmp_path: Path, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_queries, "most", lambda k: 16)
    opened, changed = made(tmp_path, [f"{i}.jpg" for i in range(40)]), []
    find = NeighbourSearch._next

    def change_and_find(search: NeighbourSearch) -> Neighbours:
        if search._done and not changed:
            changed.append(search._done)
            with open_store(opened.path) as writer:
                if moved:
                    writer.remove(np.array([1]))
                else:
                    writer.append([Reference(str(tmp_path / "new.jpg"), 1, 1, bytes(range(16)))], features(opened)[:1])
        return find(search)

    monkeypatch.setattr(NeighbourSearch, "_next", change_and_find)
    if moved:
        with pytest.raises(StoreError, match="changed while it was read"):
            export(opened, tmp_path / "rows.parquet", neighbours=3)
        assert not (tmp_path / "rows.parquet").exists()
    else:
        expected = nearest_by_hand(opened, 3)
        export(opened, tmp_path / "rows.parquet", neighbours=3)
        table = pandas.read_parquet(tmp_path / "rows.parquet")
        assert [ids.tolist() for ids in table["neighbour_ids"]] == expected
    assert changed
