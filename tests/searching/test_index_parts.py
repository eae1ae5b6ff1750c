"""index_parts: an index that was built in parts is the one that FAISS builds at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vectors import append, check, clusters, filled, held, remove, replace

import rn50feat
from rn50feat import FeatureStore
from rn50feat.durable.disk import Disk
from rn50feat.errors import IndexingError
from rn50feat.searching import index_parts, index_plan, inverted_lists
from rn50feat.searching.exact import prepared
from rn50feat.searching.faiss_index import FaissIndex

KINDS = ["IVF8,RaBitQ", "IVF8,Flat", "IVF8_HNSW32,RaBitQ", "PCA64,IVF4,SQ8"]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", clusters(400))


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have room for 100 rows."""
    monkeypatch.setattr(index_plan, "part_rows", lambda *_: 100)
    monkeypatch.setattr("rn50feat.searching.index.BLOCK", 32)
    monkeypatch.setattr(inverted_lists, "_PIECE", 2000)
    return monkeypatch


def change(store: FeatureStore) -> None:
    append(store, 400, clusters(150, seed=1))
    replace(store, 7, clusters(1, seed=2))
    remove(store, [0, 5, 399])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_give_the_file_that_faiss_writes_at_once(
    store: FeatureStore, kind: str, in_parts: pytest.MonkeyPatch
) -> None:
    path = store.path.with_suffix(".faiss")
    rn50feat.index(store, factory=kind)
    merged = path.read_bytes()
    check(store)
    in_parts.undo()
    rn50feat.index(store, factory=kind, rebuild=True)
    assert path.read_bytes() == merged


@pytest.mark.parametrize("kind", KINDS)
def test_updates_in_parts_give_the_rows_of_the_store(store: FeatureStore, kind: str, in_parts: None) -> None:
    rn50feat.index(store, factory=kind)
    for last, more in ((400, 150), (550, 3)):  # the first makes measuring recall again necessary
        append(store, last, clusters(more, seed=last))
        replace(store, 7, clusters(1, seed=last)[0])
        remove(store, [0, 5, last - 50])
        done = rn50feat.index(store)
        assert (done.added, done.removed) == (more + 1, 4)
        assert held(store) == sorted(store.column("ids").tolist())
        check(store)
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["out.faiss", "out.faiss.json", "out.h5"]


@pytest.mark.parametrize("kind", [None, "IVF4,PQ64x4fs", "Flat"])
def test_updates_of_kinds_without_parts_give_the_rows_of_the_store(
    store: FeatureStore, kind: str | None, in_parts: None
) -> None:
    rn50feat.index(store, factory=kind)
    remove(store, [] if kind and "fs" in kind else [0, 5])  # FAISS removes nothing from fast scans
    append(store, 400, clusters(150, seed=1))
    assert rn50feat.index(store).added == 150
    assert held(store) == sorted(store.column("ids").tolist())
    check(store)


def test_a_graph_finds_all_lists_that_are_to_be_probed(store: FeatureStore) -> None:
    facts = rn50feat.index(store, factory="IVF64_HNSW4,RaBitQ", target_recall=1.0).facts
    assert facts.recall == 1.0
    index = FaissIndex.load(store.path.with_suffix(".faiss"), mapped=True)
    index.probe(64)
    assert (index.candidates(prepared(store.features([7]), "cosine"), 400)[0] >= 0).all()


def test_a_full_disk_is_one_line_and_leaves_the_old_index(store: FeatureStore, in_parts: pytest.MonkeyPatch) -> None:
    class FullDisk(Disk):
        def write(self, handle: int, data: bytes, offset: int) -> None:
            raise OSError(28, "No space left on device")

    rn50feat.index(store, factory=KINDS[0])
    append(store, 400, clusters(200, seed=1))
    in_parts.setattr(index_parts, "DISK", FullDisk())
    before = {path.name: path.read_bytes() for path in store.path.parent.iterdir()}
    for settings in ({}, {"rebuild": True, "factory": KINDS[0]}):
        with pytest.raises(IndexingError, match=r"cannot be written \(No space left.*: free some space; the existing"):
            rn50feat.index(store, **settings)
        assert {path.name: path.read_bytes() for path in store.path.parent.iterdir()} == before


def test_the_parts_leave_the_disk_before_the_index_is_written_again(
    store: FeatureStore, in_parts: pytest.MonkeyPatch
) -> None:
    opened: dict[Path, int] = {}

    class Watched(Disk):
        def create(self, path: Path) -> int:
            opened[path] = super().create(path)
            return opened[path]

        def remove(self, path: Path) -> None:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(opened.pop(path))  # a file that is open keeps its space
            super().remove(path)

    in_parts.setattr(index_parts, "DISK", Watched())
    rn50feat.index(store, factory=KINDS[0])
    assert [path.name for path in opened] == ["out.faiss-merged"]


def test_the_disk_is_asked_before_hours_of_work(store: FeatureStore) -> None:
    with pytest.raises(IndexingError, match="of disk while it is built, but .* are free: free some space"):
        index_parts.require_room(store.path, 1 << 60)
