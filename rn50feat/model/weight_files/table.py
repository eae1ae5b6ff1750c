"""Read tables in LevelDB's format, which checkpoints are kept in.

In: an open file. Out: its records, in the order of their keys. A table is a
row of blocks, then an index block that tells where they are, then a footer of
48 bytes that tells where the index is (LevelDB's ``doc/table_format.md``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rn50feat.model.weight_files import crc32c
from rn50feat.model.weight_files.protobuf import varint

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5  # after each block: its compression, and its checksum
# More, or longer ones, than any checkpoint of a ResNet50 has: beyond them, a file is made to keep its reader busy.
_MOST_RECORDS = 100_000
_LONGEST_KEY = 4096


@dataclass(frozen=True)
class Record:
    """A key, its value, and where in the file the value begins."""

    key: bytes
    value: memoryview
    offset: int


def is_table(file: BinaryIO) -> bool:
    """Check whether a file ends as a table does."""
    size = file.seek(0, 2)
    return size >= _FOOTER and _read(file, size - len(MAGIC), len(MAGIC)) == MAGIC


def records(file: BinaryIO) -> Iterator[Record]:
    """Yield all records; every checksum is checked. Raises `ValueError` for a table that is damaged."""
    if not is_table(file):
        raise ValueError("it does not end as a table does")
    footer_at = file.seek(0, 2) - _FOOTER
    footer = memoryview(_read(file, footer_at, _FOOTER))
    _, at = _handle(footer, 0)  # of an index of filters, which checkpoints leave empty
    (index_at, index_size), _ = _handle(footer, at)
    previous, count, end = None, 0, 0
    for entry in _entries(_block(file, index_at, index_size, footer_at), index_at):
        (start, size), _ = _handle(entry.value, 0)
        if start < end:
            raise ValueError("its blocks overlap")
        end = start + size
        for record in _entries(_block(file, start, size, index_at), start):
            count += 1
            if count > _MOST_RECORDS or (previous is not None and record.key <= previous):
                raise ValueError("its keys are too many or out of order")
            previous = record.key
            yield record


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """Return offset and size of a block as they stand at `at`, and where they end."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _block(file: BinaryIO, offset: int, size: int, limit: int) -> memoryview:
    """Return the content of a block that lies before `limit`."""
    if offset + size + _TRAILER > limit:
        raise ValueError("it is cut off, or a block reaches beyond its end")
    data = memoryview(_read(file, offset, size + _TRAILER))
    if len(data) != size + _TRAILER or int.from_bytes(data[size + 1 :], "little") != crc32c.masked(data[: size + 1]):
        raise ValueError(f"the block at byte {offset} has another checksum")
    if data[size] != 0:
        raise ValueError("its blocks are compressed, which TensorFlow itself does not do")
    return data[:size]


def _entries(block: memoryview, offset: int) -> Iterator[Record]:
    """Yield the records of a block; each key begins with as many bytes of the one before as it says."""
    if len(block) < 4:
        raise ValueError("a block is too short")
    (restarts,) = struct.unpack("<I", block[-4:])  # for binary searches, which a whole reading does not need
    end = len(block) - 4 - 4 * restarts
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        size, at = varint(block, at)
        start = at + fresh
        if shared > len(key) or shared + fresh > _LONGEST_KEY or start + size > end:
            raise ValueError("a record reaches beyond its block")
        key = key[:shared] + bytes(block[at:start])
        at = start + size
        yield Record(key, block[start:at], offset + start)
