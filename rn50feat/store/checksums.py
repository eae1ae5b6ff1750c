"""Checksums of rows and tables: a bit that flips on a disk is noticed before it shows in a result.

A row's checksum is the XXH3-64 hash of its id, path, size, modification time
and digest, combined by XOR with that of its features. Dataset ``checksum``
holds one for each row; the attribute ``checksums`` says for which commit they
hold, since an older version that writes to a store does not keep them up to
date, and holds the hash of each smaller table and of the attributes that say
what the rows are. Rows of a store without them get theirs from the next run
that writes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from rn50feat.store import layout
from rn50feat.store.damage import Malformed

BLOCK = 1024  # rows that are in memory at once: 8 MB of float32
_META = struct.Struct("<qqq16s")  # id, size, modification time, digest
_ATTRIBUTES = ("store_id", "provenance")  # texts, which HDF5 itself has no checksum of


def row_checksums(columns: Mapping[str, Any]) -> NDArray[np.uint64]:
    """Return the checksums of rows, uint64 of shape (n,), from the values of their columns by name.

    Paths are bytes; features have the dtype and byte order of the file.
    """
    facts = zip(*(columns[name] for name in ("features", "paths", "ids", "size", "mtime_ns", "digest")))
    found = [
        xxhash.xxh3_64_intdigest(np.ascontiguousarray(features).data)
        ^ xxhash.xxh3_64_intdigest(_META.pack(number, size, mtime_ns, bytes(digest)) + path)
        for features, path, number, size, mtime_ns, digest in facts
    ]
    return np.array(found, np.uint64)


def state(file: h5py.File) -> str:
    """Describe what a writer of any version changes: the next id, and the numbers of rows, runs and commits.

    HDF5 has checksums of these: they differ only because of a writer.
    """
    tables = ("ids", "runs", *(("history",) if "history" in file else ()))
    counts = (layout.dataset(file, name).shape[0] for name in tables)
    return ":".join(map(str, (layout.attribute(file, "next_id"), *counts)))


@dataclass(frozen=True)
class _Known:
    """The first entries of a table of one column: their number and their hash."""

    entries: int = 0
    hash: str = "0"


def table_hashes(file: h5py.File, tables: Iterable[str], known: Mapping[str, _Known] = {}) -> dict[str, str]:
    """Return the hash of each of `tables` that a file has, by name; entries that are `known` are not read.

    One of them may be "attributes".
    """
    there = [name for name in tables if name not in layout.OPTIONAL or name in file]
    return {name: _table_hash(file, name, known.get(name, _Known())) for name in there}


def _table_hash(file: h5py.File, name: str, known: _Known) -> str:
    """Return the hash of a table: each value is hashed with the hash so far as its seed, so that tables can grow."""
    state = int(known.hash, 16)
    for value in _table_values(file, name, known.entries):
        state = xxhash.xxh3_64_intdigest(value, state)
    return f"{state:016x}"


def _table_values(file: h5py.File, name: str, first: int) -> Iterator[bytes]:
    if name == "attributes":
        yield from (layout.encode_text(layout.attribute(file, one)) for one in _ATTRIBUTES)
    for column in layout.SMALL_TABLES.get(name, ()):
        values = layout.dataset(file, column)[first:]
        if values.ndim == 2:  # marks: one value each
            values = np.ascontiguousarray(values).view(f"V{values.shape[1]}").reshape(-1)
        yield from values.tolist() if values.dtype.kind in "OV" else [values.tobytes()]


def require_attributes(file: h5py.File) -> None:
    """Raise `Malformed` if the attributes that say what the rows are differ from their hash."""
    found = table_hashes(file, ["attributes"])["attributes"]
    wrong = False
    with suppress(Malformed, OSError, RuntimeError, LookupError):  # reported to those who need the checksums
        if found not in str(file.attrs.get("checksums", "")):  # else no dataset needs to be opened: that takes ms
            wrong = bool(Record(file).wrong_tables(["attributes"]))
    if wrong:
        raise Malformed("its id or provenance differs from its checksum")


def spans(rows: Iterable[int]) -> Iterator[slice]:
    """Yield rows as spans of neighbours, of at most `BLOCK` rows each, in ascending order."""
    for _, neighbours in groupby(enumerate(sorted(set(rows))), lambda pair: (pair[1] - pair[0], pair[1] // BLOCK)):
        numbers = [row for _, row in neighbours]
        yield slice(numbers[0], numbers[-1] + 1)


def _columns(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Look up the datasets that a row's checksum covers, once for all rows: that takes 1 ms each."""
    return {name: layout.dataset(file, name) for name in layout.ROWS}


class Record:
    """The checksums of an open file."""

    def __init__(self, file: h5py.File) -> None:
        """Read which commit the checksums of `file` are for; those of another commit are none."""
        self._file = file
        self.hashes: dict[str, str] = {}
        self.current = False
        if "checksum" in file and "checksums" in file.attrs:
            try:
                known = json.loads(file.attrs["checksums"])
                self.current, self.hashes = known["state"] == state(file), dict(known["tables"])
            except (ValueError, LookupError, TypeError) as error:
                raise Malformed("the attribute checksums is not in a known form") from error

    @cached_property
    def _columns(self) -> dict[str, h5py.Dataset]:
        return _columns(self._file)

    @cached_property
    def _known(self) -> h5py.Dataset:
        return layout.dataset(self._file, "checksum")

    def wrong_rows(self, rows: slice) -> NDArray[np.int64]:
        """Return which of some rows differ from their checksums, int64 in ascending order."""
        if not self.current:
            return np.empty(0, np.int64)
        found = row_checksums({name: column[rows] for name, column in self._columns.items()})
        wrong = np.flatnonzero(found != self._known[rows])
        return np.asarray(wrong + rows.start, np.int64)

    def wrong_tables(self, tables: Iterable[str] = layout.SMALL_TABLES) -> list[str]:
        """Return the names of those of some small tables that differ from their hashes."""
        known = [name for name in tables if self.current and name in self.hashes]
        found = table_hashes(self._file, known)
        return [name for name in known if found.get(name) != self.hashes[name]]


def accept_tables(file: h5py.File, names: Iterable[str], hashes: Mapping[str, str]) -> None:
    """Seal a copy of a store that has `hashes`, and take its tables `names` as they are in the copy."""
    _write(file, {**hashes, **table_hashes(file, names)})


def _write(file: h5py.File, hashes: Mapping[str, str]) -> None:
    file.attrs["checksums"] = json.dumps({"state": state(file), "tables": dict(hashes)})


class Seals:
    """Keeps the checksums of a file that is being written up to date."""

    def __init__(self, file: h5py.File) -> None:
        """Begin with the checksums of `file`; rows without them get theirs now: some 4 s for a million."""
        self._file = file
        record = Record(file)
        self._hashes, self._open, self._changed = dict(record.hashes), set[int](), set[str]()
        self._known: dict[str, _Known] = {}
        if record.current:
            # With 10 years of runs, reading all of these tables for each commit takes 0.5 s.
            grown = [name for name in ("history", "runs") if name in self._hashes]
            self._known = {name: _Known(len(layout.dataset(file, name)), self._hashes[name]) for name in grown}
        else:
            self._begin()

    def _begin(self) -> None:
        count = layout.dataset(self._file, "ids").shape[0]
        if "checksum" in self._file:
            self._file["checksum"].resize(count, axis=0)
        else:
            layout.create(self._file, layout.CHECKSUM)
            self._file["checksum"].resize(count, axis=0)
        self._hashes, self._changed = {}, {"attributes", *layout.SMALL_TABLES}
        for first in range(0, count, BLOCK):
            self._seal(slice(first, min(count, first + BLOCK)))

    def _seal(self, rows: slice) -> None:
        self._file["checksum"][rows] = row_checksums({name: column[rows] for name, column in self._columns.items()})

    @cached_property
    def _columns(self) -> dict[str, h5py.Dataset]:
        return _columns(self._file)

    def row_changed(self, row: int) -> None:
        """Note that a row has changed, or was added without a checksum."""
        self._open.add(row)

    def table_changed(self, name: str) -> None:
        """Note that a small table has changed; of the history and the runs, only entries of this session may have."""
        self._changed.add(name)

    def is_sound(self, row: int) -> bool:
        """Check whether a row is as it was written."""
        columns = {name: column[row : row + 1] for name, column in self._columns.items()}
        return row in self._open or bool((row_checksums(columns) == self._file["checksum"][row]).all())

    def settle(self) -> None:
        """Compute the checksums of changed rows."""
        for part in spans(self._open):
            self._seal(part)
        self._open.clear()

    def close(self) -> None:
        """Make all checksums those of the commit that follows."""
        self.settle()
        self._hashes.update(table_hashes(self._file, self._changed, self._known))
        self._changed.clear()
        _write(self._file, self._hashes)
