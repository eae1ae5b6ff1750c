"""path_file: the same rows as without it, whatever it says, and few of the store's paths read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from vectors import append, clusters, filled, references, remove, replace

import rn50feat
from rn50feat.searching import path_file
from rn50feat.searching.search import search_stored
from rn50feat.store.reader import FeatureStore
from rn50feat.store.writer import open_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setattr(path_file, "LEAST", 1)
    store = filled(tmp_path / "out.h5", clusters(300))
    rn50feat.index(store)
    return store


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the values that are read from each dataset."""
    counts: Counter[str] = Counter()
    original = h5py.Dataset.__getitem__

    def counted(dataset: h5py.Dataset, *arguments: Any) -> Any:
        values = original(dataset, *arguments)
        counts[dataset.name] += np.size(values)
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    return counts


def scanned(store: FeatureStore, paths: list[str]) -> list[int | None]:
    """Look up rows by reading all paths."""
    rows = {path: row for row, path in enumerate(store.paths())}
    return [rows.get(path) for path in paths]


def test_the_rows_are_those_of_a_scan_when_the_store_has_changed(store: FeatureStore) -> None:
    names = [f"{i:05}.jpg" for i in range(320)]
    assert path_file.rows_of(store, names) == scanned(store, names) == [*range(300), *[None] * 20]
    remove(store, [3, 17, 200])  # the last rows take their places
    replace(store, 5, clusters(1, seed=1)[0])
    append(store, 300, clusters(10, seed=2))
    assert path_file.rows_of(store, names) == scanned(store, names)
    assert rn50feat.index(store).added == 11
    assert path_file.fits(store)
    assert path_file.rows_of(store, names) == scanned(store, names)


@pytest.mark.parametrize("content", [None, b"", b"x" * 1001, bytes(8 * 300), b"\xff" * 8 * 300])
def test_a_damaged_or_missing_file_is_not_believed_and_written_again(
    store: FeatureStore, content: bytes | None
) -> None:
    path = path_file.path_file(store.path)
    path.unlink() if content is None else path.write_bytes(content)
    names = ["00007.jpg", "none.jpg", "00299.jpg"]
    assert path_file.rows_of(store, names) == [7, None, 299]
    assert not path_file.fits(store)
    assert not rn50feat.index(store).built
    assert path_file.fits(store)


def test_paths_with_the_same_hash_and_names_of_any_bytes_are_found(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(store.path) as writer:
        odd = [*references(store.path.parent / "\udcff é", 0, 1)]
        writer.append(odd, clusters(1))
    monkeypatch.setattr(path_file, "_hash", lambda path: 0xFFFFFFFF)
    path_file.save(store)
    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "rows_of", lambda store, paths: pytest.fail("a scan"))
        assert path_file.rows_of(store, ["\udcff é/00000.jpg", "00299.jpg", "00000.jpg"]) == [300, 299, 0]


def test_small_stores_have_none(tmp_path: Path) -> None:
    rn50feat.index(filled(tmp_path / "out.h5", clusters(30)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.faiss", "out.faiss.json", "out.h5"]


def test_a_search_reads_as_much_from_a_large_store_as_from_a_small_one(
    store: FeatureStore, tmp_path: Path, read: Counter[str]
) -> None:
    """Except for the ids, 8 bytes per row, by which the index and the store are compared."""
    large = filled(tmp_path / "large.h5", clusters(1500))
    rn50feat.index(large)
    counts = []
    for one in (store, large):
        read.clear()
        assert len(search_stored("00007.jpg", one)[0].hits) == 10
        counts.append(dict(read))
    ids = [count.pop("/ids") for count in counts]
    assert ids[1] - ids[0] == 2 * (1500 - 300)  # once to find rows, and once to notice that they move
    assert counts[0] == counts[1]
    assert counts[0]["/paths"] < 50
    assert counts[0]["/size"] < 50
