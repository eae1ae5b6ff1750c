"""index: in step with the store at the cost of the difference, and right at whatever moment it is stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest
from conftest import Run
from crashes import SnapshotDisk, distinct
from vectors import append, clusters, filled, remove, replace

import rn50feat
from rn50feat import FeatureStore
from rn50feat.cli.description import describe
from rn50feat.durable.disk import Disk
from rn50feat.durable.lock import run_lock
from rn50feat.errors import HistoryError, IndexingError, StoreLockedError
from rn50feat.searching import index, index_file, index_plan
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.nearest import Nearest, open_index
from rn50feat.searching.search import search_stored
from rn50feat.sources.sources import Reference
from rn50feat.store.writer import open_store

WITHOUT = "without: search --exact, duplicates --scan"
KINDS = [*((kind, m) for kind in (None, "IVF8,RaBitQ") for m in ("cosine", "l2", "ip")), ("PCA128,IVF4,SQ8", "l2")]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", clusters(400))


def held(store: FeatureStore) -> list[int]:
    """Return the ids of the FAISS file, read by FAISS alone."""
    index = faiss.read_index(str(store.path.with_suffix(".faiss")))
    assert index.ntotal == index_file.read_facts(store.path).rows
    return sorted(FaissIndex(index).ids().tolist())


def check(store: FeatureStore, metric: str = "cosine", k: int = 10) -> None:
    """Compare searches through the index with scans; of equal scores either may come first."""
    names = store.paths()[::19]
    through = search_stored(names, store, k=k, metric=metric)
    for found, truth in zip(through, search_stored(names, store, k=k, metric=metric, exact=True)):
        assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in truth.hits], abs=1e-6)
        inside = {hit.path for hit in truth.hits if hit.score - truth.hits[-1].score > 1e-6}
        assert inside <= {hit.path for hit in found.hits}


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


def test_an_update_trains_and_encodes_nothing_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rn50feat.index(store, factory="IVF8,RaBitQ")
    append(store, 400, clusters(10, seed=1))
    added: list[int] = []
    add = FaissIndex.add
    monkeypatch.setattr(FaissIndex, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(FaissIndex, "add", lambda self, ids, rows: (added.extend(ids.tolist()), add(self, ids, rows)))
    rn50feat.index(store)
    assert added == list(range(400, 410))


def test_a_rebuild_is_advised_when_a_third_is_new(store: FeatureStore) -> None:
    rn50feat.index(store, factory="IVF8,RaBitQ")
    append(store, 400, clusters(190, seed=1))
    assert not rn50feat.index(store).rebuild_pays
    append(store, 590, clusters(20, seed=2))
    assert rn50feat.index(store).rebuild_pays
    assert rn50feat.index(store).rebuild_pays  # also when there is nothing to add
    assert not rn50feat.index(store, rebuild=True).rebuild_pays


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


def test_many_rows_gone_from_the_store_do_not_crowd_out_others(store: FeatureStore) -> None:
    rn50feat.index(store, target_recall=1.0)
    remove(store, list(range(10, 395)))
    check(store, k=12)
    remove(store, list(range(len(store))))
    append(store, 400, clusters(3, seed=1))
    check(store)


def test_hits_are_as_many_as_asked_for_though_few_lists_are_looked_into(store: FeatureStore) -> None:
    rn50feat.index(store, factory="IVF40,SQ8")
    for hits in search_stored(store.paths(0, 3), store, k=350):
        assert len(hits.hits) == 350


@pytest.mark.parametrize("rows", [0, 1, 2, 11])
def test_tiny_stores(tmp_path: Path, rows: int) -> None:
    store = filled(tmp_path / "out.h5", clusters(rows))
    for factory in (None, "Flat", "IVF1,SQ8") if rows else (None,):
        report = rn50feat.index(store, factory=factory, rebuild=True)
        assert report.facts.recall == (1.0 if rows > 1 else None)
        check(store)


def test_another_metric_is_scanned_and_said(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    rn50feat.index(store)
    check(store, "l2")
    assert "out.faiss is for cosine, not l2: scanning every row" in caplog.text


def overwrite(store: FeatureStore) -> None:
    store.path.unlink()
    filled(store.path, clusters(5))


def other_weights(store: FeatureStore) -> None:
    from rn50feat.images.provenance import Provenance
    from rn50feat.store.writer import open_store

    with open_store(store.path) as writer:
        writer.update_provenance(Provenance("random:1", "11"))


def flip(store: FeatureStore) -> None:
    path = store.path.with_suffix(".faiss")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(store: FeatureStore) -> None:
    os.truncate(store.path.with_suffix(".faiss"), 1000)


def garble(store: FeatureStore) -> None:
    store.path.with_suffix(".faiss.json").write_text('{"format": "rn50feat index", "schema": 1, "index": {}}')


def lose(store: FeatureStore) -> None:
    store.path.with_suffix(".faiss.json").unlink()


def restore_older(store: FeatureStore) -> None:
    from rn50feat.store.writer import open_store

    with open_store(store.path) as writer:
        writer._next_id = 399


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (overwrite, "is the index of another store"),
        (other_weights, "is of features with weights random:0 .* holds random:1"),
        (flip, "out.faiss is damaged"),
        (cut, "out.faiss is damaged"),
        (garble, "out.faiss.json is damaged or of another version"),
        (lose, "out.faiss lacks the facts in out.faiss.json"),
        (restore_older, "out.faiss is newer than .*out.h5"),
    ],
)
def test_an_index_of_something_else_is_refused_with_the_remedy(store: FeatureStore, harm, message: str) -> None:  # type: ignore[no-untyped-def]
    rn50feat.index(store)
    harm(store)
    store = FeatureStore(store.path)
    name = store.path_of(3)
    for attempt in (lambda: search_stored([name], store), lambda: rn50feat.index(store)):
        with pytest.raises(IndexingError, match=f"(?s){message}.*rn50feat index .* --rebuild, or do {WITHOUT}"):
            attempt()
    with pytest.raises(IndexingError, match=WITHOUT):
        rn50feat.duplicates(store)
    assert any(message.split(" .*")[0].split(" ")[-1] in finding for finding in rn50feat.verify(store).findings)
    assert search_stored([name], store, exact=True)[0].hits[0].path == name
    rn50feat.index(store, rebuild=True)
    check(store)


def test_an_id_that_a_damaged_store_has_twice_does_not_keep_a_build_busy_for_ever(store: FeatureStore) -> None:
    with h5py.File(store.path, "r+") as file:
        file["ids"][3] = 4
    assert rn50feat.index(store).built
    assert rn50feat.verify(store.path).findings[0] == "id 4 belongs to 2 rows"


def test_a_copied_index_is_as_good_and_flipped_bits_are_found_by_verify(store: FeatureStore, tmp_path: Path) -> None:
    rn50feat.index(store)
    path = store.path.with_suffix(".faiss")
    status = path.stat()
    os.utime(path, ns=(0, 0))
    check(store)  # another time: hashed, and found whole
    flip(store)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "damaged" in rn50feat.verify(store).findings[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "nonsense"}, "FAISS cannot make the index nonsense \\("),
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
    with pytest.raises(IndexingError, match="cannot be removed .*: make a new one with rn50feat index .*out.h5 --reb"):
        rn50feat.index(store)
    check(store)


def test_two_at_once(store: FeatureStore) -> None:
    with run_lock(store.path.with_suffix(".faiss")), pytest.raises(StoreLockedError, match="out.faiss is in use"):
        rn50feat.index(store)


@pytest.mark.parametrize("first", [True, False])
def test_an_index_stopped_anywhere_is_the_old_one_or_the_new_one(
    tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each system call, what a kill and what a power cut would leave."""
    folder = tmp_path / "run"
    folder.mkdir()
    store = filled(folder / "out.h5", clusters(30))
    monkeypatch.setattr("rn50feat.searching.faiss_index._BUFFER", 1 << 17)
    if not first:
        rn50feat.index(store)
        append(store, 30, clusters(10, seed=1))
        remove(store, [3, 20])
    disk = SnapshotDisk(folder, pattern="out.faiss*", mixtures=1)
    monkeypatch.setitem(index_file.save.__kwdefaults__, "disk", disk)
    rn50feat.index(store)
    disk.note()
    monkeypatch.undo()
    seen = set()
    assert len(disk.snapshots) > 30
    for number, snapshot in enumerate(distinct(disk.snapshots)):
        scene = tmp_path / f"scene{number}"
        scene.mkdir()
        shutil.copy(store.path, scene)
        for name, content in snapshot.files.items():
            (scene / name).write_bytes(content)
        found = FeatureStore(scene / "out.h5")
        facts = index_file.read_facts(found.path)
        seen.add(None if facts is None else facts.rows)
        check(found)
        if number % 4:
            continue
        rn50feat.index(found)
        assert held(found) == sorted(found.column("ids").tolist())
        assert sorted(path.name for path in scene.iterdir()) == ["out.faiss", "out.faiss.json", "out.h5"]
    assert seen == ({None, 30} if first else {30, 38})


def test_a_full_disk_leaves_the_old_index(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rn50feat.index(store)
    append(store, 400, clusters(3, seed=1))

    class FullDisk(Disk):
        def write(self, handle: int, data: bytes, offset: int) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(index_file.save.__kwdefaults__, "disk", FullDisk())
    before = {path.name: path.read_bytes() for path in store.path.parent.iterdir()}
    with pytest.raises(IndexingError, match=r"cannot be written \(No space left on device\): free some space"):
        rn50feat.index(store)
    assert {path.name: path.read_bytes() for path in store.path.parent.iterdir()} == before


KILLED = """
import sys
from rn50feat.searching.index import index
for i in range(1000):
    index(sys.argv[1], rebuild=True, factory=("IVF1,SQ8", "Flat")[i % 2])
    print(i, flush=True)
"""


@pytest.mark.slow
def test_real_processes_killed_at_random_moments_leave_a_whole_index(store: FeatureStore) -> None:
    rng, stamps = random.Random(1), set()
    rn50feat.index(store)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", KILLED, store.path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            begun = time.monotonic()
            process.stdout.readline()
            time.sleep(rng.random() * (time.monotonic() - begun))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        with store.reading():
            index = open_index(store)
            assert index is not None
            stamps.add(index.facts.mtime_ns)
            queries = store.features(np.arange(3))
            for rows, _ in Nearest(store, "cosine", index).find(queries, [np.empty(0, np.int64)] * 3, 5):
                assert len(rows) == 5
    assert len(stamps) == 8
    rn50feat.index(store, rebuild=True)
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["out.faiss", "out.faiss.json", "out.h5"]


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


def saved(store: FeatureStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.path.parent.iterdir()}


def restore(store: FeatureStore, files: dict[str, bytes], *names: str) -> None:
    for name in names:
        (store.path.parent / name).write_bytes(files[name])


INDEX = ("out.faiss", "out.faiss.json")


def lose_rows(store: FeatureStore) -> None:
    """Restore a backup, and add as many rows as were lost: their ids are those of the lost ones."""
    backup = saved(store)
    append(store, 400, clusters(20, seed=1))
    rn50feat.index(store)
    restore(store, backup, "out.h5")
    append(store, 500, clusters(30, seed=2))


def diverge(store: FeatureStore) -> None:
    """Let two copies of store and index go on by themselves, and swap their indexes."""
    start = saved(store)
    append(store, 400, clusters(20, seed=1))
    rn50feat.index(store)
    other = saved(store)
    restore(store, start, "out.h5", *INDEX)
    append(store, 500, clusters(20, seed=2))
    rn50feat.index(store)
    restore(store, other, *INDEX)


def bring_back_removed(store: FeatureStore) -> None:
    """Restore a backup from before rows were removed: no id was given in between."""
    backup = saved(store)
    remove(store, [3, 4])
    rn50feat.index(store)
    restore(store, backup, "out.h5")


def restore_between_commits(store: FeatureStore) -> None:
    """Restore a backup that was made in the middle of the run whose end the index has seen."""
    with open_store(store.path) as writer:
        row = clusters(1, seed=1)
        writer.append([Reference(str(store.path.parent / "first.jpg"), 1, 1, bytes(16))], row)
        writer.commit()
        backup = saved(store)
        writer.append([Reference(str(store.path.parent / "second.jpg"), 1, 1, bytes(16))], row)
    rn50feat.index(store)
    restore(store, backup, "out.h5")
    append(store, 500, clusters(3, seed=2))


def go_back_before_marks(store: FeatureStore) -> None:
    """Restore a backup that a version without marks wrote."""
    with h5py.File(store.path, "r+", libver=("v108", "v108")) as file:
        del file["history"]


@pytest.mark.parametrize(
    "happen", [lose_rows, diverge, bring_back_removed, restore_between_commits, go_back_before_marks]
)
@pytest.mark.parametrize("factory", [None, "IVF8,SQ8"])
def test_an_index_of_another_history_is_refused_and_built_anew(
    store: FeatureStore, happen: Callable[[FeatureStore], None], factory: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    rn50feat.index(store, factory=factory, metric="l2", target_recall=1.0)
    happen(store)
    name = store.path_of(-1)
    with pytest.raises(HistoryError, match=f"out.faiss is of another history of .*out.h5 .*--rebuild, or do {WITHOUT}"):
        search_stored([name], store, metric="l2")
    with pytest.raises(HistoryError):
        rn50feat.duplicates(store)
    (finding,) = rn50feat.verify(store).findings
    assert "out.faiss is of another history of" in finding
    assert "another history" in describe(store)["index"]["error"]
    report = rn50feat.index(store)
    assert (report.built, report.facts.metric) == (True, "l2")
    assert report.facts.factory == (factory or index_plan.FLAT)
    assert "out.faiss belongs to another history of" in caplog.text
    assert search_stored(name, store, metric="l2")[0].hits[0].path == name  # one path is no list of letters
    check(store, "l2")
    assert rn50feat.verify(store).findings == []


def test_an_older_index_of_the_same_history_is_used(store: FeatureStore) -> None:
    rn50feat.index(store)
    older = saved(store)
    append(store, 400, clusters(20, seed=1))
    remove(store, [7])
    replace(store, 9, clusters(1, seed=2)[0])
    rn50feat.index(store)
    restore(store, older, *INDEX)
    check(store)
    assert (rn50feat.index(store).built, rn50feat.verify(store).findings) == (False, [])


def test_stores_and_indexes_without_marks_are_used_and_get_them(store: FeatureStore) -> None:
    with h5py.File(store.path, "r+", libver=("v108", "v108")) as file:
        del file["history"]
    rn50feat.index(store)
    about = store.path.with_suffix(".faiss.json")
    record = json.loads(about.read_text())
    assert record["marks"] == {"index": ""}
    del record["marks"]  # as an older version wrote it
    about.write_text(json.dumps(record))
    check(store)
    before = saved(store)
    assert rn50feat.index(store).built is False
    assert saved(store) == before
    append(store, 400, clusters(3, seed=1))
    (mark,) = store.history()
    check(store)
    assert rn50feat.index(store).added == 3
    assert json.loads(about.read_text())["marks"] == {"index": mark, "before": ""}
    assert set(json.loads(about.read_text())["index"]) == set(record["index"])  # what an older version reads
    assert rn50feat.verify(store).findings == []
