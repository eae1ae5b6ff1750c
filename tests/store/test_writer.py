"""writer: what was committed is there, whatever happens afterwards."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import PROVENANCE, add, features, first_values, hundred, references

from rn50feat import FeatureStore
from rn50feat.durable import journal
from rn50feat.errors import ArgumentError, RowError, StoreError
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import create_store, open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hundred(tmp_path / "out.h5")


def test_a_new_store_appears_at_its_first_commit(tmp_path: Path) -> None:
    with create_store(tmp_path / "out.h5", PROVENANCE, np.dtype("float16")) as writer:
        assert not (tmp_path / "out.h5").exists()
        add(writer, 0, 3)
        writer.commit()
        assert first_values(tmp_path / "out.h5") == [0, 1, 2]
        add(writer, 3, 2)
        assert first_values(tmp_path / "out.h5") == [0, 1, 2]
    assert first_values(tmp_path / "out.h5") == [0, 1, 2, 3, 4]
    assert os.listdir(tmp_path) == ["out.h5"]


def test_nothing_is_left_of_a_store_that_was_never_committed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), create_store(tmp_path / "out.h5", PROVENANCE, np.dtype("float16")) as writer:
        add(writer, 0, 3)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_an_error_undoes_what_was_not_committed(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), open_store(path) as writer:
        add(writer, 100, 50)
        writer.replace(7, references(path.parent, 7, 1)[0], features(70, 1)[0])
        raise ZeroDivisionError
    assert path.read_bytes() == before


class FullDisk(journal.Disk):
    """A disk that is full after `room` more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, handle: int, data: bytes, offset: int) -> None:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(handle, data, offset)


@pytest.mark.parametrize("room", [0, 1000, 100_000, 300_000, 600_000, 1_000_000, 1_650_000])
def test_a_full_disk_is_told_and_harms_nothing(path: Path, room: int) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"out.h5 cannot be written \(No space left on device\): free some space"):
        with open_store(path, disk=FullDisk(room)) as writer:
            for i in range(200):
                add(writer, 100 + i, 1)
    assert len(FeatureStore(path)) == 100  # which undoes an interrupted commit
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["out.h5"]


def test_a_full_disk_leaves_no_half_a_new_store(tmp_path: Path) -> None:
    for room in (0, 2000, 100_000):
        with pytest.raises(StoreError, match="No space left"):
            with create_store(tmp_path / "out.h5", PROVENANCE, np.dtype("float32"), disk=FullDisk(room)) as writer:
                add(writer, 0, 100)
        assert not (tmp_path / "out.h5").exists()


def test_arguments_that_do_not_fit_change_nothing(path: Path) -> None:
    (one,), row, before = references(path.parent, 100, 1), features(100, 1), path.read_bytes()
    with open_store(path) as writer:
        for attempt, message in (
            (lambda: writer.append([one], np.ones((1, 1000))), r"shape \(1, 1000\) .* use numbers of shape \(1, 2048"),
            (lambda: writer.append([one, one], row), r"use numbers of shape \(2, 2048\)"),
            (lambda: writer.append([one], np.full((1, 2048), "a")), "dtype <U1"),
            (lambda: writer.append([replace(one, mtime_ns=1 << 63)], row), "a modification time outside"),
            (lambda: writer.append([replace(one, size=1 << 63)], row), "a size of 9223372036854775808 bytes"),
            (lambda: writer.append([replace(one, digest=b"short")], row), "a digest of 5 bytes, not 16"),
            (lambda: writer.append([replace(one, location="/a\0b.jpg")], row), "a name that a store cannot hold"),
            (lambda: writer.append([replace(one, location="/\ud800.jpg")], row), "a name that a store cannot hold"),
            (lambda: writer.replace(3, one, np.ones(1000)), "shape"),
            (lambda: writer.replace(100, one, row[0]), "has no row 100"),
            (lambda: writer.touch(0, replace(one, mtime_ns=-(1 << 64))), "a modification time outside"),
            (lambda: writer.remove(np.array([3, 1])), "in ascending order"),
            (lambda: writer.remove(np.array([100])), "has no row 100"),
        ):
            with pytest.raises((ArgumentError, RowError), match=message):
                attempt()
        writer.append([], np.ones((0, 2048)))
        writer._changed = False
    assert path.read_bytes() == before
    with pytest.raises(ArgumentError, match="cannot hold int8"):
        create_store(path.with_name("new.h5"), PROVENANCE, np.dtype("int8"))
    assert os.listdir(path.parent) == ["out.h5"]


def test_the_ledger_takes_every_name_number_and_reason(path: Path) -> None:
    with open_store(path) as writer:
        for _ in range(2):
            writer.fail(Reference(str(path.parent / "a\0\ud800\udcff.jpg"), 1 << 80, -(1 << 80)), "is \0 and \udd00")
    (entry,) = FeatureStore(path).failures()
    assert (entry.path, entry.reason, entry.attempts) == (r"a\x00\ud800" + "\udcff.jpg", r"is \x00 and \udd00", 2)
    assert (entry.size, entry.mtime_ns) == (2**63 - 1, -(2**63))
