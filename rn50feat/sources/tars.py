"""List a tar archive, and read single members without unpacking it.

In: an open file. Out: its members in their order, each with the place of its
bytes; or those bytes, in blocks. Archives may be damaged or hostile: what they
declare is checked against the length of the file, and links and devices are
passed over.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from io import SEEK_SET, RawIOBase
from typing import BinaryIO, cast

from rn50feat.errors import DamagedError
from rn50feat.sources.listing import Extent, Listing

_COMPRESSED = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|\x1f\x9d")
COMPRESSED = (
    "is compressed as a whole, so that no member can be read without all before it: uncompress it to a .tar,"
    " or pack it again as .zip"
)
# What tarfile raises on odd headers: RecursionError for a long chain of them, for one.
_BROKEN = (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError)
_HEADER = 1 << 20  # bytes that one header may have; a name takes at most 4096 of them


def listing(file: BinaryIO, length: int) -> Listing:
    """List an archive of `length` bytes by its headers; raise `DamagedError` when it is no tar archive.

    Of two members with one name the last one counts, as when they are unpacked.
    """
    if _COMPRESSED.match(file.read(6)):
        raise DamagedError(COMPRESSED)
    file.seek(0)
    members: dict[str, Extent] = {}
    try:
        tar = tarfile.TarFile(fileobj=cast(BinaryIO, _Headers(file)), encoding="utf-8", errors="surrogateescape")
    except _BROKEN as error:
        raise DamagedError(f"is not a tar archive ({error}): fix it, or name another") from error
    fault, end = "", -1
    while not fault:
        try:
            entry = tar.next()
        except _BROKEN as error:
            fault = f"is damaged after byte {tar.offset} ({error}): what follows is not read"
            break
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all, 2 kB each
        if entry is None:
            fault = _after_last(file, tar.offset, length)
            break
        if entry.offset <= end or not 0 <= entry.size <= length - entry.offset_data:
            fault = f"is cut off or damaged at {entry.name!r}: it and what follows are not read"
        elif entry.isreg() and not entry.issparse():
            if "\0" in entry.name:
                fault = f"is damaged after byte {entry.offset}, a name with a NUL: what follows is not read"
            elif entry.name:
                members.pop(entry.name, None)  # an earlier one of that name has no place in the order
                members[entry.name] = Extent(entry.offset_data, entry.size)
        end = entry.offset
    return Listing(members, fault)


def blocks(file: BinaryIO, member: Extent, block: int) -> Iterator[bytes]:
    """Yield a member's bytes in blocks of at most `block` bytes, or any size for -1.

    Raises `DamagedError` when the archive does not hold all of them.
    """
    file.seek(member.offset)
    left = member.size
    while left:
        data = file.read(left if block < 0 else min(left, block))
        if not data:
            raise DamagedError("is cut off in its archive")
        left -= len(data)
        yield data


def _after_last(file: BinaryIO, offset: int, length: int) -> str:
    """Say what is wrong where tarfile sees the end of an archive, "" for nothing: it takes a damaged header for one."""
    file.seek(offset)
    header = file.read(512)
    if any(header):
        return f"is damaged at byte {offset} of {length}: what follows is not read"
    return ""


class _Headers(RawIOBase):
    """A file from which tarfile may read only headers: one that declares gigabytes would fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if not 0 <= offset < 1 << 62:
            raise tarfile.ReadError("a member of impossible size")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
