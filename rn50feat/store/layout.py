"""The layout of a store's HDF5 file, and the door to what is in it.

In: an open file. Out: its attributes and datasets, each of which is what the
layout says; inside `damage_told`, anything else is reported as damage. Row i
of every dataset in `ROWS` belongs to one image, entry i of `LEDGER` to one
failure, of `ARCHIVES` to one archive, of `DAMAGED` to one damaged image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rn50feat.durable.hdf5_storage import link_fault, storage_fault
from rn50feat.errors import StoreError
from rn50feat.store.damage import Malformed

FORMAT = "rn50feat"
SCHEMA = 1
WIDTH = 2048
TEXT = h5py.string_dtype()
# name -> dtype, shape of one entry, entries per chunk
Table = Mapping[str, tuple[Any, tuple[int, ...], int]]

# Chunks of features are small, so that a few rows can be read or appended without touching many others.
ROWS: Table = {
    "features": (None, (WIDTH,), 32),
    "paths": (TEXT, (), 1024),
    "ids": (np.int64, (), 2048),
    "size": (np.int64, (), 2048),
    "mtime_ns": (np.int64, (), 2048),
    "digest": (np.uint8, (16,), 1024),
}
LEDGER: Table = {
    "failures/path": (TEXT, (), 256),
    "failures/reason": (TEXT, (), 256),
    **{f"failures/{name}": (np.int64, (), 256) for name in ("size", "mtime_ns", "attempts")},
}
RUNS: Table = {"runs": (TEXT, (), 64)}
ARCHIVES: Table = {
    "archives/path": (TEXT, (), 256),  # stores from before archives were read lack these: they are listed anew
    **{f"archives/{name}": (np.int64, (), 256) for name in ("size", "mtime_ns", "pictures", "others")},
}
_MOST_COMPRESSED = 1032  # bytes out of one, by the deflate filter: h5repack may have put it on a store
DAMAGED: Table = {"damaged/id": (np.int64, (), 256), "damaged/reason": (TEXT, (), 256)}
# A random mark for each commit: what has seen the last of one store means the same rows by its ids.
HISTORY: Table = {"history": (np.uint8, (16,), 64)}
TABLES = (ROWS, LEDGER, RUNS, ARCHIVES, DAMAGED, HISTORY)
YOUNGER = {"archives": ARCHIVES, "damaged": DAMAGED, "history": HISTORY}  # by group: older stores lack these
_TABLE_OF = {name: table for table in TABLES for name in table}
_ATTRIBUTES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("format", "store_id", "provenance"), (str, bytes)),
    **dict.fromkeys(("schema", "next_id"), (int, np.integer)),
}


@dataclass(frozen=True)
class Column:
    """The shape and dtype of a dataset."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def decode_text(value: bytes) -> str:
    """Return a stored string; bytes that are not UTF-8 become surrogate escapes."""
    return value.decode("utf-8", "surrogateescape")


def encoded(value: Any) -> Any:
    """Return a text as it is stored, and anything else as it is."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def committed_length(path: Path) -> int:
    """Return where the HDF5 file at `path` ends, by its own superblock, in bytes."""
    with open(path, "rb") as file:
        head = file.read(36)
        length = int.from_bytes(head[28:36], "little")  # superblock version 2, as `writer` makes it
        if head[8:9] != b"\x02" or length > os.fstat(file.fileno()).st_size:
            raise StoreError(
                f"{path} was rewritten by another program: rn50feat reads it, but writes only its own files"
            )
        return length


def attribute(file: h5py.File, name: str) -> Any:
    """Return an attribute: a str, or an int; raise `Malformed` for anything else."""
    value = file.attrs[name]
    if not isinstance(value, _ATTRIBUTES[name]):
        raise Malformed(f"the attribute {name} is {value!r}"[:200])
    return decode_text(value) if isinstance(value, bytes) else value


def column(file: h5py.File, name: str) -> Column | None:
    """Return the shape and dtype of a dataset, None where there is none of that name."""
    found = file
    for step in name.split("/"):
        if not isinstance(found, h5py.Group) or step not in found:
            return None
        if (wrong := link_fault(found, step)) is not None:  # which would open another file
            raise Malformed(f"{name} is {wrong}")
        found = found[step]
    if not isinstance(found, h5py.Dataset):
        return None
    if (wrong := storage_fault(found)) is not None:
        raise Malformed(f"{name} is {wrong}")
    try:
        return Column(found.shape, found.dtype)
    except TypeError as error:  # HDF5 has kinds of numbers that numpy has not
        raise Malformed(f"{name} holds no numbers that numpy has") from error


def fault(name: str, found: Column) -> str | None:
    """Return what is wrong with the shape or dtype of a dataset, None for one as the layout says."""
    kind, entry, _ = _TABLE_OF[name][name]
    if found.shape[1:] != entry or not found.shape:
        return f"{name} has shape {found.shape}, not ({', '.join(['N', *map(str, entry)])})"
    text = h5py.check_string_dtype(found.dtype) is not None
    if found.dtype not in ((np.float16, np.float32) if kind is None else (np.dtype(kind),)) or text != (kind is TEXT):
        return f"{name} holds {found.dtype}"
    return None


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of the shape and dtype that it should have, and as long as the others of its table.

    Raises `Malformed` for any other: arguments can then be checked against
    it, and what h5py raises on it is damage.
    """
    found = column(file, name)
    if found is None:
        raise Malformed(f"{name} is missing")
    if (wrong := fault(name, found)) is not None:
        raise Malformed(wrong)
    room = file.id.get_filesize() * (_MOST_COMPRESSED if file[name].compression else 1)
    if math.prod(found.shape) * found.dtype.itemsize > room:  # reading zeros for what is not there takes all memory
        raise Malformed(f"{name} has {found.shape[0]} entries, more than the file has room for")
    first = "ids" if name in ROWS else next(iter(_TABLE_OF[name]))
    if name != first and ((other := column(file, first)) is None or other.shape[:1] != found.shape[:1]):
        raise Malformed(f"{name} has {found.shape[0]} entries, {first} {'none' if other is None else other.shape[0]}")
    return file[name]


def entries(file: h5py.File, table: Table) -> Iterator[list[Any]]:
    """Yield the entries of a table of texts and ints: the values in a list, in the order of its names."""
    for entry in zip(*(dataset(file, name)[:] for name in table)):
        yield [decode_text(value) if isinstance(value, bytes) else int(value) for value in entry]


def history(file: h5py.File) -> list[str]:
    """Return the mark of each commit, in hexadecimal digits, oldest first."""
    return [bytes(mark).hex() for mark in dataset(file, "history")[:]] if "history" in file else []


def check(file: h5py.File) -> None:
    """Raise `Malformed` unless all datasets and attributes are what they should be."""
    for name in _ATTRIBUTES:
        attribute(file, name)
    for table in TABLES:
        if not any(table is other and group not in file for group, other in YOUNGER.items()):
            for name in table:
                dataset(file, name)
