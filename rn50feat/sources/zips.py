"""List a zip archive, and read single members without unpacking it.

In: an open file. Out: the members of its directory, in the order of their
bytes in the file, each with its place; or those bytes, checked against their
checksum, for members that are stored or deflated.

``zipfile`` would not do. It reads a member only with the directory of the whole
archive at hand, which takes 617 MB and 8 CPU seconds for a million members (a
listing here: 562 MB, 11 s); a decoding process needs nothing but a member's
offset. And it refuses an archive for one bad entry, where this reads all others.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import BinaryIO, NamedTuple

from rn50feat.errors import DamagedError
from rn50feat.sources import zip_names
from rn50feat.sources.listing import Extent, Listing
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


class _Place(NamedTuple):
    """Where a member's local header is, and its size packed and unpacked, in bytes."""

    offset: int
    packed: int
    size: int


def listing(file: BinaryIO, length: int) -> Listing:
    """List an archive of `length` bytes by its directory; raise `DamagedError` when it has none.

    Of members with one name the last one counts. Members that overlap (a zip
    bomb has many that share their bytes) are left out.
    """
    start, size, count, shift = _find_directory(file, length)
    file.seek(start)
    raws, places, left = _entries(file.read(size), count, shift)
    names, guessed = zip_names.decoded(raws)
    found, fault = {}, ""
    for name, place in zip(names, places):
        if "\0" in name or not 0 <= place.offset <= start - _LOCAL.size - place.packed:
            fault = f"is damaged at {name!r}: such members are not read"
        else:
            found[name] = place
    if left % 0x10000:  # old programs start again at 0 beyond that
        fault = "is damaged in its directory: some members are not read"
    members, fault = _apart(found, fault)
    return Listing(members, fault, f"does not name its code page: {guessed.upper()} is assumed" if guessed else "")


def _entries(data: bytes, count: int, shift: int) -> tuple[list[RawName], list[_Place], int]:
    """Parse a directory of `count` entries; return its files, and how many entries are missing, -1 for damage.

    Folders, links and devices are skipped.
    """
    raws: list[RawName] = []
    places: list[_Place] = []
    at = 0
    while at < len(data):
        if len(data) - at < _CENTRAL.size or data[at : at + 4] != b"PK\1\2":
            return raws, places, -1
        _, made, _, flags, _, _, _, _, packed, size, names, extras, comments, _, _, mode, offset = _CENTRAL.unpack_from(
            data, at
        )
        name_at = at + _CENTRAL.size
        extra_at = name_at + names
        raw, extra = data[name_at:extra_at], data[extra_at : extra_at + extras]
        if 0xFFFFFFFF in (size, packed, offset):
            size, packed, offset = _wide(extra, size, packed, offset)
        at, count = extra_at + extras + comments, count - 1
        if raw and not raw.endswith(b"/") and (made >> 8 != _UNIX or stat.S_IFMT(mode >> 16) in (0, stat.S_IFREG)):
            raws.append(RawName(raw, flags, extra, made >> 8, made & 0xFF))
            places.append(_Place(offset + shift, packed, size))
    return raws, places, count


def _find_directory(file: BinaryIO, length: int) -> tuple[int, int, int, int]:
    """Find the directory: where it starts, its size, its entries, and by how much all offsets in it are too small."""
    tail_at = max(0, length - _END.size - _LONGEST_COMMENT)
    file.seek(tail_at)
    tail = file.read(_END.size + _LONGEST_COMMENT)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise DamagedError(
            "is not a zip archive, or is cut off: it has no directory at its end; download or copy it again"
        )
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    if tail[:at][-_LOCATOR64.size :].startswith(b"PK\6\7"):
        end -= _LOCATOR64.size + _END64.size  # where all programs put it
        file.seek(max(0, end))
        record = file.read(_END64.size)
        if not record.startswith(b"PK\6\6") or len(record) < _END64.size:
            raise DamagedError("is damaged: its directory cannot be found; download or copy it again")
        *_, count, size, start = _END64.unpack(record)
    shift = end - size - start  # of what stands before the archive proper, as in one that unpacks itself
    if shift < 0 or size > _LARGEST:
        raise DamagedError("is damaged: its directory cannot be found; download or copy it again")
    return start + shift, size, count, shift


def _wide(extra: bytes, *fields: int) -> list[int]:
    """Return a member's sizes and offset; those too large for 32 bits are in its ``extra`` field."""
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


def _apart(found: Mapping[str, _Place], fault: str) -> tuple[dict[str, Extent], str]:
    """Return the members in their order, without those that begin inside another, and the fault, or that."""
    members, end = {}, 0
    for name, place in sorted(found.items(), key=itemgetter(1)):
        if place.offset < end:
            fault = f"is damaged at {name!r}, which overlaps another member: such members are not read"
        else:
            members[name] = Extent(place.offset, place.size)
            end = place.offset + _LOCAL.size + place.packed
    return members, fault


def blocks(file: BinaryIO, member: Extent, block: int) -> Iterator[bytes]:
    """Yield a member's bytes in blocks of at most `block` bytes, or any size for -1.

    Raises `DamagedError` when they are not there, are encrypted or packed by
    an uncommon method, or do not match their checksum.
    """
    file.seek(member.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise DamagedError("is damaged in its archive: it has no header")
    _, _, flags, method, _, _, checksum, _, _, names, extras = _LOCAL.unpack(header)
    if flags & _ENCRYPTED:
        raise DamagedError("is encrypted: pack it again without a password")
    if method not in (_STORED, _DEFLATED):
        raise DamagedError(f"is packed by method {method}: pack it again, stored or deflated")
    file.seek(member.offset + _LOCAL.size + names + extras)
    packed = _Packed(file, deflated=method == _DEFLATED)
    left, found = member.size, 0
    while left and (data := packed.read(left if block < 0 else min(left, block))):
        left, found = left - len(data), zlib.crc32(data, found)
        yield data
    if left:
        raise DamagedError("is cut off in its archive")
    if flags & _CHECKSUM_BEHIND:
        behind = packed.behind(8).removeprefix(b"PK\x07\x08")  # a mark that may be left out
        checksum = int.from_bytes(behind[:4], "little")
    if found != checksum:
        raise DamagedError("is damaged in its archive: its checksum does not match")


class _Packed:
    """The bytes of a member, unpacked as they are read."""

    def __init__(self, file: BinaryIO, *, deflated: bool) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(-15) if deflated else None

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes, none at the end: what a member has beyond its declared size is not unpacked."""
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
        """Read at most `size` bytes that follow the member in the file."""
        if self._inflate is None:
            return self._file.read(size)
        if self.read(1):
            raise DamagedError("is damaged in its archive: it is larger than it says")
        return (self._inflate.unused_data + self._file.read(size))[:size]
