"""store, writer and journal: what was committed is there, whatever happens afterwards."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from rn50feat import FeatureStore
from rn50feat.cli.description import describe
from rn50feat.durable import journal, rollback
from rn50feat.errors import ArgumentError, OutOfMemoryError, ProvenanceError, RowError, StoreError
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.verify import verify
from rn50feat.images.provenance import Provenance
from rn50feat.sources.sources import Reference
from rn50feat.store.writer import StoreWriter, create_store, open_store

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
    assert catalogue.failure("bad.jpg", Reference("", 9, 9))
    assert not catalogue.failure("/elsewhere/bad.jpg", Reference("", 9, 9))
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
        "cut.h5": "is a damaged HDF5 file: restore it from a backup; without one, move it away and extract again",
        "nothing.h5": "No such file or directory: name an existing store",
        "text.h5": "is not an HDF5 file: name another store",
        "other.h5": "not an rn50feat store",
        "newer.h5": "has schema 2, but this version reads 1: upgrade",
        "folder.h5": "is a folder: name a file for the store",
        "pipe.h5": "is not a regular file: name a file for the store",
        "loop.h5": r"cannot be found \(Too many levels of symbolic links\): name a file for the store",
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
    "next id of text": lambda file: file.attrs.__setitem__("next_id", "seven"),
    "schema of many": lambda file: file.attrs.__setitem__("schema", [1, 1]),
    "format of many": lambda file: file.attrs.__setitem__("format", ["rn50feat", "rn50feat"]),
    "a single id": lambda file: (file.__delitem__("ids"), file.__setitem__("ids", 3)),
    "times as floats": lambda file: (file.__delitem__("mtime_ns"), file.__setitem__("mtime_ns", np.ones(99))),
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


SELECTIONS = [
    [3, 1], [-1], [0, -100, 99], [5, 5], [], slice(None), slice(-3, None), slice(None, None, -7), slice(5, 2), 7, -100,
    np.arange(10, 30), np.array([1, 2], np.uint8), np.zeros(100, bool), np.arange(100) % 3 == 0, np.eye(2, dtype=int),
]  # fmt: skip


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_features_follows_the_rules_of_numpy(path: Path, selection: object) -> None:
    index = np.array(selection, int) if isinstance(selection, list) else selection
    assert np.array_equal(FeatureStore(path).features(selection), features(0, 100)[index])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([3, 100], "out.h5 has no row 100: it has 100 rows, 0 to 99"),
        (-101, "out.h5 has no row -101"),
        (np.array([2**63], np.uint64), "out.h5 has no row 9223372036854775808"),
        (np.zeros(99, bool), r"out.h5 has 100 rows, the mask has shape \(99,\): use one value per row"),
        ([1.0], r"\[1.0\] cannot select rows: use integers, a slice or a mask"),
        ([[1], [2, 3]], "cannot select rows"),
        (None, "None cannot select rows"),
    ],
)
def test_rows_that_are_not_there_are_an_index_error(path: Path, selection: object, message: str) -> None:
    with pytest.raises(IndexError, match=message) as found:
        FeatureStore(path).features(selection)
    assert isinstance(found.value, RowError)


def test_paths_and_columns_follow_the_rules_of_numpy(path: Path) -> None:
    store = FeatureStore(path)
    assert [store.path_of(row) for row in (0, -1, np.uint8(3))] == ["0.jpg", "99.jpg", "3.jpg"]
    for row in (100, -101, "3", [3], True):
        with pytest.raises(RowError):
            store.path_of(row)  # type: ignore[arg-type]
    assert store.column("ids", -3).tolist() == [97, 98, 99]
    assert store.column("ids", None, 10**30).tolist() == list(range(100))
    assert store.column("ids", 50, 20).tolist() == []
    assert store.paths(-2) == ["98.jpg", "99.jpg"]
    for name in ("foo", "features", "failures/path"):
        with pytest.raises(ArgumentError, match=f"out.h5 has no column {name}: use one of ids, size, mtime_ns, digest"):
            store.column(name)
    for attempt in (
        lambda: store.block(-1, 3),
        lambda: store.references(0, -1),
        lambda: list(store.blocks(0)),
        lambda: store.rows_of("0.jpg"),
    ):
        with pytest.raises(ArgumentError):
            attempt()


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


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError("Unable to allocate 9 GiB"), OutOfMemoryError, "not enough memory for .*out.h5: close"),
        (MemoryError(), MemoryError, "not enough memory"),
        (TypeError("a bug"), TypeError, "a bug"),
        (KeyError("a bug"), KeyError, "a bug"),
        (OSError(errno.EMFILE, "Too many open files"), OSError, "Too many open files"),
    ],
)
def test_only_what_h5py_raises_is_damage(
    path: Path, error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("rn50feat.store.reader.decode_text", fail)
    with pytest.raises(kind, match=message):
        store.paths()


def test_too_few_handles_are_told_as_such(path: Path) -> None:
    store, limits, taken = FeatureStore(path), resource.getrlimit(resource.RLIMIT_NOFILE), []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        with suppress(OSError):
            while True:
                taken.append(os.open(path, os.O_RDONLY))
        for _ in range(2):  # the store is opened twice, to be locked and to be read
            with pytest.raises(StoreError, match=r"Too many open files.*: close other programs, or raise the limit"):
                len(store)
            os.close(taken.pop())
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(store) == 100


def test_advice_on_damage_says_what_would_be_lost(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["size"].resize(7, axis=0)
    with pytest.raises(StoreError, match=r"size has 7 entries, but ids has 100\): .* cannot bring back rows"):
        FeatureStore(path).column("size")
    with pytest.raises(StoreError, match="out.h5 is damaged"):
        open_store(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["store_id"]
    with pytest.raises(StoreError, match=r"out.h5 is damaged \(Unable to .*open attribute"):
        FeatureStore(path)
