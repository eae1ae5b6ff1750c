"""array: a store by the rules of numpy, its labels, tables, and the dataset for a DataLoader."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from stores import add, features, hundred, store
from torch.utils.data import DataLoader, StackDataset, Subset

from rn50feat import FeatureStore
from rn50feat.durable import lock
from rn50feat.errors import ArgumentError, ExchangeError, RowError, StoreError
from rn50feat.sources.reference import Reference
from rn50feat.store import array
from rn50feat.store.writer import open_store

PLACES = ["a/cats/1.jpg", "a/cats/2.jpg", "a/dogs/big/3.jpg", "a/4.jpg", "a/birds.tar::5.jpg", "a/x.ZIP::y/z/6.jpg"]


@pytest.fixture
def numbers(tmp_path: Path) -> FeatureStore:
    """A store of 100 rows; the value of each is its number."""
    return FeatureStore(hundred(tmp_path / "out.h5"))


@pytest.fixture
def named(tmp_path: Path) -> FeatureStore:
    """A store of images in folders and archives."""
    return FeatureStore(store(tmp_path / "out.h5", [(path, i, i) for i, path in enumerate(PLACES)], dtype="float16"))


@pytest.mark.parametrize(
    "rows",
    [
        0, -1, np.uint8(7), np.int64(-100), slice(10, 20), slice(None, None, -7), slice(-5, None), slice(90, 200),
        [3, 1], [], [-1, 3, 3], np.arange(100) % 9 == 2, [True] + 99 * [False], np.array([[1, 2], [3, 4]]),
    ],
)  # fmt: skip
def test_rows_are_selected_by_the_rules_of_numpy(numbers: FeatureStore, rows: object) -> None:
    expected = features(0, 100)
    expected = expected[rows if np.size(rows) else slice(0)]  # type: ignore[call-overload, arg-type]
    assert np.array_equal(numbers[rows], expected) and numbers[rows].dtype == np.float32


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (100, "out.h5 has no row 100: it has 100 rows, 0 to 99"),
        ([0, -101], "out.h5 has no row -101"),
        ((3, 5), r"out.h5 takes rows alone as an index: select columns of the result, store\[rows\]\[:, 0\]"),
        ("cats", "'cats' cannot select rows"),
        (1.0, "1.0 cannot select rows"),
        (None, "None cannot select rows"),
        (..., "Ellipsis cannot select rows"),
        (np.ones(5, bool), r"the mask has shape \(5,\)"),
    ],
)  # fmt: skip
def test_what_selects_no_rows_says_so(numbers: FeatureStore, rows: object, message: str) -> None:
    with pytest.raises(IndexError, match=message) as raised:
        numbers[rows]
    assert isinstance(raised.value, RowError) and "\n" not in str(raised.value)


def test_a_store_is_an_array(numbers: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array, "_BLOCK", 30)
    for made in (np.asarray(numbers), np.array(numbers), np.stack(list(numbers)), torch.tensor(np.asarray(numbers))):
        assert np.array_equal(made, features(0, 100))
    assert np.asarray(numbers, np.float16).dtype == np.float16
    assert numbers.shape == np.shape(numbers) == (100, 2048)
    assert np.linalg.norm(numbers[3] - features(3, 1)[0]) == 0
    with pytest.raises(ArgumentError, match="out.h5 is a file, and an array of it is a copy: leave out copy=False"):
        numbers.__array__(copy=False)


def test_an_empty_store_is_an_empty_array(tmp_path: Path) -> None:
    empty = FeatureStore(store(tmp_path / "out.h5", []))
    assert np.asarray(empty).shape == empty[:].shape == (0, 2048)
    assert list(empty) == [] and empty.labels().tolist() == [] and len(empty.dataset()) == 0
    assert len(empty.to_pandas()) == empty.to_arrow().num_rows == 0


def test_the_repr_is_short_even_where_the_store_is_gone(numbers: FeatureStore) -> None:
    assert repr(numbers) == f"<FeatureStore '{numbers.path}': 100 rows of 2048 float32, weights random:0>"
    numbers.path.unlink()
    assert repr(numbers) == f"<FeatureStore '{numbers.path}': cannot be read now>"


def test_opening_and_pickling_read_no_features(numbers: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array.FeatureStore, "features", None)
    copy = pickle.loads(pickle.dumps(numbers))
    assert copy.path == numbers.path and len(copy.dataset()) == 100
    monkeypatch.undo()
    with numbers.reading():
        assert np.array_equal(pickle.loads(pickle.dumps(numbers))[5], numbers[5])


def test_a_commit_that_waits_goes_before_the_next_block(numbers: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are added are left out; when rows move, all are read again."""
    changes = [lambda writer: add(writer, 100, 5), lambda writer: writer.remove(np.array([2]))]

    def awaited(path: Path) -> bool:
        if numbers._file is None or not changes:
            return False
        change, numbers._file = changes.pop(0), None
        numbers._held.close()  # as `give_way` does next
        with open_store(path) as writer:
            change(writer)
        return True

    monkeypatch.setattr(array, "_BLOCK", 30)
    monkeypatch.setattr(lock, "awaited", awaited)
    assert np.asarray(numbers)[:, 0].tolist() == [0, 1, 104, *range(3, 104)]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (-1, ["cats", "cats", "big", "a", "birds", "z"]),
        (-2, ["a", "a", "dogs", "data", "a", "y"]),
        (0, ["cats", "cats", "dogs", "", "birds", "x"]),
        (1, ["", "", "big", "", "", "y"]),
        (-99, [""] * 6),
        (99, [""] * 6),
    ],
)
def test_labels_are_the_names_of_folders(tmp_path: Path, level: int, expected: list[str]) -> None:
    pictures = [(path, 1, i) for i, path in enumerate(PLACES)]
    found = FeatureStore(store(tmp_path / "data/out.h5", pictures)).labels(level)
    assert found.tolist() == expected


def test_labels_of_remote_images_are_the_names_of_prefixes(tmp_path: Path) -> None:
    places = ["s3://bucket/train/cats/1.jpg", "s3://bucket/train/2.jpg", "s3://bucket/train/d.tar::dogs/3.jpg"]
    with open_store(store(tmp_path / "out.h5", [])) as writer:
        writer.append([Reference(place, 1, 1, bytes(16)) for place in places], features(0, 3))
    remote = FeatureStore(tmp_path / "out.h5")
    assert remote.labels().tolist() == ["cats", "train", "dogs"]
    assert remote.labels(0).tolist() == ["cats", "", "d"]
    assert remote.labels(-3).tolist() == ["bucket", "s3:", "train"]


def test_a_data_frame_has_a_line_for_each_row(named: FeatureStore) -> None:
    frame = named.to_pandas()
    assert frame.columns.tolist() == ["id", "path", "label", "size", "mtime_ns"]
    assert frame["path"].tolist() == PLACES and frame["id"].tolist() == list(range(6))
    assert frame["label"].tolist() == named.labels().tolist()
    assert named[frame[frame.label == "cats"].index][:, 0].tolist() == [0, 1]


def test_an_arrow_table_has_the_features_too(named: FeatureStore) -> None:
    table = named.to_arrow()
    assert table.column("path").to_pylist() == PLACES
    assert table.schema.field("features").type == pyarrow.list_(pyarrow.float16(), 2048)
    values = table.column("features").combine_chunks().flatten().to_numpy().reshape(-1, 2048)
    assert np.array_equal(values, np.asarray(named))


def test_names_that_are_not_utf8_stay_or_are_escaped(tmp_path: Path) -> None:
    odd = FeatureStore(store(tmp_path / "out.h5", [(os.fsdecode(b"\xff/1.jpg"), 1, 1)]))
    assert odd.to_pandas()["path"].tolist() == ["\udcff/1.jpg"] and odd.labels().tolist() == ["\udcff"]
    assert odd.to_arrow().column("path").to_pylist() == [r"\xff/1.jpg"]


@pytest.mark.parametrize(
    ("library", "method", "message"),
    [
        ("pandas", "to_pandas", "to_pandas needs pandas: pip install pandas"),
        ("pyarrow", "to_arrow", r"to_arrow needs pyarrow: pip install 'rn50feat\[parquet\]'"),
    ],
)
def test_a_library_that_is_missing_is_one_line(
    named: FeatureStore, monkeypatch: pytest.MonkeyPatch, library: str, method: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ExchangeError, match=f"^{message}$"):
        getattr(named, method)()


def test_torch_collates_batches_of_a_dataset(numbers: FeatureStore) -> None:
    dataset = numbers.dataset()
    assert np.array_equal(dataset[-1], numbers[99]) and np.array_equal(dataset[[3, 1]], numbers[[3, 1]])
    labelled = StackDataset(Subset(dataset, range(90)), torch.arange(90))  # type: ignore[arg-type]
    batches = list(DataLoader(labelled, batch_size=40, shuffle=True))
    assert [rows.shape for rows, _ in batches] == [(40, 2048), (40, 2048), (10, 2048)]
    assert all(torch.equal(rows[:, 7], targets.float()) for rows, targets in batches)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_open_the_store_themselves(numbers: FeatureStore, start: str, workers: int) -> None:
    numbers[:]
    loader = DataLoader(numbers.dataset(), batch_size=30, num_workers=workers, multiprocessing_context=start)  # type: ignore[arg-type]
    assert np.array_equal(torch.cat(list(loader)), features(0, 100))


def test_a_dataset_never_gives_a_row_that_has_moved(numbers: FeatureStore) -> None:
    dataset = numbers.dataset()
    with open_store(numbers.path) as writer:
        add(writer, 100, 5)
    assert len(dataset) == 100 and dataset[-1][0] == 99
    with pytest.raises(RowError):
        dataset[100]
    with open_store(numbers.path) as writer:
        writer.remove(np.array([50]))
    with pytest.raises(StoreError, match="another run replaced or removed rows of .*out.h5: wait until it ends"):
        dataset[3]
