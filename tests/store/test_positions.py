"""positions: rows are those that HDF5 itself reads, in any order, after any change of the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from vectors import append, clusters, filled, remove

from rn50feat import FeatureStore
from rn50feat.errors import DamagedStoreError
from rn50feat.store import positions
from rn50feat.store.compact import compact


@pytest.fixture(params=["float16", "float32"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> FeatureStore:
    made = filled(tmp_path / "out.h5", clusters(100), request.param)
    append(made, 100, clusters(50, seed=1))
    return made


def check(store: FeatureStore) -> None:
    with h5py.File(store.path) as file:
        expected = file["features"][:]
    rng = np.random.default_rng(0)
    for rows in (np.arange(len(store)), rng.permutation(len(store)), np.array([5, 5, 4]), np.empty(0, np.int64)):
        np.testing.assert_array_equal(store.features(rows), expected[rows])


def test_rows_in_any_order(store: FeatureStore) -> None:
    check(store)


def test_a_changed_file_is_looked_at_anew(store: FeatureStore) -> None:
    check(store)
    append(store, 150, clusters(40, seed=2))
    check(store)
    remove(store, [1, 2, 3, 188, 189])
    check(store)
    compact(store.path)
    check(store)


chunks = positions._chunks


def test_hdf5_looks_up_a_few_rows_of_many(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_SAVED", 1)
    looked_up: list[h5py.Dataset] = []
    monkeypatch.setattr(positions, "_chunks", lambda dataset: looked_up.append(dataset) or chunks(dataset))
    with h5py.File(store.path) as file:
        expected = file["features"][:]
    for number in range(1, 8):  # 150 rows in chunks of 32
        np.testing.assert_array_equal(store.features([3]), expected[[3]])
        assert len(looked_up) == (number >= 5)


def test_rows_that_were_never_written_are_zeros(store: FeatureStore) -> None:
    with h5py.File(store.path, "r+") as file:
        for name in ("features", "paths", "ids", "size", "mtime_ns", "digest", "checksum"):
            file[name].resize(170, axis=0)
    check(store)


@pytest.mark.parametrize("settings", [{"compression": "gzip"}, {"chunks": (10, 512)}, {"chunks": None}])
def test_other_programs_may_store_rows_in_other_ways(store: FeatureStore, settings: dict[str, object]) -> None:
    with h5py.File(store.path, "r+") as file:
        rows = file["features"][:]
        del file["features"]
        file.create_dataset("features", data=rows, **settings)
    check(store)


def test_a_file_that_ends_within_a_row_is_damaged(store: FeatureStore) -> None:
    with store.reading():
        store.features(np.arange(len(store)))
        with open(store.path, "r+b") as file:
            file.truncate(store.path.stat().st_size // 2)
        with pytest.raises(DamagedStoreError, match="features end beyond the end of the file"):
            store.features(np.arange(len(store)))
