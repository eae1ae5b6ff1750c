"""session: when a store is opened, written and committed; with a real store, a clock of its own, and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stores import PROVENANCE, store, values

from rn50feat import FeatureStore
from rn50feat.durable.lock import run_lock
from rn50feat.errors import SourceError, StoreError, StoreLockedError
from rn50feat.sources.archive import ArchiveRecord
from rn50feat.sources.reference import Reference
from rn50feat.store import session as sessions
from rn50feat.store.session import WriteSession
from rn50feat.store.summary import Progress
from rn50feat.store.writer import StoreWriter

FLOAT32 = np.dtype("float32")


class Machine:
    """What an engine says of itself."""

    backend, device, precision = "fake", "cpu", "fp32"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a new store goes."""
    return tmp_path / "out.h5"


def image(path: Path, value: int, *, name: str = "", damage: str = "") -> Reference:
    """Return the image of a row: its number is its name, unless given, and its digest."""
    return Reference(str(path.parent / (name or f"{value}.jpg")), 9, 1, value.to_bytes(16, "big"), damage=damage)


def features(numbers: Sequence[float]) -> NDArray[np.float32]:
    return np.repeat(np.array(numbers, np.float32)[:, None], 2048, axis=1)


def take(session: WriteSession, *numbers: int, rows: Sequence[int | None] = (), **settings: Any) -> None:
    images = [image(session.path, number) for number in numbers]
    session.take(images, features(numbers), rows or [None] * len(numbers), **settings)


def committed(path: Path) -> int:
    return len(FeatureStore(path)) if path.exists() else 0


# Opening


def test_a_session_without_a_change_leaves_no_trace(path: Path) -> None:
    with WriteSession(path, "merge") as session:
        session.prepare(PROVENANCE, FLOAT32)
        assert (session.old, session.opened, session.prepared) == (None, False, True)
    assert list(path.parent.iterdir()) == []
    before = store(path, [("1.jpg", 1, 1)]).read_bytes()
    with WriteSession(path, "merge") as session:
        assert session.old is not None
        assert not session.opened
    assert path.read_bytes() == before


def test_a_new_store_is_not_written_before_its_kind_is_known(path: Path) -> None:
    with WriteSession(path, "extract") as session:
        session.prepare(PROVENANCE)
        assert not session.prepared
        session.prepare(PROVENANCE, np.dtype("float16"))
        take(session, 1, 2)
        assert session.opened
        assert not path.exists()
        session.commit()
        assert committed(path) == 2
    assert (FeatureStore(path).dtype, FeatureStore(path).provenance) == (np.float16, PROVENANCE)


def test_overwrite_replaces_a_store_at_the_first_commit_and_no_other_file(path: Path) -> None:
    store(path, [("1.jpg", 1, 1)])
    with WriteSession(path, "extract", overwrite=True) as session:
        assert session.old is None
        session.prepare(PROVENANCE, FLOAT32)
        take(session, 2)
        assert values(path) == {"1.jpg": 1}
        session.commit()
    assert values(path) == {"2.jpg": 2}
    path.write_text("my notes")
    with pytest.raises(StoreError, match="not an HDF5 file"), WriteSession(path, "extract", overwrite=True):
        pass
    with run_lock(path):  # nothing holds it any more
        assert path.read_text() == "my notes"


def test_a_session_holds_the_run_lock(path: Path) -> None:
    with WriteSession(path, "merge"), pytest.raises(StoreLockedError), WriteSession(path, "import"):
        pass
    with run_lock(path):
        pass


# Commits


def test_commits_come_after_so_many_rows(path: Path) -> None:
    seen = []
    with WriteSession(path, "merge", commit_rows=4) as session:
        session.prepare(PROVENANCE, FLOAT32)
        for i in range(1, 11, 2):
            take(session, i, i + 1)
            seen.append(committed(path))
        session.commit(ended=True)
    assert (seen, committed(path)) == ([0, 4, 4, 8, 8], 10)


def test_commits_come_after_so_many_seconds(path: Path) -> None:
    now, seen = [0.0], []
    with WriteSession(path, "merge", commit_seconds=20, clock=lambda: now[0]) as session:
        session.prepare(PROVENANCE, FLOAT32)
        for i, now[0] in enumerate((19, 21, 40, 42), 1):
            take(session, i)
            seen.append(committed(path))
        session.commit(ended=True)
        now[0] = 50
    assert (seen, session.summary.seconds) == ([0, 2, 2, 4], 50)
    assert FeatureStore(path).runs()[-1]["counts"]["seconds"] == 42


def test_commits_come_sooner_where_rows_change(path: Path) -> None:
    store(path, [(f"{i}.jpg", 1, i) for i in range(1, 7)])
    seen = []
    with WriteSession(path, "merge", commit_changes=2) as session:
        for row in range(3):
            take(session, row + 11, rows=[row])
            seen.append(values(path)["1.jpg"] if row < 1 else sum(FeatureStore(path).column("ids") > 5))
        session.commit(ended=True)
    assert seen == [1, 2, 2]


# Changes


def test_rows_are_new_changed_or_as_they_were(path: Path) -> None:
    store(path, [("1.jpg", 1, 1), ("2.jpg", 1, 2)])
    with WriteSession(path, "extract") as session:
        same = Reference(str(path.parent / "1.jpg"), 9, 7, (1).to_bytes(16, "big"))
        other = image(path, 5, name="2.jpg", damage="has no end marker")
        session.take([same, other, image(path, 3)], features([1, 5, 3]), [0, 1, None])
        session.commit(ended=True)
    summary = session.summary
    assert (summary.unchanged, summary.changed, summary.new, summary.damaged) == (1, 1, 1, 1)
    assert values(path) == {"1.jpg": 1, "2.jpg": 5, "3.jpg": 3}
    assert FeatureStore(path).column("ids").tolist() == [0, 2, 3]
    assert FeatureStore(path).references(0, 1)[0].mtime_ns == 7


def test_rows_that_cannot_be_stored_are_failures(path: Path) -> None:
    with WriteSession(path, "import", damaged="skip") as session:
        session.prepare(PROVENANCE, np.dtype("float16"))
        take(session, 1, 0, reject_zeros=True)
        take(session, 70_000)
        session.take([image(path, 4, damage="has no end marker")], features([4]), [None])
        session.fail(image(path, 5), "is broken", attempts=3)
        session.commit(ended=True)
    assert (session.summary.new, session.summary.failed) == (1, 4)
    assert {failure.path: (failure.reason, failure.attempts) for failure in FeatureStore(path).failures()} == {
        "0.jpg": ("has features that are all zero", 1),
        "70000.jpg": ("has features that are not finite in float16: use a new store with --dtype float32", 1),
        "4.jpg": ("is damaged: has no end marker: --damaged keep gives it a row", 1),
        "5.jpg": ("is broken", 3),
    }


def test_copies_take_the_features_of_a_row_that_still_has_their_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PORTION", 2)
    store(path, [("1.jpg", 1, 1), ("2.jpg", 1, 2)])
    appended: list[int] = []
    append = StoreWriter.append

    def counted(self: StoreWriter, references: Sequence[Reference], rows: NDArray[Any]) -> None:
        appended.append(len(references))
        append(self, references, rows)

    monkeypatch.setattr(StoreWriter, "append", counted)
    with WriteSession(path, "extract") as session:
        for name in ("a", "b", "c"):
            assert session.reuse(0, image(path, 1, name=name), None)
        assert session.reuse(0, image(path, 1, name="2.jpg"), 1)
        assert not session.reuse(1, image(path, 2, name="d"), None)  # its row has other features by now
        session.commit(ended=True)
    assert (session.summary.reused, appended) == (4, [2, 1])
    assert values(path) == {"1.jpg": 1, "2.jpg": 1, "a": 1, "b": 1, "c": 1}


def test_touched_files_archives_and_mended_entries(path: Path) -> None:
    store(path, [("1.jpg", 1, 1)])
    with WriteSession(path, "extract") as session:
        session.fail(image(path, 9), "is broken")
        session.commit()
        assert [failure.path for failure in FeatureStore(path).failures()] == ["9.jpg"]
        session.touch(0, Reference(str(path.parent / "1.jpg"), 9, 5, (1).to_bytes(16, "big")))
        session.clear_failures(["9.jpg"])
        session.note_archive(ArchiveRecord("a.tar", 10, 1, 0, 0))
        session.commit(ended=True)
    read = FeatureStore(path)
    assert (read.references(0, 1)[0].mtime_ns, read.failures()) == (5, [])
    assert [archive.path for archive in read.archives()] == ["a.tar"]


def test_rows_are_removed_in_portions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "PORTION", 2)
    store(path, [(f"{i}.jpg", 1, i) for i in range(7)])
    with WriteSession(path, "extract") as session:
        session.remove(np.array([0, 2, 3, 6]))
    assert set(values(path)) == {"1.jpg", "4.jpg", "5.jpg"}
    assert session.summary.removed == FeatureStore(path).runs()[-1]["counts"]["removed"] == 4


# The record, the stop request, progress and time


def test_a_run_has_one_record_which_says_whether_it_ended(path: Path) -> None:
    with WriteSession(path, "merge") as session:
        session.prepare(PROVENANCE, FLOAT32, merged=["a.h5"], precision="bf16")
        take(session, 1)
        session.commit()
        (record,) = FeatureStore(path).runs()
        assert (record["command"], record["ended"], record["counts"]["new"]) == ("merge", None, 1)
        take(session, 2)
        session.commit(ended=True)
    (record,) = FeatureStore(path).runs()
    assert record["ended"] is not None
    assert (record["merged"], record["precision"], record["device"]) == (["a.h5"], "bf16", None)
    assert record["counts"]["new"] == 2
    with WriteSession(path, "extract") as session:
        session.prepare(PROVENANCE, FLOAT32, machine=Machine())
        session.commit(ended=True)
    record = FeatureStore(path).runs()[-1]
    assert (record["backend"], record["device"], record["precision"]) == ("fake", "cpu", "fp32")


def test_a_reason_to_stop_stays(path: Path) -> None:
    reasons = iter([None, "SIGTERM"])
    with WriteSession(path, "extract", should_stop=lambda: next(reasons)) as session:
        assert [session.stop() for _ in range(3)] == [None, "SIGTERM", "SIGTERM"]
    assert session.summary.stopped == "SIGTERM"


def test_progress_counts_members_of_archives_on_top(path: Path) -> None:
    told: list[Progress] = []
    with WriteSession(path, "extract", on_progress=told.append) as session:
        session.tell("preparing the network")
        session.total, session.members = 5, 3
        session.tell()
    assert [(progress.total, progress.phase) for progress in told] == [(None, "preparing the network"), (8, "")]


def test_all_writing_is_timed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call into the writer takes a second."""
    now = [0.0]
    for name in ("append", "fail", "touch", "commit", "record", "clear_failures", "note_archive", "remove"):

        def timed(self: StoreWriter, *arguments: Any, call: Any = getattr(StoreWriter, name), **settings: Any) -> None:
            before = now[0]
            call(self, *arguments, **settings)
            now[0] = before + 1  # what it calls itself is part of that

        monkeypatch.setattr(StoreWriter, name, timed)
    monkeypatch.setattr("rn50feat.store.summary.time.monotonic", lambda: now[0])
    with WriteSession(path, "extract", commit_rows=2) as session:
        session.prepare(PROVENANCE, FLOAT32)
        take(session, 1, 2)  # append, record, commit
        session.fail(image(path, 3), "is broken")
        session.touch(0, image(path, 1))  # touch, record, commit
        session.clear_failures([])
        session.note_archive(ArchiveRecord("a.tar", 10, 1, 0, 0))
        session.remove(np.array([0]))  # remove, record, commit
    assert session.summary.stages == {"write": now[0]} == {"write": 12}


def test_an_error_undoes_the_uncommitted_and_carries_what_was_committed(path: Path) -> None:
    with pytest.raises(SourceError) as raised, WriteSession(path, "extract", commit_rows=2) as session:
        session.prepare(PROVENANCE, FLOAT32)
        take(session, 1, 2)
        take(session, 3)
        raise SourceError("is gone")
    assert (raised.value.summary.new, session.summary.new) == (2, 3)
    assert values(path) == {"1.jpg": 1, "2.jpg": 2}
    assert sorted(one.name for one in path.parent.iterdir()) == ["out.h5"]
    with pytest.raises(SourceError) as raised, WriteSession(path, "extract"):
        raise SourceError("is gone")
    assert raised.value.summary.found == 0
