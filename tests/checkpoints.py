"""Write TensorFlow checkpoints of both forms, from the descriptions of their formats.

Tables: LevelDB's ``doc/table_format.md``, with TensorFlow's block size. Records:
``saved_tensor_slice.proto`` (V1) and ``tensor_bundle.proto`` (V2). Checksums
come from the google-crc32c package. Shares nothing with `rn50feat.model.weight_files`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

MAGIC = 0xDB4775248B80FB57
BLOCK_SIZE, RESTART_INTERVAL = 262144, 16
TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}

Spoil = Callable[[bytes], bytes]


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""


def content(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def shape_proto(shape: tuple[int, ...]) -> bytes:
    return b"".join(content(2, number(1, size)) for size in shape)


class Table:
    """A table in LevelDB's format; `spoil` may change a block before its checksum is made."""

    def __init__(self, *, compression: int = 0, block_size: int = BLOCK_SIZE, spoil: Spoil | None = None) -> None:
        self.compression, self.block_size, self.spoil = compression, block_size, spoil
        self.out, self.index = bytearray(), []
        self._clear()

    def _clear(self) -> None:
        self.block, self.restarts, self.count, self.last = bytearray(), [0], 0, b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count and self.count % RESTART_INTERVAL == 0:
            self.restarts.append(len(self.block))
        elif self.count:
            while shared < min(len(key), len(self.last)) and key[shared] == self.last[shared]:
                shared += 1
        self.block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.count, self.last = self.count + 1, key
        if len(self.block) >= self.block_size:
            self.flush()

    def flush(self) -> None:
        if self.count:
            last = self.last
            self.index.append((last, self._write(bytes(self.block), self.restarts, self.spoil)))
            self._clear()

    def _write(self, block: bytes, restarts: list[int], spoil: Spoil | None = None) -> bytes:
        block += b"".join(struct.pack("<I", at) for at in restarts) + struct.pack("<I", len(restarts))
        if spoil:
            block = spoil(block)
        handle = varint(len(self.out)) + varint(len(block))
        block += bytes([self.compression])
        self.out += block + struct.pack("<I", masked(block))
        return handle

    def finish(self) -> bytes:
        self.flush()
        metaindex = self._write(b"", [0])
        entries, restarts = bytearray(), []
        for key, handle in self.index:
            restarts.append(len(entries))
            entries += varint(0) + varint(len(key)) + varint(len(handle)) + key + handle
        footer = metaindex + self._write(bytes(entries), restarts or [0], self.spoil)
        return bytes(self.out) + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def slice_key(name: str, dimensions: int) -> bytes:
    """Return the key of a whole variable in V1: an ordered code of 0, name, rank, and (0, -1) for each dimension."""
    escaped = name.encode().replace(b"\0", b"\0\xff").replace(b"\xff", b"\xff\0") + b"\0\1"
    rank = bytes([1, dimensions]) if dimensions else b"\0"
    return b"\0" + escaped + rank + b"\x80\x7f" * dimensions


def tensor_proto(value: np.ndarray) -> bytes:
    """Return a TensorProto with the values alone, packed, as V1 keeps them."""
    if value.dtype == np.float32:
        return content(5, value.astype("<f4").tobytes())
    if value.dtype == np.float64:
        return content(6, value.astype("<f8").tobytes())
    return content({"int32": 7, "int64": 10}[value.dtype.name], b"".join(varint(int(v)) for v in value.ravel()))


def write_v1(
    path: Path, variables: Mapping[str, np.ndarray], *, extents: Mapping[str, bytes] = {}, **table: object
) -> Path:
    """Write a single file; `extents` gives slices (TensorSliceProto) other than whole ones by name."""
    made = Table(**table)
    listed = b""
    for name, value in variables.items():
        piece = extents.get(name, content(1, b"") * value.ndim)
        kind = number(3, TYPES[value.dtype.name])
        listed += content(
            1, content(1, name.encode()) + content(2, shape_proto(value.shape)) + kind + content(4, piece)
        )
    made.add(b"", content(1, listed + content(2, number(1, 1))))
    for key, name in sorted((slice_key(name, value.ndim), name) for name, value in variables.items()):
        value, piece = variables[name], extents.get(name, content(1, b"") * variables[name].ndim)
        saved = content(1, name.encode()) + content(2, piece) + content(3, tensor_proto(value))
        made.add(key, content(2, saved))
    path.write_bytes(made.finish())
    return path


def write_v2(
    path: Path,
    variables: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
    big: bool = False,
    sliced: str = "",
    **table: object,
) -> Path:
    """Write a bundle with the prefix `path`; `sliced` names a variable to be called partitioned. Returns the index."""
    data = [bytearray() for _ in range(shards)]
    entries = {}
    for i, (name, value) in enumerate(variables.items()):
        raw, shard = value.astype(value.dtype.newbyteorder("<")).tobytes(), data[i % shards]
        entries[name.encode()] = (
            number(1, TYPES[value.dtype.name])
            + content(2, shape_proto(value.shape))
            + number(3, i % shards)
            + number(4, len(shard))
            + number(5, len(raw))
            + varint(6 << 3 | 5)
            + struct.pack("<I", masked(raw))
            + (content(7, content(1, number(2, 2))) if name == sliced else b"")
        )
        shard += raw
    made = Table(**table)
    made.add(b"", number(1, shards) + number(2, int(big)) + content(3, number(1, 1)))
    for name, entry in sorted(entries.items()):
        made.add(name, entry)
    for i, shard in enumerate(data):
        Path(f"{path}.data-{i:05}-of-{shards:05}").write_bytes(shard)
    index = Path(f"{path}.index")
    index.write_bytes(made.finish())
    return index
