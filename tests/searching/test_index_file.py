"""index_file: an index is the old one or the new one, and of this store."""

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

import h5py
import numpy as np
import pytest
from crashes import SnapshotDisk, distinct
from stores import store as made
from vectors import append, check, clusters, filled, flip, held, remove, replace

import rn50feat
from rn50feat import FeatureStore, duplicates
from rn50feat.cli.description import describe
from rn50feat.durable.disk import Disk
from rn50feat.errors import HistoryError, IndexingError
from rn50feat.searching import index_file, index_plan
from rn50feat.searching.index_file import facts_path, faiss_path
from rn50feat.searching.nearest import Nearest, open_index
from rn50feat.searching.search import search_stored
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 rows, and another that it may refer to."""
    made(tmp_path / "other.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])
    return made(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])


INDEXES: dict[str, Callable[[Path, Path], object]] = {
    "deep": lambda faiss, facts: facts.write_text("[" * 200_000),
    "holes": lambda faiss, facts: os.truncate(facts, 1 << 40),
    "fifo of facts": lambda faiss, facts: (facts.unlink(), os.mkfifo(facts)),
    "folder of facts": lambda faiss, facts: (facts.unlink(), facts.mkdir()),
    "fifo": lambda faiss, facts: (faiss.unlink(), os.mkfifo(faiss)),
    "folder": lambda faiss, facts: (faiss.unlink(), faiss.mkdir()),
    "lists": lambda faiss, facts: facts.write_text(
        '{"format": "rn50feat index", "schema": 1, "index": [], "before": 7}'
    ),
    **{
        f"{name} {value}": lambda faiss, facts, name=name, value=value: facts.write_text(
            json.dumps({**(record := json.loads(facts.read_text())), "index": {**record["index"], name: value}})
        )
        for name in ("next_id", "size", "metric", "recall", "store_id", "nprobe")
        for value in ("x", [1])
    },
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_is_none_is_told_in_one_line(path: Path, kind: str) -> None:
    rn50feat.index(path)
    INDEXES[kind](faiss_path(path), facts_path(path))
    for action in (lambda: search_stored(["3.jpg"], path), lambda: duplicates(path), lambda: rn50feat.index(path)):
        with pytest.raises(IndexingError):
            action()
    search_stored(["3.jpg"], path, exact=True)


WITHOUT = "ignore it: search --exact, duplicates --scan"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", clusters(400))


def overwrite(store: FeatureStore) -> None:
    store.path.unlink()
    filled(store.path, clusters(5))


def other_weights(store: FeatureStore) -> None:
    from rn50feat.images.provenance import Provenance
    from rn50feat.store.writer import open_store

    with open_store(store.path) as writer:
        writer.update_provenance(Provenance("random:1", "11"))


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
        (overwrite, "belongs to another store"),
        (other_weights, "has features with weights random:0 .* has random:1"),
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
        with pytest.raises(IndexingError, match=f"(?s){message}.*rn50feat index .* --rebuild, or {WITHOUT}"):
            attempt()
    with pytest.raises(IndexingError, match=WITHOUT):
        rn50feat.duplicates(store)
    assert any(message.split(" .*")[0].split(" ")[-1] in finding for finding in rn50feat.verify(store).findings)
    assert search_stored([name], store, exact=True)[0].hits[0].path == name
    rn50feat.index(store, rebuild=True)
    check(store)


def test_a_copied_index_is_as_good_and_flipped_bits_are_found_by_verify(store: FeatureStore, tmp_path: Path) -> None:
    rn50feat.index(store)
    path = store.path.with_suffix(".faiss")
    status = path.stat()
    os.utime(path, ns=(0, 0))
    check(store)  # another time: hashed, and found whole
    flip(store)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "damaged" in rn50feat.verify(store).findings[0]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "factory"), [(True, None), (False, None), (False, "IVF2,RaBitQ")])
def test_an_index_stopped_anywhere_is_the_old_one_or_the_new_one(
    tmp_path: Path, first: bool, factory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each system call, what a kill and what a power cut would leave."""
    if factory:  # in parts
        monkeypatch.setattr(index_plan, "part_rows", lambda *_: 8)
        monkeypatch.setattr("rn50feat.searching.index.BLOCK", 8)
    folder = tmp_path / "run"
    folder.mkdir()
    store = filled(folder / "out.h5", clusters(30))
    monkeypatch.setattr("rn50feat.searching.faiss_index._BUFFER", 1 << 17)
    if not first:
        rn50feat.index(store, factory=factory, target_recall=1.0)
        append(store, 30, clusters(10, seed=1))
        remove(store, [3, 20])
    disk = SnapshotDisk(folder, pattern="out.faiss*", mixtures=1)
    monkeypatch.setitem(index_file.save.__kwdefaults__, "disk", disk)
    monkeypatch.setattr("rn50feat.searching.index_parts.DISK", disk)
    rn50feat.index(store, factory=factory, target_recall=1.0)
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


@pytest.mark.slow
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
    with pytest.raises(
        HistoryError, match=f"out.faiss belongs to another history of .*out.h5 .*--rebuild, or {WITHOUT}"
    ):
        search_stored([name], store, metric="l2")
    with pytest.raises(HistoryError):
        rn50feat.duplicates(store)
    (finding,) = rn50feat.verify(store).findings
    assert "out.faiss belongs to another history of" in finding
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
