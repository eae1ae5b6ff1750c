"""Read the variables of a TensorFlow checkpoint without TensorFlow.

In: a file of either form. Out: its variables by name, as tensors that are read
one by one. Both forms are tables in LevelDB's format:

- V1, one file: the record with the empty key lists the variables
  (``saved_tensor_slice.proto``), the others hold their values;
- V2, a bundle: ``PREFIX.index`` says where the values are in
  ``PREFIX.data-00000-of-00001`` and so on (``tensor_bundle.proto``).

All checksums are verified: those of the tables' blocks, which hold the values
of V1, and those of the values of V2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files import crc32c, table
from rn50feat.model.weight_files.names import Shape
from rn50feat.model.weight_files.protobuf import Message
from rn50feat.model.weight_files.table import Record
from rn50feat.model.weight_files.translation import Array, Stored, shown_name

_FLOAT = 1  # DT_FLOAT of types.proto
_MOST_SHARDS = 100_000  # as many as five digits can number


@dataclass(frozen=True)
class _Place:
    """Where a variable's values are in a file, and their masked checksum unless it has been verified."""

    path: Path
    offset: int
    size: int
    crc: int | None = None


def recognise(path: Path) -> bool:
    """Check whether a file is a V1 checkpoint or the index of a V2 one."""
    with open(path, "rb") as file:
        return table.is_table(file)


def files(path: Path) -> tuple[Path, ...]:
    """List the files of a checkpoint: a single V1 file, or an index and its data files in order.

    Raises `WeightsError` if the table is damaged or a data file is missing.
    """
    with _damage_named(path), open(path, "rb") as file:
        header = _header(table.records(file))
        return (path, *_shards(path, header)) if _is_bundle(header) else (path,)


def read(path: Path) -> dict[str, Stored]:
    """Read the variables of a checkpoint by name; raise `WeightsError` if it is damaged."""
    with _damage_named(path), open(path, "rb") as file:
        records = table.records(file)
        header = _header(records)
        return dict(_bundle(path, header, records) if _is_bundle(header) else _single(path, header, records))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): fix that, or use another file") from error
    except ValueError as error:
        raise WeightsError(f"{path} is a damaged checkpoint ({error}): copy it again") from error


def _header(records: Iterator[Record]) -> Message:
    first = next(records, None)
    if first is None or first.key:
        raise ValueError("it does not begin with a header")
    return Message(first.value)


def _is_bundle(header: Message) -> bool:
    """Check for a V2 header, whose first field is the number of data files; a V1 header's is a message."""
    return header.number(1) > 0


def _shards(path: Path, header: Message) -> list[Path]:
    """List the data files of a bundle, all of which exist."""
    count = header.number(1)
    if path.suffix != ".index" or count > _MOST_SHARDS:
        raise ValueError(f"it is the index of {count} data files, but its name is not PREFIX.index")
    shards = []
    for number in range(count):
        shards.append(path.with_suffix(f".data-{number:05}-of-{count:05}"))
        if not shards[-1].is_file():
            raise WeightsError(
                f"{path} needs {shards[-1].name}, which is not next to it: copy all files of the checkpoint"
            )
    return shards


def _bundle(path: Path, header: Message, records: Iterator[Record]) -> Iterator[tuple[str, Stored]]:
    """Yield the variables of V2.

    BundleEntryProto has dtype 1, shape 2, shard 3, offset 4, size 5, crc32c 6, slices 7.
    """
    if header.number(2):
        raise ValueError("its values are big-endian")
    shards = _shards(path, header)
    for record in records:
        if record.key.startswith(b"\0"):  # a piece of a partitioned variable
            continue
        entry = Message(record.value)
        if not 0 <= entry.number(3) < len(shards):
            raise ValueError(f"it refers to data file {entry.number(3)} of {len(shards)}")
        place = _Place(shards[entry.number(3)], entry.number(4), entry.number(5), entry.number(6))
        name = str(record.key, "utf-8")
        yield name, _stored(name, entry.number(1), _shape(entry.message(2)), place, whole=not entry.has(7))


def _single(path: Path, header: Message, records: Iterator[Record]) -> Iterator[tuple[str, Stored]]:
    """Yield the variables of V1.

    SavedTensorSlices has meta 1, with SavedSliceMeta 1 (name 1, shape 2, type
    3, slices 4), and data 2 (name 1, slice 2, TensorProto 3, with float_val 5).
    """
    places = {}
    for record in records:
        saved = Message(record.value, record.offset).message(2)
        places[saved.text(1)] = _Place(path, *saved.message(3).place(5))
    for listed in header.message(1).messages(1):
        name, shape, slices = listed.text(1), _shape(listed.message(2)), listed.messages(4)
        whole = len(slices) == 1 and _covers(slices[0], shape)
        yield name, _stored(name, listed.number(3), shape, places.get(name, _Place(path, 0, 0)), whole=whole)


def _covers(piece: Message, shape: Shape) -> bool:
    """Check whether a TensorSliceProto is a whole variable: its extents have no lengths (2), or the full ones."""
    return all(not extent.has(2) or extent.number(2) == size for extent, size in zip(piece.messages(1), shape))


def _shape(message: Message) -> Shape:
    """Return the sizes (1) of the dimensions (2) of a TensorShapeProto."""
    return tuple(dimension.number(1) for dimension in message.messages(2))


def _stored(name: str, kind: int, shape: Shape, place: _Place, *, whole: bool) -> Stored:
    def read() -> Array:
        if kind != _FLOAT or not whole:
            reason = "is partitioned" if not whole else f"is not float32 but TensorFlow's type {kind}"
            raise WeightsError(f"{place.path}: {shown_name(name)} {reason}: save it whole, as float32")
        with _damage_named(place.path):
            return _values(name, shape, place)

    return Stored(name, shape, read)


def _values(name: str, shape: Shape, place: _Place) -> Array:
    if place.size != 4 * math.prod(shape):
        raise ValueError(f"{shown_name(name)} has {place.size} bytes for the shape {shape}")
    values = np.empty(shape, "<f4")
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        if file.readinto(values.data.cast("B")) != place.size:
            raise ValueError(f"it ends in the middle of {shown_name(name)}")
    if place.crc is not None and crc32c.masked(values.data.cast("B")) != place.crc:
        raise ValueError(f"{shown_name(name)} has a wrong checksum")
    return values
