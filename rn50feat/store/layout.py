"""Define the layout of a store's HDF5 file, and check what is read from it.

In: an open file. Out: attributes and datasets that match the layout; inside
`reporting_damage`, anything else is reported as damage. Row i of every
dataset in `ROWS` belongs to one image, entry i of `LEDGER` to one failure, of
`ARCHIVES` to one archive, of `DAMAGED` to one damaged image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
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

# Chunks of features are small, so that reading or appending a few rows does not touch many others.
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
    "archives/path": (TEXT, (), 256),  # stores of versions that did not read archives lack these
    **{f"archives/{name}": (np.int64, (), 256) for name in ("size", "mtime_ns", "pictures", "others")},
}
_TEXT_BYTES = 16  # of a text in its dataset: length, and where it is in a heap
_MOST_COMPRESSED = 1032  # bytes out of one, with the deflate filter: h5repack may have applied it to a store
DAMAGED: Table = {"damaged/id": (np.int64, (), 256), "damaged/reason": (TEXT, (), 256)}
# A random mark for each commit: two copies of a store with the same last mark have the same rows and ids.
HISTORY: Table = {"history": (np.uint8, (16,), 64)}
CHECKSUM: Table = {"checksum": (np.uint64, (), 2048)}  # of each row; see `checksums`
TABLES = (ROWS, LEDGER, RUNS, ARCHIVES, DAMAGED, HISTORY, CHECKSUM)
# By group: older stores lack these.
OPTIONAL = {"archives": ARCHIVES, "damaged": DAMAGED, "history": HISTORY, "checksum": CHECKSUM}
SMALL_TABLES = {"failures": LEDGER, "runs": RUNS, "archives": ARCHIVES, "damaged": DAMAGED, "history": HISTORY}
_TABLE_OF = {name: table for table in TABLES for name in table}
ATTRIBUTES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("format", "store_id", "provenance"), (str, bytes)),
    **dict.fromkeys(("schema", "next_id"), (int, np.integer)),
}


@dataclass(frozen=True)
class Column:
    """The shape and dtype of a dataset."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def create(file: h5py.File, table: Table, dtype: np.dtype[Any] | None = None) -> None:
    """Create the datasets of a table, without entries; features are of `dtype`."""
    for name, (kind, shape, chunk) in table.items():
        file.create_dataset(
            name, (0, *shape), dtype if kind is None else kind, maxshape=(None, *shape), chunks=(chunk, *shape)
        )


def append(file: h5py.File, columns: Mapping[str, Any]) -> None:
    """Append values to the datasets of a table, by name."""
    for name, values in columns.items():
        dataset = file[name]
        count = dataset.shape[0]
        dataset.resize(count + len(values), axis=0)
        if h5py.check_string_dtype(dataset.dtype):
            values = np.array([encode_text(value) for value in values], dtype=object)
        dataset[count:] = values


def remove(file: h5py.File, table: Table, entry: int) -> None:
    """Remove one entry of a table; the last one takes its place."""
    for name in table:
        dataset = file[name]
        last = dataset.shape[0] - 1
        if entry != last:
            dataset[entry] = dataset[last]
        dataset.resize(last, axis=0)


def decode_text(value: bytes) -> str:
    """Decode a stored string; bytes that are not UTF-8 become surrogate escapes."""
    return value.decode("utf-8", "surrogateescape")


def encode_text(value: Any) -> Any:
    """Encode a text for storage; return anything else unchanged."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def committed_length(path: Path) -> int:
    """Read the length of the HDF5 file at `path` from its superblock, in bytes."""
    with open(path, "rb") as file:
        head = file.read(36)
        length = int.from_bytes(head[28:36], "little")  # superblock version 2, as `writer` makes it
        if head[8:9] != b"\x02" or length > os.fstat(file.fileno()).st_size:
            raise StoreError(
                f"{path} was rewritten by another program, so rn50feat can only read it: extract into another store"
            )
        return length


def attribute(file: h5py.File, name: str) -> Any:
    """Read an attribute, a str or an int; raise `Malformed` for anything else."""
    value = file.attrs[name]
    if not isinstance(value, ATTRIBUTES[name]):
        raise Malformed(f"the attribute {name} is {value!r}"[:200])
    return decode_text(value) if isinstance(value, bytes) else value


def column(file: h5py.File, name: str) -> Column | None:
    """Read the shape and dtype of a dataset; None if there is no dataset of that name."""
    item = file
    for step in name.split("/"):
        if not isinstance(item, h5py.Group) or step not in item:
            return None
        if (wrong := link_fault(item, step)) is not None:  # which would open another file
            raise Malformed(f"{name} is {wrong}")
        item = item[step]
    if not isinstance(item, h5py.Dataset):
        return None
    if (wrong := storage_fault(item)) is not None:
        raise Malformed(f"{name} is {wrong}")
    try:
        return Column(item.shape, item.dtype)
    except TypeError as error:  # numpy does not have all of HDF5's number types
        raise Malformed(f"{name} has a number type that numpy does not support") from error


def columns(file: h5py.File) -> dict[str, Column]:
    """Read the shape and dtype of each dataset of the layout that there is."""
    found = {name: column(file, name) for name in _TABLE_OF}
    return {name: one for name, one in found.items() if one is not None}


def fault(name: str, actual: Column) -> str | None:
    """Describe how the shape or dtype of a dataset differs from the layout; None if it does not."""
    kind, entry, _ = _TABLE_OF[name][name]
    if actual.shape[1:] != entry or not actual.shape:
        return f"{name} has shape {actual.shape}, not ({', '.join(['N', *map(str, entry)])})"
    text = h5py.check_string_dtype(actual.dtype) is not None
    if actual.dtype not in ((np.float16, np.float32) if kind is None else (np.dtype(kind),)) or text != (kind is TEXT):
        return f"{name} has dtype {actual.dtype}"
    return None


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset after checking its shape and dtype, and that it is as long as the others of its table.

    Raises `Malformed` if it is not. Arguments can then be checked against it,
    and any error that h5py raises on it means damage.
    """
    actual = column(file, name)
    if actual is None:
        raise Malformed(f"{name} is missing")
    if (wrong := fault(name, actual)) is not None:
        raise Malformed(wrong)
    room = file.id.get_filesize() * (_MOST_COMPRESSED if file[name].compression else 1)
    if math.prod(actual.shape) * actual.dtype.itemsize > room:  # HDF5 would fill all memory with zeros
        raise Malformed(f"{name} has {actual.shape[0]} entries, more than fit in the file")
    first = "ids" if name in ROWS else next(iter(_TABLE_OF[name]))
    if name != first and ((other := column(file, first)) is None or other.shape[:1] != actual.shape[:1]):
        raise Malformed(
            f"{name} has {actual.shape[0]} entries, but {first} has {'none' if other is None else other.shape[0]}"
        )
    return file[name]


def entries(file: h5py.File, table: Table) -> Iterator[list[Any]]:
    """Yield each entry of a table of texts and ints as a list, in the order of the table's names."""
    for entry in zip(*(dataset(file, name)[:] for name in table)):
        yield [decode_text(value) if isinstance(value, bytes) else int(value) for value in entry]


def history(file: h5py.File, first: int = 0) -> list[str]:
    """Read the mark of each commit from `first` on (from the end if it is negative), in hexadecimal, oldest first."""
    return [bytes(mark).hex() for mark in dataset(file, "history")[first:]] if "history" in file else []


def additions(file: h5py.File) -> list[str]:
    """Return the names of what other programs have added: datasets and groups, and attributes as @name."""
    known = {name.partition("/")[0] for table in TABLES for name in table}
    attributes = set(file.attrs) - {*ATTRIBUTES, "checksums"}
    return sorted(set(file) - known) + sorted(f"@{name}" for name in attributes)


def check(file: h5py.File) -> None:
    """Raise `Malformed` unless all datasets and attributes match the layout."""
    for name in ATTRIBUTES:
        attribute(file, name)
    for table in TABLES:
        if not any(table is other and group not in file for group, other in OPTIONAL.items()):
            for name in table:
                dataset(file, name)


def check_chunks(file: h5py.File) -> None:
    """Raise `Malformed` for a chunk of the wrong size: HDF5 does not check, and would free space that is not its own.

    Takes 50 ms for a million rows.
    """
    for name in filter(file.__contains__, _TABLE_OF):
        if (found := file[name]).id.get_create_plist().get_nfilters() == 0:
            for_each_chunk(found, lambda number, offset: None)


def for_each_chunk(found: h5py.Dataset, note: Callable[[int, int], None]) -> None:
    """Call `note` with the number and the position in the file, in bytes, of each chunk that was written.

    The chunks must be of whole rows and not compressed. Raises `Malformed` for
    a chunk of another size. Before HDF5 1.14, h5py cannot tell, and there are no calls.
    """
    if found.chunks is None or not hasattr(found.id, "chunk_iter"):
        return
    length, count = found.chunks[0], -(-found.shape[0] // found.chunks[0])
    text = h5py.check_string_dtype(found.dtype) is not None
    size = math.prod(found.chunks) * (_TEXT_BYTES if text else found.dtype.itemsize)

    def check_one(chunk: Any) -> None:
        number = chunk.chunk_offset[0] // length
        if number >= count or chunk.size != size:
            raise Malformed(f"{found.name} has a chunk of the wrong size")
        note(number, chunk.byte_offset)

    found.id.chunk_iter(check_one)
