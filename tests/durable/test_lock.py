"""lock: a commit has its turn, readers have theirs, and a file system without locks is no reason not to read."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stores import store, values

from rn50feat import FeatureStore
from rn50feat.durable import lock
from rn50feat.durable.rollback import journal_path
from rn50feat.errors import StoreBusyError, StoreError, StoreLockedError
from rn50feat.sources.reference import Reference
from rn50feat.store import opening
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return store(tmp_path / "out.h5", [(f"{i}.jpg", 1, i + 1) for i in range(40)])


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def committing(path: Path, change: Callable[[Path], object]) -> threading.Thread:
    """Start a commit of `change` that has to wait for this thread, and wait until it does."""
    thread = threading.Thread(target=change, args=[path])
    thread.start()
    until(lambda: lock.awaited(path))
    return thread


def append(path: Path) -> None:
    store(path, [("new.jpg", 1, 99)])


def replace(path: Path) -> None:
    with open_store(path) as writer:
        writer.replace(3, Reference(str(path.parent / "3.jpg"), 9, 2, bytes(16)), np.full(2048, 77, np.float32))


# Turns


def test_a_commit_that_waits_goes_before_readers_who_come_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TURN", 60.0)
    seen: list[int] = []
    first = FeatureStore(path)
    with first.reading():
        commit = committing(path, append)
        later = threading.Thread(target=lambda: seen.append(len(FeatureStore(path))))
        later.start()
        time.sleep(0.05)
        assert len(FeatureStore(path)) == 40  # this thread holds it already: waiting for the commit would be for ever
        assert len(first) == 40
        assert seen == []
    commit.join()
    later.join()
    assert seen == [41]
    assert sorted(os.listdir(path.parent)) == ["out.h5"]


def test_readers_get_in_behind_one_that_stays_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TURN", 0.01)
    seen: list[int] = []
    with FeatureStore(path).reading():
        commit = committing(path, append)
        later = threading.Thread(target=lambda: seen.append(len(FeatureStore(path))))
        later.start()
        later.join()
        assert seen == [40]
    commit.join()
    assert len(FeatureStore(path)) == 41


def test_what_a_killed_run_left_stops_nobody(path: Path) -> None:
    left = lock.waiting_path(path)
    left.touch()
    assert not lock.awaited(path)
    assert len(FeatureStore(path)) == 40
    with lock.run_lock(path):
        assert not left.exists()


@pytest.mark.parametrize(("change", "attempts"), [(append, 1), (replace, 2)])
def test_long_work_gives_way_to_a_commit(path: Path, change: Callable[[Path], None], attempts: int) -> None:
    opened, commits, lengths = FeatureStore(path), [], []

    def work() -> float:
        lengths.append(len(opened))
        if not commits:
            commits.append(committing(path, change))
        opened.give_way()
        return float(opened.block(3, 1)[0, 0])

    assert opened.steadily(work) == {append: 4, replace: 77}[change]
    assert lengths == [40] * attempts
    commits[0].join()


def test_work_that_rows_moved_under_twice_makes_commits_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TURN", 0.01)
    opened, commits = FeatureStore(path), []

    def work() -> int:
        commits.append(committing(path, replace))
        opened.give_way()
        return len(commits)

    assert opened.steadily(work) == 3
    for commit in commits:
        commit.join()


def test_one_commit_that_the_caller_holds_is_held(path: Path) -> None:
    opened = FeatureStore(path)
    with opened.reading():
        commit = committing(path, append)
        opened.steadily(opened.give_way)
        assert len(opened) == 40
    commit.join()


# File systems without locks


@pytest.fixture
def no_flock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_warned", set())


def test_without_locks_reading_works_with_one_warning(
    path: Path, no_flock: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(FeatureStore(path)) == len(FeatureStore(path)) == 40
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path} is on a file system without locks (Function not implemented):"
        " results may be wrong if a run writes to it meanwhile"
    )


def test_without_locks_writing_needs_a_statement(
    path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreError, match="set HDF5_USE_FILE_LOCKING=FALSE if nobody else writes to it"):
        with lock.run_lock(path):
            pass
    with pytest.raises(StoreError, match="without locks"):
        append(path)
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    with lock.run_lock(path):
        append(path)
    assert len(FeatureStore(path)) == 41
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    with pytest.raises(StoreError, match="without locks"):
        FeatureStore(path)


def test_a_disk_that_fails_is_not_one_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    for action in (lambda: FeatureStore(path), lambda: lock.run_lock(path).__enter__()):
        with pytest.raises(StoreError, match=r"cannot be locked \(Input/output error\): check the disk"):
            action()


@pytest.mark.parametrize("value", ["FALSE", "0"])
def test_no_lock_is_taken_where_hdf5_takes_none(path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", value)
    with open(path) as other:
        lock.fcntl.flock(other, lock.fcntl.LOCK_EX)
        assert len(FeatureStore(path)) == 40
    with lock.run_lock(path), pytest.raises(StoreLockedError):  # a run's own lock is not HDF5's
        lock.run_lock(path).__enter__()


def test_without_locks_a_commit_that_goes_on_is_not_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    monkeypatch.setattr(opening, "JOURNAL_SECONDS", 0.01)
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    journal_path(path).write_bytes(b"rn50feat journal 1\n")
    begun, done = threading.Event(), threading.Event()

    def run() -> None:
        with lock.run_lock(path):
            begun.set()
            done.wait()

    other = threading.Thread(target=run)
    other.start()
    begun.wait()
    with pytest.raises(StoreBusyError, match="in the middle of a commit"):
        FeatureStore(path)
    assert journal_path(path).exists()
    done.set()
    other.join()
    assert len(FeatureStore(path)) == 40
    assert not journal_path(path).exists()


# Files that are not what their names say


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "folder", "fifo"])
@pytest.mark.parametrize("suffix", ["-lock", "-journal", "-new", "-waiting"])
def test_nothing_is_written_through_a_link(path: Path, kind: str, suffix: str) -> None:
    """Somebody else may have put it there: ``ln -s ~/.bashrc out.h5-lock``."""
    target, fresh = path.with_name("precious"), path.with_name("fresh.h5")
    target.write_text("precious")
    places: dict[str, Callable[[Path], object]] = {
        "symlink": lambda place: place.symlink_to(target),
        "dangling": lambda place: place.symlink_to("nowhere"),
        "hard link": lambda place: place.hardlink_to(target),
        "folder": Path.mkdir,
        "fifo": os.mkfifo,
    }
    places[kind](path.with_name(path.name + suffix))
    try:
        with lock.run_lock(path), FeatureStore(path).reading():
            pass
        append(path)
    except StoreError as error:
        assert suffix in str(error)
        assert "remove it" in str(error)
    if suffix == "-new":
        places[kind](fresh.with_name("fresh.h5-new"))
        if kind == "folder":
            with pytest.raises(StoreError, match=r"fresh.h5 cannot be written \(Is a directory\)"):
                store(fresh, [("a.jpg", 1, 1)])
        else:
            assert values(store(fresh, [("a.jpg", 1, 1)])) == {"a.jpg": 1}
    assert target.read_text() == "precious"
    assert not path.with_name("nowhere").exists()
