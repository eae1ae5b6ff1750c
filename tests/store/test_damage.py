"""damage: a store that cannot be read is told of in one line, with what would be lost."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import hundred

from rn50feat import FeatureStore
from rn50feat.cli.description import describe
from rn50feat.errors import OutOfMemoryError, ProvenanceError, StoreError
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.verify import verify
from rn50feat.store.compact import compact
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hundred(tmp_path / "out.h5")


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
    with pytest.raises(
        StoreError,
        match=r"size has 7 entries, but ids has 100\): restore it from a backup; without one, .*compact .*out.h5 --to",
    ):
        FeatureStore(path).column("size")
    with pytest.raises(StoreError, match="out.h5 is damaged"):
        open_store(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["store_id"]
    with pytest.raises(StoreError, match=r"out.h5 is damaged \(Unable to .*open attribute"):
        FeatureStore(path)


@pytest.mark.parametrize("name", ["features", "ids"])
def test_a_chunk_of_another_size_is_found_before_anything_is_written(sound: Path, name: str) -> None:
    """HDF5 reads such a chunk as if nothing were wrong, and would free space that it does not own."""
    with h5py.File(sound) as file:
        chunk, dimensions = file[name].id.get_chunk_info(0), file[name].ndim
    data, wanted = sound.read_bytes(), FeatureStore(sound).features(slice(None))
    # Where HDF5 keeps it: size, filters, place in the dataset, place in the file
    entry = bytes(4 + 8 * (dimensions + 1)) + chunk.byte_offset.to_bytes(8, "little")
    before, after = data.split(chunk.size.to_bytes(4, "little") + entry)
    sound.write_bytes(before + (chunk.size + 16).to_bytes(4, "little") + entry + after)
    (finding, *_) = verify(sound).findings
    assert f"/{name} has a chunk of the wrong size" in finding
    with pytest.raises(StoreError, match="has a chunk of the wrong size.* saves what can be read"):
        open_store(sound)
    compact(sound, sound.with_name("new.h5"))
    saved = FeatureStore(sound.with_name("new.h5"))
    np.testing.assert_array_equal(saved.features(slice(None)), wanted)
    assert not verify(saved).findings
