"""Read a zip archive: its directory, and the bytes of one member.

In: an open file. Out: the members by their directory, in the order in which
they lie in the file, and for one of them its bytes, checked against the
checksum that is written with them. Members are read by their offset alone,
without the directory, which ``zipfile`` does not do; those that are stored or
deflated, which is what programs write.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rn50feat.errors import DamagedError
from rn50feat.sources import zip_names
from rn50feat.sources.zip_names import RawName

# Fields as in APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16.
_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_END = struct.Struct("<4sHHHHLLH")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR64 = struct.Struct("<4sLQL")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _CHECKSUM_BEHIND = 0x1, 0x8  # flags of a member
_ZIP64, _UNIX = 1, 3
_LONGEST_COMMENT = 0xFFFF
_LARGEST = 1 << 30  # bytes of a directory: ten million members
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Entry:
    """A member: its name, the offset of its local header, and its size unpacked, in bytes."""

    name: str
    offset: int
    size: int


def directory(file: BinaryIO, length: int) -> tuple[list[Entry], str, str]:
    """Return the members of an archive of `length` bytes, sorted by offset, what of it cannot be read, if anything,
    and the code page that had to be guessed for their names, if one had.

    Of members with one name the last one is there. Members that overlap (a
    zip bomb has many that share their bytes) are left out. Raises
    `DamagedError` when there is no directory.
    """
    start, size, count, shift = _find_directory(file, length)
    file.seek(start)
    data, fault = file.read(size), ""
    raws: list[RawName] = []
    facts: list[tuple[int, int, int]] = []
    at = 0
    while at < len(data):
        if len(data) - at < _CENTRAL.size or data[at : at + 4] != b"PK\1\2":
            count = -1
            break
        _, made, _, flags, _, _, _, _, packed, unpacked, names, extras, comments, _, _, mode, offset = (
            _CENTRAL.unpack_from(data, at)
        )
        at, raw = at + _CENTRAL.size + names, data[at + _CENTRAL.size : at + _CENTRAL.size + names]
        extra = data[at : at + extras]
        unpacked, packed, offset = _wide(extra, unpacked, packed, offset)
        at, count, offset = at + extras + comments, count - 1, offset + shift
        if not raw or raw.endswith(b"/") or (made >> 8 == _UNIX and stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG)):
            continue  # a folder, a link, a device
        raws.append(RawName(raw, flags, extra, made >> 8, made & 0xFF))
        facts.append((offset, packed, unpacked))
    found: dict[str, tuple[int, int, int]] = {}
    texts, guessed = zip_names.decoded(raws)
    for name, (offset, packed, unpacked) in zip(texts, facts):
        if "\0" in name or not 0 <= offset <= start - _LOCAL.size - packed:
            fault = f"is damaged at {name!r}: such members are not read"
        else:
            found[name] = (offset, packed, unpacked)
    if count % 0x10000:  # old programs count more members than that from 0 again
        fault = "is damaged in its directory: some members are not read"
    return *_apart(found, fault), guessed


def _find_directory(file: BinaryIO, length: int) -> tuple[int, int, int, int]:
    """Return where the directory starts, its size, its entries, and by how much all offsets in it are too small."""
    tail_at = max(0, length - _END.size - _LONGEST_COMMENT)
    file.seek(tail_at)
    tail = file.read(_END.size + _LONGEST_COMMENT)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise DamagedError("is no zip archive, or cut off: there is no directory at its end; fetch it again")
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    if tail[:at][-_LOCATOR64.size :].startswith(b"PK\6\7"):
        end -= _LOCATOR64.size + _END64.size  # where all programs put it
        file.seek(max(0, end))
        record = file.read(_END64.size)
        if not record.startswith(b"PK\6\6") or len(record) < _END64.size:
            raise DamagedError("is damaged: its directory cannot be found; fetch it again")
        *_, count, size, start = _END64.unpack(record)
    shift = end - size - start  # of what stands before the archive proper, as in one that unpacks itself
    if shift < 0 or size > _LARGEST:
        raise DamagedError("is damaged: its directory cannot be found; fetch it again")
    return start + shift, size, count, shift


def _wide(extra: bytes, *fields: int) -> list[int]:
    """Return the sizes and the offset of a member, those that are too large for 32 bits from its ``extra`` field."""
    wide = b""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _ZIP64:
            wide = extra[4 : 4 + size]
            break
        extra = extra[4 + size :]
    values = []
    for value in fields:
        if value == 0xFFFFFFFF and len(wide) >= 8:
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        values.append(value)
    return values


def _apart(found: dict[str, tuple[int, int, int]], fault: str) -> tuple[list[Entry], str]:
    """Return the members without those that begin inside another one."""
    entries, end = [], 0
    for name, (offset, packed, unpacked) in sorted(found.items(), key=lambda item: item[1]):
        if offset < end:
            fault = f"is damaged at {name!r}, which overlaps another member: such members are not read"
        else:
            entries.append(Entry(name, offset, unpacked))
            end = offset + _LOCAL.size + packed
    return entries, fault


def blocks(file: BinaryIO, offset: int, size: int, block: int) -> Iterator[bytes]:
    """Yield the `size` bytes of the member whose local header is at `offset`, in blocks of `block`, any size for -1.

    Raises `DamagedError` when they are not there, are encrypted or packed in
    an uncommon way, or do not have their checksum.
    """
    file.seek(offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise DamagedError("is damaged in its archive: it has no header")
    _, _, flags, method, _, _, checksum, _, _, names, extras = _LOCAL.unpack(header)
    if flags & _ENCRYPTED:
        raise DamagedError("is encrypted: pack it anew without a password")
    if method not in (_STORED, _DEFLATED):
        raise DamagedError(f"is packed by method {method}: pack it anew, stored or deflated")
    file.seek(offset + _LOCAL.size + names + extras)
    packed = _Packed(file, deflated=method == _DEFLATED)
    left, found = size, 0
    while left and (data := packed.read(left if block < 0 else min(left, block))):
        left, found = left - len(data), zlib.crc32(data, found)
        yield data
    if left:
        raise DamagedError("is cut off in its archive")
    if flags & _CHECKSUM_BEHIND:
        behind = packed.behind(8).removeprefix(b"PK\x07\x08")  # a mark that may be left out
        checksum = int.from_bytes(behind[:4], "little")
    if found != checksum:
        raise DamagedError("is damaged in its archive: its checksum is another")


class _Packed:
    """The bytes of a member, unpacked as they are read."""

    def __init__(self, file: BinaryIO, *, deflated: bool) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(-15) if deflated else None

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end: what a member has beyond its size is not unpacked."""
        if self._inflate is None:
            return self._file.read(size)
        data = b""
        while not data and not self._inflate.eof:
            raw = self._inflate.unconsumed_tail or self._file.read(_BLOCK)
            try:
                data = self._inflate.decompress(raw, size)
            except zlib.error as error:
                raise DamagedError("is damaged in its archive: it cannot be unpacked") from error
            if not raw and not data:
                break
        return data

    def behind(self, size: int) -> bytes:
        """Return at most `size` bytes that follow the member's own in the file."""
        if self._inflate is None:
            return self._file.read(size)
        if self.read(1):
            raise DamagedError("is damaged in its archive: it is larger than it says")
        return (self._inflate.unused_data + self._file.read(size))[:size]
