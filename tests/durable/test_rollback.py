"""rollback: an interrupted commit is undone, and nothing in another file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from stores import PROVENANCE, add, first_values, hundred

from rn50feat import FeatureStore
from rn50feat.durable import journal, rollback
from rn50feat.errors import StoreError
from rn50feat.store.writer import create_store, open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hundred(tmp_path / "out.h5")


class Dying(journal.Disk):
    """A disk that fails when a journal is to be removed: a complete one stays behind."""

    def remove(self, path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_interrupted_commit_is_undone_by_whoever_opens_the_store_and_told_in_one_line(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError), open_store(path, disk=Dying()) as writer:
        add(writer, 100, 10)
    assert path.read_bytes() != before
    assert len(FeatureStore(path)) == 100
    assert path.read_bytes() == before
    (record,) = caplog.records
    assert record.getMessage() == (f"{path} was interrupted in the middle of a commit: restored the previous commit")


def test_a_journal_undoes_nothing_in_another_file(path: Path) -> None:
    older = path.read_bytes()
    with open_store(path) as writer:
        add(writer, 100, 40)
    last = path.read_bytes()
    with pytest.raises(StoreError), open_store(path, disk=Dying()) as writer:
        add(writer, 140, 10)
    left = journal.journal_path(path).read_bytes()
    with create_store(path.with_name("other.h5"), PROVENANCE, np.dtype("float32")) as writer:
        add(writer, 500, 30)
    for backup in (older, path.with_name("other.h5").read_bytes()):
        path.write_bytes(backup)  # put in the place of the store whose run was interrupted
        journal.journal_path(path).write_bytes(left)
        assert not rollback.recover(path)
        assert path.read_bytes() == backup
        assert not journal.journal_path(path).exists()
    path.write_bytes(last)  # the very file that the journal is of
    journal.journal_path(path).write_bytes(left)
    assert rollback.recover(path)
    assert path.read_bytes() == last


def test_a_new_store_is_safe_from_the_journal_of_one_that_lay_there(path: Path) -> None:
    with pytest.raises(StoreError), open_store(path, disk=Dying()) as writer:
        add(writer, 100, 10)
    path.unlink()
    with create_store(path, PROVENANCE, np.dtype("float32")) as writer:
        add(writer, 700, 20)
    assert os.listdir(path.parent) == ["out.h5"]
    assert first_values(path) == list(range(700, 720))
