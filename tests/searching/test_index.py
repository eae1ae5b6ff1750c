"""index: in step with the store at the cost of the difference, and right at whatever moment it is stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import pytest
from conftest import Run
from vectors import append, check, clusters, filled, flip, held, remove, replace

import rn50feat
from rn50feat import FeatureStore
from rn50feat.cli import report
from rn50feat.durable.lock import run_lock
from rn50feat.errors import IndexingError, StoreLockedError
from rn50feat.searching import index, index_file, recall
from rn50feat.searching.faiss_index import FaissIndex

KINDS = [*((kind, m) for kind in (None, "IVF8,RaBitQ") for m in ("cosine", "l2", "ip")), ("PCA128,IVF4,SQ8", "l2")]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", clusters(400))


@pytest.mark.parametrize(("factory", "metric"), KINDS)
def test_what_an_index_finds_is_what_a_scan_finds(store: FeatureStore, factory: str | None, metric: str) -> None:
    report = rn50feat.index(store, factory=factory, metric=metric, target_recall=1.0)
    assert (report.built, report.added, report.facts.recall) == (True, 400, 1.0)
    assert held(store) == list(range(400))
    check(store, metric)


@pytest.mark.parametrize("factory", [None, "IVF8,RaBitQ"])
def test_an_update_adds_and_removes_the_difference(store: FeatureStore, factory: str | None) -> None:
    rn50feat.index(store, factory=factory, target_recall=1.0)
    more = clusters(30, seed=1)
    append(store, 400, more)
    replace(store, 7, more[3] * 2)
    remove(store, [0, 5, 399])
    check(store)  # before the index knows
    report = rn50feat.index(store)
    assert (report.built, report.added, report.removed) == (False, 31, 4)
    assert held(store) == sorted(store.column("ids").tolist())
    check(store)


def test_nothing_to_do_writes_nothing(store: FeatureStore) -> None:
    rn50feat.index(store)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.path.parent.iterdir()}
    report = rn50feat.index(store)
    assert (report.built, report.added, report.removed) == (False, 0, 0)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.path.parent.iterdir()} == before


def test_a_few_rows_are_left_for_later_if_the_file_is_large(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.index(store)
    monkeypatch.setattr(index, "LARGE", 1)
    before = held(store)
    append(store, 400, clusters(10, seed=1))
    remove(store, [5])
    done = index.index(store)
    assert (done.built, done.added, done.removed, done.behind) == (False, 0, 0, 10)
    assert held(store) == before
    check(store)
    assert report.index_line(done) == "400 rows, 10 newer ones left for later: too few to write 3.28 MB again"
    with pytest.raises(IndexingError, match="you asked for l2: use --rebuild"):
        index.index(store, metric="l2")
    remove(store, [0, 1, 2, 3])  # in all more than one in a hundred
    done = index.index(store)
    assert (done.added, done.removed, done.behind) == (10, 5, 0)
    append(store, 410, clusters(3, seed=2))
    monkeypatch.setattr(index, "MOST_LACKING", 2)
    assert index.index(store).added == 3
    assert held(store) == sorted(store.column("ids").tolist())


def test_an_update_trains_and_encodes_nothing_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rn50feat.index(store, factory="IVF8,RaBitQ")
    append(store, 400, clusters(10, seed=1))
    added: list[int] = []
    add = FaissIndex.add
    monkeypatch.setattr(FaissIndex, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(FaissIndex, "add", lambda self, ids, rows: (added.extend(ids.tolist()), add(self, ids, rows)))
    rn50feat.index(store)
    assert added == list(range(400, 410))


def test_a_rebuild_is_advised_once_recall_is_lost(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = rn50feat.index(store, factory="IVF8,SQ8", target_recall=0.9).facts
    assert (built.measured_rows, built.target, built.short) == (400, 0.9, False)
    append(store, 400, clusters(30, seed=1))
    assert rn50feat.index(store).facts.measured_rows == 400  # nothing to measure yet
    monkeypatch.setattr(recall, "CANDIDATES", (2,))
    append(store, 430, clusters(60, seed=2))
    done = rn50feat.index(store)
    assert done.facts.measured_rows == 490
    assert done.facts.recall is not None and done.facts.recall < 0.9
    assert done.rebuild_pays and done.advice.endswith(f"training: rn50feat index {store.path} --rebuild")
    assert rn50feat.index(store).rebuild_pays  # also when there is nothing to add
    monkeypatch.undo()
    assert not rn50feat.index(store, rebuild=True).rebuild_pays


@pytest.mark.parametrize("large", [0, 10**9])
def test_another_target_measures_recall_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(index, "LARGE", large)
    monkeypatch.setattr(recall, "FIRST", 1)
    built = rn50feat.index(store, factory="IVF64,SQ8", target_recall=0.1).facts
    assert (built.nprobe, rn50feat.index(store).facts) == (1, built)
    for row in (None, 400):  # without a difference to the store, and with one
        if row:
            append(store, row, clusters(1, seed=1))
        raised = rn50feat.index(store, target_recall=1.0).facts
        assert (raised.target, raised.recall) == (1.0, 1.0)
        assert raised.nprobe is not None and raised.nprobe > 1
        assert rn50feat.index(store, target_recall=0.1).facts.nprobe == 1


def test_an_index_without_a_target_gets_the_usual_one(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "FIRST", 1)
    rn50feat.index(store, factory="IVF64,SQ8", target_recall=0.1)
    path = index_file.facts_path(store.path)  # as an earlier version wrote it
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "search"}))
    assert rn50feat.index(store).facts.target == 0
    append(store, 400, clusters(3, seed=1))
    facts = rn50feat.index(store).facts
    assert (facts.target, facts.measured_rows, facts.short) == (0.98, 403, False)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_rebuild_keeps_what_was_chosen(store: FeatureStore, damaged: bool) -> None:
    rn50feat.index(store, metric="l2", factory="IVF8,SQ8", target_recall=0.9)
    if damaged:
        faiss_file = index_file.faiss_path(store.path)
        faiss_file.write_bytes(faiss_file.read_bytes()[:1000])
    done = rn50feat.index(store, rebuild=True)
    assert done.built
    assert (done.facts.metric, done.facts.factory, done.facts.target) == ("l2", "IVF8,SQ8", 0.9)
    done = rn50feat.index(store, rebuild=True, metric="ip", factory="IVF4,SQfp16", target_recall=1.0)
    assert (done.facts.metric, done.facts.factory, done.facts.target) == ("ip", "IVF4,SQfp16", 1.0)


def test_a_rebuild_keeps_what_was_chosen_for_another_store_in_the_same_place(store: FeatureStore) -> None:
    rn50feat.index(store, metric="l2", factory="IVF8,SQ8")
    store.path.unlink()
    again = filled(store.path, clusters(200))
    with pytest.raises(IndexingError, match="belongs to another store"):
        rn50feat.index(again)
    done = rn50feat.index(again, rebuild=True)
    assert (done.facts.metric, done.facts.factory) == ("l2", "IVF8,SQ8")


def test_another_target_is_said(rn50feat: Run, store: FeatureStore) -> None:
    rn50feat("index", "--factory", "IVF8,RaBitQ")
    assert re.search(r"400 rows, recall@10 1.000, scans \d lists?\n", rn50feat("index", "--target-recall", "1").stderr)


def test_a_command_to_run_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "my store").mkdir()
    moved = filled(tmp_path / "my store" / "out.h5", clusters(60))
    rn50feat.index(moved)
    index_file.faiss_path(moved.path).write_bytes(b"")
    with pytest.raises(IndexingError, match=f"rn50feat index '{moved.path}' --rebuild"):
        rn50feat.index(moved)


def test_rows_that_move_while_an_index_is_built_are_in_it(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BLOCK", 64)
    stages: list[tuple[str, int, int]] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        stages.append((stage, done, total))
        if len(stages) == 2:  # rows of the end take the places of rows that were read already
            remove(store, [1, 2, 3, 200])
            append(store, 400, clusters(5, seed=1))

    rn50feat.index(store, on_progress=meanwhile)
    assert sorted(held(store)) == sorted(set(range(400)) - {200})  # 1 to 3 were added before they went
    check(store)
    assert rn50feat.index(store).added == 5
    assert held(store) == sorted(store.column("ids").tolist())


def test_rows_to_measure_recall_with_may_go_before_their_ids_are_read(store: FeatureStore) -> None:
    rn50feat.index(store, factory="IVF4,SQ8", on_plan=lambda plan: remove(store, list(range(300, 400))))
    assert held(store) == list(range(300))
    check(store)


def test_another_metric_is_scanned_and_said(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    rn50feat.index(store, factory="IVF4,SQ8")
    check(store, "l2")
    assert "out.faiss is for cosine, not l2: scanning every row" in caplog.text


def test_an_id_that_a_damaged_store_has_twice_does_not_keep_a_build_busy_for_ever(store: FeatureStore) -> None:
    with h5py.File(store.path, "r+") as file:
        file["ids"][3] = 4
    assert rn50feat.index(store).built
    assert rn50feat.verify(store.path).findings[0] == "id 4 belongs to 2 rows"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "nonsense"}, "FAISS cannot make the index nonsense \\("),
        ({"factory": "IVF0,Flat"}, "the index IVF0,Flat .*at least one list.*: use another --factory"),
        ({"factory": "IDMap2,IVF4,Flat"}, "has ids of its own, without IDMap: use another --factory"),
        ({"factory": "IVF1000,SQ8"}, "cannot train|training points"),
        ({"max_ram": 1000}, "takes about 200 MB of memory, but --max-ram allows 1 kB: raise it"),
        ({"metric": "hamming"}, "there is no metric hamming: use one of cosine, l2, ip"),
    ],
)
def test_what_cannot_be_built_leaves_what_was(store: FeatureStore, settings: dict[str, str], message: str) -> None:
    rn50feat.index(store)
    before = {path.name: path.read_bytes() for path in store.path.parent.iterdir()}
    with pytest.raises(IndexingError, match=message):
        rn50feat.index(store, rebuild=True, **settings)
    assert {path.name: path.read_bytes() for path in store.path.parent.iterdir()} == before


def test_another_kind_needs_a_rebuild_and_some_kinds_remove_nothing(store: FeatureStore) -> None:
    rn50feat.index(store, factory="HNSW8")
    for settings in ({"metric": "l2"}, {"factory": "Flat"}):
        with pytest.raises(IndexingError, match="you asked for .*: use --rebuild"):
            rn50feat.index(store, **settings)
    append(store, 400, clusters(3, seed=1))
    assert rn50feat.index(store).added == 3
    remove(store, [4])
    with pytest.raises(IndexingError, match="cannot be removed .*: rebuild it with rn50feat index .*out.h5 --reb"):
        rn50feat.index(store)
    check(store)


def test_two_at_once(store: FeatureStore) -> None:
    with run_lock(store.path.with_suffix(".faiss")), pytest.raises(StoreLockedError, match="out.faiss is in use"):
        rn50feat.index(store)


def test_the_command(rn50feat: Run, store: FeatureStore) -> None:
    done = rn50feat("index", "--json")
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["factory"], facts["recall"], facts["built"]) == (400, "IDMap2,Flat", 1.0, True)
    assert "building IDMap2,Flat (a full scan is fast and exact up to 50000 rows), about 3.28 MB" in done.stderr
    assert "out.faiss: 400 rows, recall@10 1.000\n" in done.stderr
    assert rn50feat("index", "out.h5", "--quiet").stderr == ""
    assert "400 rows, nothing to do" in rn50feat("index").stderr
    append(store, 400, clusters(2, seed=1))
    assert "400 rows, 2 newer ones are not in it" in rn50feat("info").stdout
    assert "402 rows, 2 added" in rn50feat("index").stderr
    done = rn50feat("index", "--rebuild", "--factory", "IVF8,RaBitQ", "--max-ram", "500M")
    assert "building IVF8,RaBitQ (as requested)" in done.stderr
    assert "scans 8 lists" in done.stderr
    assert "out.faiss is whole: 402 rows" in rn50feat("verify").stderr
    flip(store)
    done = rn50feat("verify")
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert done.stderr == (
        f"Error: the index of {store.path} is faulty: build it again with rn50feat index {store.path} --rebuild\n"
    )
    done = rn50feat("search", "--stored", store.path_of(0))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert rn50feat("search", "--stored", store.path_of(0), "--exact").returncode == 0
    assert "out.faiss is damaged" in rn50feat("info").stdout
    assert rn50feat("index", "--max-ram", "much").returncode == 2


def test_extract_brings_the_index_along(rn50feat: Run, tmp_path: Path, scenes: Path, weights: Path) -> None:
    shutil.copytree(scenes, tmp_path / "pictures")
    arguments = ["extract", "pictures", "out.h5", "--workers", "1", "--index"]
    done = rn50feat(*arguments, "--weights", weights)
    assert "out.faiss: 12 rows, recall@10 1.000" in done.stderr, done.stderr
    assert "12 rows, nothing to do" in rn50feat(*arguments).stderr
    shutil.copy(tmp_path / "pictures/scene01.jpg", tmp_path / "pictures/copy.jpg")
    (tmp_path / "pictures/scene02.jpg").unlink()
    done = rn50feat(*arguments, "--prune")
    assert "12 rows, 1 added, 1 removed" in done.stderr
    assert "12 rows, recall@10" in rn50feat(*arguments, "--weights", weights, "--overwrite").stderr
