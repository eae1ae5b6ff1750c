"""Write a store: the only module that changes a store's file.

In: features with the references of their images, failures, and the run's
record. Out: all of them in the store; each commit is atomic, through
`journal`. Needs no torch.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rn50feat.durable import journal, lock
from rn50feat.durable.disk import DISK, Disk
from rn50feat.errors import ArgumentError, StoreBusyError
from rn50feat.images.provenance import Provenance
from rn50feat.sources.archive import ArchiveRecord
from rn50feat.sources.reference import UNKNOWN, Reference
from rn50feat.store import layout
from rn50feat.store.checksums import Seals, row_checksums
from rn50feat.store.damage import reporting_damage
from rn50feat.store.damage_notes import DamageNotes
from rn50feat.store.guards import disk_errors, uninterrupted
from rn50feat.store.opening import MOVED, shared
from rn50feat.store.paths import current, stored_path
from rn50feat.store.renaming import rename_entries, rename_rows
from rn50feat.store.rows import row_number, row_numbers
from rn50feat.store.storable import for_ledger, require_rows, require_storable, text_for_ledger

logger = logging.getLogger(__name__)

READER_SECONDS = 2.0  # that a commit waits for readers before it is postponed
LAST_READER_SECONDS = 600.0  # the last commit cannot be postponed

# The file format of HDF5 1.8: it can be read everywhere, and unlike later ones
# does not mark a file as open for writing after its writer was killed.
VERSION = ("v108", "v108")


def open_store(path: Path, *, disk: Disk = DISK) -> StoreWriter:
    """Open the store at `path` for writing, after undoing an interrupted commit; raise `StoreError` if it cannot."""
    with disk_errors(path), shared(path, disk, remedy=MOVED):
        journaled = journal.JournaledFile(path, length=layout.committed_length(path), disk=disk)
    with reporting_damage(path):
        file = h5py.File(journaled, "r+", libver=VERSION)
        layout.check(file)
        layout.check_chunks(file)
        return StoreWriter(journaled, file)


def create_store(path: Path, provenance: Provenance, dtype: np.dtype[Any], *, disk: Disk = DISK) -> StoreWriter:
    """Create a store for features of `dtype`, float16 or float32; it appears with its first commit."""
    if dtype not in (np.float16, np.float32):
        raise ArgumentError(f"{path} cannot hold {dtype}: use float16 or float32")
    with disk_errors(path):
        journaled = journal.JournaledFile(path, create=True, disk=disk)
        file = h5py.File(journaled, "w", libver=VERSION)
        for table in layout.TABLES:
            layout.create(file, table, dtype)
        attributes = {"format": layout.FORMAT, "schema": layout.SCHEMA, "store_id": str(uuid.uuid4()), "next_id": 0}
        file.attrs.update({**attributes, "provenance": provenance.to_json()})
    return StoreWriter(journaled, file)


class StoreWriter:
    """A store that one run writes to: a context manager that commits, or rolls back on an error.

    The caller holds the store's `lock.run_lock`. Every method raises
    `ArgumentError` or `RowError` for invalid arguments before it changes
    anything, and `StoreError` if the disk cannot be written; the store then
    stays at the last commit.
    """

    def __init__(self, journaled: journal.JournaledFile, file: h5py.File) -> None:
        """Write to `file`, an HDF5 file opened through `journaled`."""
        self.path = journaled.path
        self.dtype: np.dtype[Any] = np.dtype(file["features"].dtype)
        self._journal = journaled
        self._file = file
        self._next_id = int(layout.attribute(file, "next_id"))
        self._ledger = self._entries("failures")
        self._archives: dict[str, int] | None = None
        self._damage_notes = DamageNotes(file)
        with self._writing():
            self._seals = Seals(file)
        self._recorded, self._changed, self._postponed = False, True, False

    def append(self, references: Sequence[Reference], features: NDArray[np.floating[Any]]) -> None:
        """Add one row for each of `references`, with features of shape (n, 2048)."""
        require_rows(references, features, (len(references), layout.WIDTH))
        if not references:
            return
        paths = [stored_path(self.path, reference.location) for reference in references]
        facts = self._facts(references)
        with self._writing():
            columns: dict[str, Any] = {
                "paths": [*map(layout.encode_text, paths)],
                "features": np.asarray(features, self.dtype),
                **facts,
            }
            layout.append(self._file, {**columns, "checksum": row_checksums(columns)})
            self._note_damage(facts["ids"], references)
        self.clear_failures(paths)

    def replace(self, row: int, reference: Reference, features: NDArray[np.floating[Any]]) -> None:
        """Give `row`, whose image has changed, new features of shape (2048,) and a new id."""
        require_rows([reference], features, (layout.WIDTH,))
        row, facts = self._row(row), self._facts([reference])
        with self._writing():
            self._drop_notes([int(self._file["ids"][row])])
            self._file["features"][row] = features
            for name, values in facts.items():
                self._file[name][row] = values[0]
            self._note_damage(facts["ids"], [reference])
            self._seals.row_changed(row)
        self.clear_failures([stored_path(self.path, reference.location)])

    def damage(self, row: int) -> str:
        """Look up what was wrong with the image of a row; "" if nothing."""
        return self._damage_notes.reason(int(self._file["ids"][row]))

    def touch(self, row: int, reference: Reference) -> None:
        """Update the time of a file whose bytes have not changed."""
        require_storable([reference])
        row = self._row(row)
        with self._writing():
            self._file["mtime_ns"][row] = reference.mtime_ns
            self._seals.row_changed(row)

    def rename(self, first: int, locations: Sequence[str], mtimes: NDArray[np.int64]) -> None:
        """Give neighbouring rows from `first` on new locations, and times, int64 of shape (n,)."""
        with self._writing():
            rename_rows(self.path, self._file, self._seals, first, locations, mtimes)

    def rename_entries(self, table: str, renamed: Mapping[str, str | None]) -> None:
        """Give entries of a table, failures or archives, other stored paths; None removes an entry."""
        with self._writing():
            rename_entries(self.path, self._file, self._seals, table, renamed)
            self._ledger, self._archives = self._entries("failures"), None

    def features_of_copy(self, row: int, reference: Reference) -> NDArray[np.floating[Any]] | None:
        """Return the features of `row` if it has the digest of `reference` and is not damaged, else None."""
        row = self._row(row)
        with reporting_damage(self.path):
            known = reference.digest != UNKNOWN and bytes(self._file["digest"][row]) == reference.digest
            return np.asarray(self._file["features"][row]) if known and self._seals.is_sound(row) else None

    def _entries(self, table: str) -> dict[str, int]:
        """Return the entries of the ledger or the archives by path."""
        names = map(layout.decode_text, self._file[f"{table}/path"][:])
        return {current(self.path, name): i for i, name in enumerate(names)}

    def _row(self, row: int) -> int:
        return row_number(row, self._file["ids"].shape[0], self.path)

    def _facts(self, references: Sequence[Reference]) -> dict[str, NDArray[Any]]:
        first, self._next_id = self._next_id, self._next_id + len(references)
        return {
            "ids": np.arange(first, self._next_id),
            "size": np.array([reference.size for reference in references], np.int64),
            "mtime_ns": np.array([reference.mtime_ns for reference in references], np.int64),
            "digest": np.array([list(reference.digest) for reference in references], np.uint8),
        }

    def _note_damage(self, ids: NDArray[np.int64], references: Sequence[Reference]) -> None:
        """Note what is wrong with the images of new rows."""
        if any(reference.damage for reference in references):
            self._seals.table_changed("damaged")
            self._damage_notes.add(ids, references)

    def _drop_notes(self, ids: Sequence[int]) -> None:
        if self._damage_notes.drop(ids):
            self._seals.table_changed("damaged")

    def fail(self, reference: Reference, reason: str, *, attempts: int = 1) -> None:
        """Add an image to the ledger, after `attempts` attempts, or count another attempt if it is there."""
        reference = for_ledger(reference)
        path = stored_path(self.path, reference.location)
        facts = {"reason": text_for_ledger(reason), "size": reference.size, "mtime_ns": reference.mtime_ns}
        with self._writing():
            self._seals.table_changed("failures")
            if path in self._ledger:
                entry = self._ledger[path]
                for name, value in facts.items():
                    self._file[f"failures/{name}"][entry] = layout.encode_text(value)
                self._file["failures/attempts"][entry] += 1
            else:
                self._ledger[path] = self._file["failures/path"].shape[0]
                facts = {"path": path, **facts, "attempts": attempts}
                layout.append(self._file, {f"failures/{name}": [value] for name, value in facts.items()})

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Remove rows, given in ascending order; rows from the end take their places.

        Rows before the first removed one do not move.
        """
        rows = row_numbers(rows, self._file["ids"].shape[0], self.path)
        if rows.ndim != 1 or (np.diff(rows) <= 0).any():
            raise ArgumentError("rows to remove must be a list in ascending order, with each row once")
        with self._writing():
            self._seals.settle()
            self._drop_notes(self._file["ids"][:][rows].tolist())
            count = self._file["ids"].shape[0] - len(rows)
            holes = rows[rows < count]
            movers = np.setdiff1d(np.arange(count, count + len(rows)), rows)
            for name in (*layout.ROWS, *layout.CHECKSUM):
                dataset = self._file[name]
                if len(holes):
                    dataset[holes] = dataset[movers]
                if name == "paths":
                    dataset[count:] = b""  # later texts take their places: in 30 nights, 83 kB of holes, not 144
                dataset.resize(count, axis=0)

    def clear_failures(self, paths: Sequence[str]) -> None:
        """Remove images from the ledger."""
        with self._writing():
            for path in paths:
                while path in self._ledger:  # twice if an older version has stored it as two paths
                    self._seals.table_changed("failures")
                    entry, names = self._ledger.pop(path), self._file["failures/path"]
                    if entry != names.shape[0] - 1:
                        self._ledger[current(self.path, layout.decode_text(names[-1]))] = entry
                    layout.remove(self._file, layout.LEDGER, entry)

    def note_archive(self, archive: ArchiveRecord) -> None:
        """Record what an archive holds, replacing its earlier record."""
        with self._writing():
            self._seals.table_changed("archives")
            if "archives" not in self._file:
                layout.create(self._file, layout.ARCHIVES)
            if self._archives is None:
                self._archives = self._entries("archives")
            facts = {f"archives/{name}": value for name, value in asdict(archive).items()}
            if (entry := self._archives.get(archive.path)) is None:
                self._archives[archive.path] = self._file["archives/path"].shape[0]
                layout.append(self._file, {name: [value] for name, value in facts.items()})
            else:
                for name, value in facts.items():
                    self._file[name][entry] = layout.encode_text(value)

    def record(self, run: Mapping[str, Any]) -> None:
        """Write this run's record; a later call in the same run replaces it."""
        with self._writing():
            self._seals.table_changed("runs")
            if not self._recorded:
                layout.append(self._file, {"runs": [""]})
                self._recorded = True
            self._file["runs"][-1] = json.dumps(run)

    def update_provenance(self, provenance: Provenance) -> None:
        """Update the provenance, whose path of the weights may change."""
        with self._writing():
            self._file.attrs["provenance"] = provenance.to_json()
            self._seals.table_changed("attributes")

    def commit(self, *, last: bool = True) -> None:
        """Make everything written so far durable and visible to readers.

        While another program keeps the store open, a commit is postponed to
        the next one, unless it is the `last`. The last one waits, and raises
        `StoreBusyError` after `LAST_READER_SECONDS`.
        """
        with self._writing():
            self._file.attrs["next_id"] = self._next_id
            if "history" not in self._file:
                layout.create(self._file, layout.HISTORY)
            layout.append(self._file, {"history": np.frombuffer(uuid.uuid4().bytes, np.uint8)[None]})
            self._seals.table_changed("history")
            self._seals.close()
            self._file.flush()
        try:
            self._commit(READER_SECONDS)
        except StoreBusyError:
            if last or not self._postponed:
                self._postponed = True
                wait = f"waiting up to {LAST_READER_SECONDS / 60:.0f} minutes" if last else "commits wait"
                logger.warning(
                    "%s is kept open by another program (a notebook?): %s until it is closed", self.path, wait
                )
            if last:
                self._commit(LAST_READER_SECONDS)

    def _commit(self, patience: float) -> None:
        with disk_errors(self.path), uninterrupted():
            self._journal.commit(lambda: lock.alone(self._journal.handle, self.path, patience=patience))
        self._changed = False

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Change the file; raise the errors that the journal has kept, and report damage."""
        self._changed = True
        with disk_errors(self.path), uninterrupted():
            try:
                with reporting_damage(self.path):
                    yield
            finally:
                if self._journal.error is not None:
                    raise self._journal.error

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._changed:
                self.commit()
        finally:
            with uninterrupted():
                self._journal.abandon()  # nobody needs what HDF5 writes when it closes the file
                self._file.close()
                self._journal.close()
