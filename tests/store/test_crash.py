"""A run stopped at any write or sync leaves the last commit, and can be gone on with."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from crashes import Files, SnapshotDisk, digests, distinct, extract
from PIL import Image
from scenes import encoded

from rn50feat import FeatureStore
from rn50feat.durable import journal, rollback
from rn50feat.sources.reference import Reference
from rn50feat.store import shrinking
from rn50feat.store.compact import Compacted
from rn50feat.store.shrinking import shrink
from rn50feat.store.writer import StoreWriter, create_store, open_store

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CRASH_KILLS", "15"))
State = frozenset[tuple[str, int, float]]  # path, id and first feature of every row


def state(store: Path) -> State:
    """Return all rows, read with h5py alone; none for a store that is not there."""
    if not store.exists():
        return frozenset()
    with h5py.File(store) as file:
        columns = (file["paths"].asstr()[:], file["ids"][:], file["features"][:, 0])
        assert len({len(file[name]) for name in ("paths", "ids", "features", "size", "mtime_ns", "digest")}) == 1
        return frozenset((path, int(number), float(value)) for path, number, value in zip(*columns))


def paint(folder: Path, names: range, shade: int) -> None:
    folder.mkdir(exist_ok=True)
    for i in names:
        (folder / f"{i:02}.png").write_bytes(encoded(Image.new("RGB", (8 + shade, 8), (shade + i, 0, 0)), "PNG"))


def create(folder: Path) -> None:
    paint(folder / "pictures", range(6), 0)
    (folder / "pictures/broken.png").write_text("no picture")


def append(folder: Path) -> None:
    paint(folder / "pictures", range(6, 10), 0)


def replace(folder: Path) -> None:
    paint(folder / "pictures", range(1, 5), 100)


def prune(folder: Path) -> None:
    for i in (0, 2, 5):
        (folder / f"pictures/{i:02}.png").unlink()
    (folder / "pictures/broken.png").unlink()


def append_and_rewrite(folder: Path) -> None:
    append(folder)


@pytest.mark.parametrize("change", [create, append, replace, prune, append_and_rewrite])
def test_a_run_stopped_anywhere_leaves_the_last_commit_and_can_be_resumed(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if change is not create:
        create(folder)
        extract(folder)
    change(folder)
    pruning = {"prune": True, "force": True} if change is prune else {}
    disk = SnapshotDisk(folder)
    for function in (create_store, open_store, shrink):
        monkeypatch.setitem(function.__kwdefaults__, "disk", disk)
    states = [state(folder / "out.h5")]
    commit, rewrite = StoreWriter.commit, shrinking.rewrite

    def committed(writer: StoreWriter, **settings: float) -> None:
        before = disk.commits
        commit(writer)
        if disk.commits > before:
            states.append(state(folder / "out.h5"))

    def rewritten(*stores: Path, **settings: Any) -> Compacted:
        done = rewrite(*stores, **settings)
        states.append(state(folder / "out.h5"))
        return done

    monkeypatch.setattr(StoreWriter, "commit", committed)
    monkeypatch.setattr(shrinking, "rewrite", rewritten)
    monkeypatch.setattr(shrinking, "WASTE", -1 if change is append_and_rewrite else 1)
    extract(folder, **pruning)
    disk.note()
    monkeypatch.undo()
    assert len(states) > 2 or change is prune
    final = states[-1]
    resumed = set()
    for snapshot in distinct(disk.snapshots):
        scene = tmp_path / "scene"
        lay_out(snapshot.files, scene, folder / "pictures")
        if not (scene / "out.h5-journal").exists():  # then plain h5py can read it
            assert state(scene / "out.h5") in [states[i] for i in snapshot.commits]
        if (scene / "out.h5").exists():
            FeatureStore(scene / "out.h5")  # recovers
        assert state(scene / "out.h5") in [states[i] for i in snapshot.commits]
        left = digests({path.name: path.read_bytes() for path in scene.iterdir() if path.is_file()})
        if left not in resumed:  # from the same files a run goes on in the same way
            resumed.add(left)
            extract(scene, **pruning)
            assert state(scene / "out.h5") == final
            assert sorted(path.name for path in scene.iterdir()) == ["out.h5", "pictures"]
        shutil.rmtree(scene)


def lay_out(files: Files, folder: Path, pictures: Path) -> None:
    folder.mkdir()
    (folder / "pictures").symlink_to(pictures)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_a_recovery_stopped_anywhere_can_be_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    create(folder)
    extract(folder)
    before = state(folder / "out.h5")
    replace(folder)
    disk = SnapshotDisk(folder, mixtures=0)
    monkeypatch.setitem(open_store.__kwdefaults__, "disk", disk)
    extract(folder)
    monkeypatch.undo()
    # A commit that was stopped just before its journal was removed.
    files = next(s.files for s in reversed(disk.snapshots) if s.commits == range(0, 1) and "out.h5-journal" in s.files)
    scene = tmp_path / "scene"
    lay_out(files, scene, folder / "pictures")
    second = SnapshotDisk(scene, mixtures=3)
    assert rollback.recover(scene / "out.h5", second)
    second.note()
    assert state(scene / "out.h5") == before
    assert len(second.snapshots) > 20
    for number, snapshot in enumerate(second.snapshots):
        again = tmp_path / f"again{number}"
        lay_out(snapshot.files, again, folder / "pictures")
        FeatureStore(again / "out.h5")
        assert state(again / "out.h5") == before


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from crashes import extract
from pathlib import Path
print("begin", flush=True)
extract(Path(sys.argv[2]))
"""


def test_real_processes_killed_at_random_moments_lose_no_commit(tmp_path: Path) -> None:
    rng = random.Random(1)
    shades: dict[bytes, float] = {}
    rows = kills = 0
    for _ in range(KILLS):
        for i in range(24):
            if rng.random() < 0.6 or not (tmp_path / f"pictures/{i:02}.png").exists():
                paint(tmp_path / "pictures", range(i, i + 1), rng.randrange(200))
        for path in (tmp_path / "pictures").iterdir():
            data = path.read_bytes()
            shades[hashlib.blake2b(data, digest_size=16).digest()] = Image.open(path).getpixel((0, 0))[0]
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent.parent), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.random() * 0.12)
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        if (tmp_path / "out.h5").exists():
            store = FeatureStore(tmp_path / "out.h5")
            with store.reading():
                assert len(store) >= rows
                rows = len(store)
                for digest, value in zip(store.column("digest"), store.block(0, rows)[:, 0]):
                    assert shades[digest.tobytes()] == value
    assert kills
    extract(tmp_path)
    found = {Path(path).name: value for path, _, value in state(tmp_path / "out.h5")}
    assert found == {p.name: Image.open(p).getpixel((0, 0))[0] for p in (tmp_path / "pictures").iterdir()}
    assert len(set(FeatureStore(tmp_path / "out.h5").column("ids"))) == 24


def test_appending_to_a_large_store_writes_little(tmp_path: Path) -> None:
    """100 rows onto 300,000: the bytes that reach the disk are counted, not timed."""

    class CountingDisk(journal.Disk):
        written = 0

        def write(self, handle: int, data: bytes, offset: int) -> None:
            self.written += memoryview(data).nbytes
            super().write(handle, data, offset)

    def references(first: int, count: int) -> list[Reference]:
        return [
            Reference(f"{tmp_path}/{i // 1000}/{i}.jpg", i, i, i.to_bytes(16, "big"))
            for i in range(first, first + count)
        ]

    from rn50feat.images.provenance import Provenance

    path, block = tmp_path / "out.h5", np.ones((10_000, 2048), np.float16)
    with create_store(path, Provenance("random:0", "00"), np.dtype("float16")) as writer:
        for first in range(0, 300_000, len(block)):
            writer.append(references(first, len(block)), block)
    disk = CountingDisk()
    with open_store(path, disk=disk) as writer:
        writer.append(references(300_000, 100), block[:100])
    assert len(FeatureStore(path)) == 300_100
    assert disk.written < 20_000_000
    path.unlink()
