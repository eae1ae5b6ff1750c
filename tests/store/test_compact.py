"""compact: all that a store holds and no holes, under the same ids, whatever goes on meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import store, values

from rn50feat import FeatureStore
from rn50feat.durable import lock
from rn50feat.durable.disk import Disk
from rn50feat.errors import StoreError, StoreLockedError
from rn50feat.searching.search import search_stored
from rn50feat.sources.reference import Reference
from rn50feat.store.compact import compact
from rn50feat.store.shrinking import is_wasteful
from rn50feat.store.writer import open_store

COUNT = 200


@pytest.fixture
def churned(tmp_path: Path) -> Path:
    """A store most of whose rows came late and replaced others."""
    path = store(tmp_path / "out.h5", [(f"{i}.png", i, i + 1) for i in range(COUNT)])
    with open_store(path) as writer:
        references = [Reference(str(tmp_path / f"new{i}.png"), 9, i, i.to_bytes(16, "big")) for i in range(COUNT)]
        writer.append(references, np.repeat(np.arange(COUNT, dtype=np.float32)[:, None] + 1, 2048, axis=1))
        writer.fail(Reference(str(tmp_path / "bad.png"), 9, 9), "is broken")
    with open_store(path) as writer:
        writer.remove(np.arange(COUNT))
    return path


def contents(path: Path) -> dict[str, object]:
    """Return all that a file holds: attributes and datasets by name."""
    with h5py.File(path) as file:
        found: dict[str, object] = {f"@{name}": str(value) for name, value in file.attrs.items()}
        file.visititems(lambda name, one: found.update({name: one[()].tolist()} if hasattr(one, "shape") else {}))
        file.visititems(lambda name, one: found.update({f"{name}@{key}": str(one.attrs[key]) for key in one.attrs}))
        return found


def test_a_store_loses_its_holes_and_nothing_else(churned: Path) -> None:
    assert is_wasteful(churned)
    with h5py.File(churned, "r+") as file:
        file["labels/of another program"] = np.arange(COUNT)
        file.attrs["author"], file["labels"].attrs["unit"] = "somebody", "none"
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/data")
    before, inode = contents(churned), os.stat(churned).st_ino
    os.chmod(churned, 0o640)
    done = compact(churned)
    assert contents(churned) == before
    assert (done.rows, done.after) == (COUNT, os.path.getsize(churned))
    assert done.after < 0.7 * done.before
    assert os.stat(churned).st_ino != inode and os.stat(churned).st_mode & 0o777 == 0o640
    assert sorted(path.name for path in churned.parent.iterdir()) == ["out.h5"]
    store(churned, [("more.png", 1, 7)])  # it is one that can be written to
    assert values(churned)["more.png"] == 7


def test_a_copy_is_a_backup(churned: Path, tmp_path: Path) -> None:
    before = churned.read_bytes()
    with lock.run_lock(churned):  # as while a run goes on
        compact(churned, tmp_path / "copy.h5")
    assert churned.read_bytes() == before
    assert contents(tmp_path / "copy.h5") == contents(churned)
    with pytest.raises(StoreError, match="copy.h5 exists: name another file, or use --overwrite"):
        compact(churned, tmp_path / "copy.h5")
    store(churned, [("more.png", 1, 7)])
    compact(churned, tmp_path / "copy.h5", overwrite=True)
    assert contents(tmp_path / "copy.h5") == contents(churned)


def test_in_its_place_only_while_no_run_goes_on(churned: Path) -> None:
    program = (
        f"from rn50feat.durable import lock; from pathlib import Path\nwith lock.run_lock(Path({str(churned)!r})):"
    )
    program += " print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        with pytest.raises(StoreLockedError, match="out.h5 is in use by process"):
            compact(churned)
        run.communicate(b"\n")


def test_a_disk_that_fails_leaves_the_store_as_it_was(churned: Path, tmp_path: Path) -> None:
    class Full(Disk):
        def __init__(self, room: int) -> None:
            self.room = room

        def write(self, handle: int, data: bytes, offset: int) -> None:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(28, "No space left on device")
            super().write(handle, data, offset)

    before = churned.read_bytes()
    for room in (0, 10_000, 1_000_000):
        for to in (None, tmp_path / "copy.h5"):
            with pytest.raises(StoreError, match="cannot be written .No space left on device."):
                compact(churned, to, disk=Full(room))
            assert churned.read_bytes() == before
            assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5"]


def test_a_reader_goes_on_over_it(churned: Path) -> None:
    reader = FeatureStore(churned)
    first = search_stored(["new3.png"], reader, k=5)
    with reader.reading():
        compact(churned)
        assert len(reader) == COUNT
    assert search_stored(["new3.png"], reader, k=5) == first


def test_what_is_no_store_or_damaged_is_refused(churned: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is the store itself"):
        compact(churned, churned)
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(StoreError, match="text.h5 is not an HDF5 file"):
        compact(tmp_path / "text.h5")
    with pytest.raises(StoreError, match="text.h5 is not an HDF5 file"):
        compact(churned, tmp_path / "text.h5", overwrite=True)
    assert (tmp_path / "text.h5").read_text() == "text"
    with h5py.File(churned, "r+") as file:
        del file["size"]
    before = churned.read_bytes()
    with pytest.raises(StoreError, match="is damaged .size is missing."):
        compact(churned)
    assert churned.read_bytes() == before
