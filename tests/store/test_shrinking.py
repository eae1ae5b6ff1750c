"""shrinking: a run rewrites a store whose file has too many holes, and nothing that goes wrong there matters."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import PROVENANCE, add, hundred, store

from rn50feat import FeatureStore
from rn50feat.durable.disk import Disk
from rn50feat.sources.reference import Reference
from rn50feat.store import shrinking
from rn50feat.store.compact import compact
from rn50feat.store.session import WriteSession
from rn50feat.store.shrinking import is_wasteful, shrink
from rn50feat.store.summary import Summary
from rn50feat.store.writer import create_store, open_store


@pytest.fixture
def churned(tmp_path: Path) -> Path:
    """A store half of whose file is holes."""
    path = hundred(tmp_path / "out.h5")
    with open_store(path) as writer:
        add(writer, 100, 100)
    with open_store(path) as writer:
        writer.remove(np.arange(100))
    return path


def touch(path: Path, should_stop: Callable[[], str | None] = lambda: None) -> Summary:
    """Run a command that changes one row."""
    with WriteSession(path, "merge", should_stop=should_stop) as session:
        session.touch(0, Reference(str(path.parent / "1.jpg"), 1, 77, b"1" * 16))
        session.commit(ended=True)
        session.stop()
    return session.summary


def test_a_run_leaves_no_large_holes(churned: Path) -> None:
    before, size = FeatureStore(churned), churned.stat().st_size
    ids, mark = before.column("ids"), before.id
    assert is_wasteful(churned)
    summary = touch(churned)
    assert size / 3 < summary.compacted <= size - churned.stat().st_size + 10_000  # of the record of the run
    assert not is_wasteful(churned)
    after = FeatureStore(churned)
    assert np.array_equal(after.column("ids"), ids) and after.id == mark
    assert after.column("mtime_ns")[0] == 77 and after.wrong_rows(0, 100) == []
    assert "compacted" not in after.runs()[-1]["counts"]
    assert touch(churned).compacted == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("rows", "failures", "runs", "length"), [(1, 0, 1, 1400), (33, 0, 1, 100), (99, 0, 30, 2100), (5, 200, 9, 1400)]
)
def test_the_estimate_is_close(tmp_path: Path, dtype: str, rows: int, failures: int, runs: int, length: int) -> None:
    path = tmp_path / "out.h5"
    with create_store(path, PROVENANCE, np.dtype(dtype)) as writer:
        add(writer, 0, rows)
        for i in range(failures):
            writer.fail(Reference(f"/some/where/{i}.jpg", i, i), "is truncated" * (1 + i % 5))
    for _ in range(runs):
        with open_store(path) as writer:
            writer.record({"text": "y" * length})
    compact(path)
    with h5py.File(path) as file:
        assert shrinking._space(file) == pytest.approx(path.stat().st_size, rel=0.07)


def test_who_stops_a_run_does_not_wait(churned: Path) -> None:
    before = churned.stat().st_size
    summary = touch(churned, should_stop=lambda: "SIGTERM")
    assert (summary.stopped, summary.compacted) == ("SIGTERM", 0)
    with pytest.raises(KeyError), WriteSession(churned, "merge") as session:
        session.touch(0, Reference(str(churned.parent / "1.jpg"), 1, 78, b"1" * 16))
        session.commit(ended=True)
        raise KeyError
    asked: list[int] = []
    assert shrink(churned, should_stop=lambda: asked.append(1) or "SIGTERM", on_begin=lambda: None) == 0
    assert len(asked) == 1
    assert churned.stat().st_size >= before
    assert [path.name for path in churned.parent.iterdir()] == ["out.h5"]


def test_what_cannot_be_rewritten_stays(churned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Disk):
        def write(self, handle: int, data: bytes, offset: int) -> None:
            raise OSError(28, "No space left on device")

    before = churned.read_bytes()
    assert shrink(churned, should_stop=lambda: None, on_begin=lambda: None, disk=Full()) == 0
    monkeypatch.setattr(shrinking, "READER_SECONDS", 0.05)
    with FeatureStore(churned).reading():
        assert shrink(churned, should_stop=lambda: None, on_begin=lambda: None) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    os.link(churned, tmp_path / "backup.h5")
    assert shrink(churned, should_stop=lambda: None, on_begin=lambda: None) == 0
    (tmp_path / "backup.h5").unlink()
    assert churned.read_bytes() == before
    with h5py.File(churned, "r+", libver=("v108", "v108")) as file:
        file["labels"] = np.arange(100)  # of another program
    assert not is_wasteful(churned)
    with h5py.File(churned, "r+", libver=("v108", "v108")) as file:
        del file["labels"]
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/data")
    assert not is_wasteful(churned)


def test_a_small_store_is_not_rewritten_every_time(tmp_path: Path) -> None:
    path = store(tmp_path / "out.h5", [("0.jpg", 1, 1)])
    assert sum(touch(path).compacted > 0 for _ in range(20)) < 5
