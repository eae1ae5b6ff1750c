"""store, writer and journal: what was committed is there, whatever happens afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from rn50feat import FeatureStore, journal
from rn50feat.catalogue import Catalogue
from rn50feat.cli.report import describe
from rn50feat.errors import ProvenanceError, StoreError
from rn50feat.places.sources import Reference
from rn50feat.provenance import Provenance
from rn50feat.verify import verify
from rn50feat.writer import StoreWriter, create_store, open_store

PROVENANCE = Provenance("random:0", "5e" * 32)


def references(folder: Path, first: int, count: int) -> list[Reference]:
    return [Reference(str(folder / f"{i}.jpg"), i, i, i.to_bytes(16, "big")) for i in range(first, first + count)]


def features(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones((1, 2048), np.float32)


def add(writer: StoreWriter, first: int, count: int) -> None:
    writer.append(references(writer.path.parent, first, count), features(first, count))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 100 rows."""
    with create_store(tmp_path / "out.h5", PROVENANCE, np.dtype("float32")) as writer:
        add(writer, 0, 100)
    return tmp_path / "out.h5"


def first_values(path: Path) -> list[float]:
    return [float(row[0]) for _, block in FeatureStore(path).blocks() for row in block]


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


def test_plain_h5py_reads_a_store(path: Path) -> None:
    with h5py.File(path) as file:
        assert file["features"].shape == (100, 2048)
        assert file["paths"].asstr()[5] == "5.jpg"
        assert file.attrs["next_id"] == 100


def test_a_reader_sees_the_last_commit_while_a_writer_works(path: Path) -> None:
    store = FeatureStore(path)
    with open_store(path) as writer:
        add(writer, 100, 10)
        assert len(store) == 100
        writer.commit()
        assert len(store) == 110


def test_what_a_store_knows(path: Path) -> None:
    with open_store(path) as writer:
        writer.fail(Reference(str(path.parent / "bad.jpg"), 9, 9), "is broken")
        writer.fail(Reference("/elsewhere/bad.jpg", 9, 9), "is broken")
        writer.fail(Reference("/elsewhere/bad.jpg", 10, 10), "is still broken")
    catalogue = Catalogue(FeatureStore(path))
    assert [catalogue.row(name) for name in ("0.jpg", "99.jpg", "100.jpg")] == [0, 99, None]
    assert catalogue.unchanged(5, Reference("", 5, 5))
    assert not catalogue.unchanged(5, Reference("", 5, 6))
    assert [catalogue.may_hold_copy(size) for size in (0, 99, 100, -1)] == [True, True, False, False]
    assert catalogue.row_of_copy((7).to_bytes(16, "big")) == 7
    assert catalogue.row_of_copy((700).to_bytes(16, "big")) is None
    assert catalogue.failed_before("bad.jpg", Reference("", 9, 9))
    assert not catalogue.failed_before("/elsewhere/bad.jpg", Reference("", 9, 9))
    assert catalogue.failures["/elsewhere/bad.jpg"].attempts == 2


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


@pytest.mark.parametrize(
    "name", ["nothing.h5", "text.h5", "other.h5", "newer.h5", "cut.h5", "folder.h5", "pipe.h5", "loop.h5"]
)
def test_a_file_that_is_no_store_says_so(tmp_path: Path, path: Path, name: str) -> None:
    (tmp_path / "folder.h5").mkdir()
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    h5py.File(tmp_path / "other.h5", "w").close()
    (tmp_path / "newer.h5").write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "newer.h5", "r+") as file:
        file.attrs["schema"] = 2
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:4000])
    reason = {
        "cut.h5": "is a damaged HDF5 file: restore it from a backup, or delete it and extract anew",
        "nothing.h5": "No such file or directory: name an existing store",
        "text.h5": "is no HDF5 file: name another store",
        "other.h5": "not a store of rn50feat",
        "newer.h5": "has schema 2, this version reads 1: upgrade",
        "folder.h5": "is a folder: name a file for the store",
        "pipe.h5": "is no regular file: name a file for the store",
        "loop.h5": "cannot be found",
    }[name]
    with pytest.raises(StoreError, match=f"{name}.*{reason}"):
        FeatureStore(tmp_path / name)


def test_provenance_survives_json_and_tells_differences() -> None:
    assert Provenance.from_json(PROVENANCE.to_json()) == PROVENANCE
    assert PROVENANCE.difference(Provenance("random:0")) is None
    assert PROVENANCE.difference(Provenance("other name", "5e" * 32)) is None
    name, own, other = PROVENANCE.difference(Provenance("imagenet-v1", "06" * 32))
    assert (name, own, other) == ("weights", "random:0 (SHA-256 5e5e5e5e…)", "imagenet-v1 (SHA-256 06060606…)")
    with pytest.raises(ProvenanceError, match="upgrade rn50feat"):
        Provenance.from_json('{"weights": "x", "preprocessing": {"mean": [], "std": [], "zoom": 2}}')


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
    assert record.getMessage() == (
        f"{path} was interrupted in the middle of a commit: restored as of the commit before"
    )


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
        assert not journal.recover(path)
        assert path.read_bytes() == backup
        assert not journal.journal_path(path).exists()
    path.write_bytes(last)  # the very file that the journal is of
    journal.journal_path(path).write_bytes(left)
    assert journal.recover(path)
    assert path.read_bytes() == last


def test_a_new_store_is_safe_from_the_journal_of_one_that_lay_there(path: Path) -> None:
    with pytest.raises(StoreError), open_store(path, disk=Dying()) as writer:
        add(writer, 100, 10)
    path.unlink()
    with create_store(path, PROVENANCE, np.dtype("float32")) as writer:
        add(writer, 700, 20)
    assert os.listdir(path.parent) == ["out.h5"]
    assert first_values(path) == list(range(700, 720))


DAMAGE = {
    "no id": lambda file: file.attrs.__delitem__("store_id"),
    "provenance of numbers": lambda file: file.attrs.__setitem__("provenance", 3),
    "schema of text": lambda file: file.attrs.__setitem__("schema", "one"),
    "no paths": lambda file: file.__delitem__("paths"),
    "no runs": lambda file: file.__delitem__("runs"),
    "a group for a dataset": lambda file: (file.__delitem__("size"), file.create_group("size")),
    "ids of text": lambda file: (file.__delitem__("ids"), file.__setitem__("ids", ["a"] * 99)),
    "paths of numbers": lambda file: (file.__delitem__("paths"), file.__setitem__("paths", np.zeros(99))),
    "too few times": lambda file: file["mtime_ns"].resize(7, axis=0),
    "too many features": lambda file: file["features"].resize(1 << 50, axis=0),
    "narrow features": lambda file: (file.__delitem__("features"), file.__setitem__("features", np.ones((99, 9)))),
    "a link that leads nowhere": lambda file: (
        file.__delitem__("digest"),
        file.__setitem__("digest", h5py.SoftLink("/nowhere")),
    ),
    "no ledger": lambda file: file.__delitem__("failures"),
    "a record that is none": lambda file: file["runs"].resize(1, axis=0),
    "negative sizes": lambda file: file["size"].__setitem__(4, -4),
}


@pytest.fixture
def sound(path: Path) -> Path:
    """A store of 99 rows that are not all zero."""
    with open_store(path) as writer:
        writer.remove(np.array([0]))
    return path


def harmless(path: Path) -> bool:
    """Read and verify all of a store; return whether no fault was told, by a finding or in one line."""
    try:
        store = FeatureStore(path)
        sound = not verify(store).findings
        store.rows_of(["3.jpg"]), store.features(np.array([1, 98])), Catalogue(store), describe(store)
    except (StoreError, ProvenanceError) as error:
        assert "\n" not in str(error)
        return False
    return sound


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_told_of_in_one_line(sound: Path, damage: str) -> None:
    assert harmless(sound)
    with h5py.File(sound, "r+") as file:
        DAMAGE[damage](file)
    assert not harmless(sound)


def test_a_store_that_was_cut_off_is_told_of(sound: Path) -> None:
    whole = sound.read_bytes()
    for length in range(0, len(whole), len(whole) // 50):
        sound.write_bytes(whole[:length])
        assert not harmless(sound)
        with pytest.raises(StoreError):
            open_store(sound)
