"""Read tables in LevelDB's format, which checkpoints use.

In: an open file. Out: its records, in the order of their keys. A table is a
series of blocks, an index block that says where they are, and a footer of 48
bytes that says where the index is (LevelDB's ``doc/table_format.md``).
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
# Limits above those of any ResNet50 checkpoint: a file beyond them is meant to keep its reader busy.
_MOST_RECORDS = 100_000
_LONGEST_KEY = 4096


@dataclass(frozen=True)
class Record:
    """A key, its value, and where in the file the value begins."""

    key: bytes
    value: memoryview
    offset: int


def is_table(file: BinaryIO) -> bool:
    """Check whether a file ends like a table."""
    size = file.seek(0, 2)
    return size >= _FOOTER and _read(file, size - len(MAGIC), len(MAGIC)) == MAGIC


def records(file: BinaryIO) -> Iterator[Record]:
    """Yield all records after verifying their checksums; raise `ValueError` for a damaged table."""
    if not is_table(file):
        raise ValueError("it does not end like a table")
    footer_at = file.seek(0, 2) - _FOOTER
    footer = memoryview(_read(file, footer_at, _FOOTER))
    _, at = _handle(footer, 0)  # of the filter index, which is empty in checkpoints
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
    """Read a block's offset and size at `at`, and where they end."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _block(file: BinaryIO, offset: int, size: int, limit: int) -> memoryview:
    """Read the content of a block, which must end before `limit`."""
    if offset + size + _TRAILER > limit:
        raise ValueError("it is truncated, or a block reaches beyond its end")
    data = memoryview(_read(file, offset, size + _TRAILER))
    if len(data) != size + _TRAILER or int.from_bytes(data[size + 1 :], "little") != crc32c.masked(data[: size + 1]):
        raise ValueError(f"the block at byte {offset} has a wrong checksum")
    if data[size] != 0:
        raise ValueError("its blocks are compressed, unlike TensorFlow's own")
    return data[:size]


def _entries(block: memoryview, offset: int) -> Iterator[Record]:
    """Yield the records of a block; each key shares a given number of leading bytes with the previous one."""
    if len(block) < 4:
        raise ValueError("a block is too short")
    (restarts,) = struct.unpack("<I", block[-4:])  # for binary searches, not needed to read all records
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
