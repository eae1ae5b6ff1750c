"""List the members of a tar or zip archive, and read single ones of them where they lie.

In: an open file. Out: a `Listing` of its members in the order in which they
lie in it, and for one of them its bytes, in blocks. Nothing is unpacked to
disk; a member's name is only a name. Archives may be damaged or hostile: what
they declare is checked against the length of the file, links and devices in
them are passed over, and of two members with one name the last one counts, as
when they are unpacked.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_SET, RawIOBase
from typing import BinaryIO, cast

from rn50feat.errors import DamagedError, SourceError
from rn50feat.sources import zips
from rn50feat.sources.lists import is_utf8

_LOCATION = re.compile(r"(.+?\.(?:tar|zip))::(.+)", re.DOTALL | re.IGNORECASE)
_WHOLE = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_COMPRESSED = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|\x1f\x9d")
COMPRESSED = (
    "is compressed as a whole, so that no member can be read without all before it: uncompress it to a .tar,"
    " or pack it anew as .zip"
)
# What tarfile raises on odd headers: RecursionError for a long chain of them, for one.
_BROKEN = (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError)
_MOST_IN_RANGE = 1_000_000
_RANGE = re.compile(r"(.*?)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", re.DOTALL)
_HEADER = 1 << 20  # bytes that one header may have; a name takes at most 4096 of them


@dataclass(frozen=True)
class Member:
    """Where a member begins in its archive (a zip's: with its local header), and its ``size`` unpacked, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """Members by name, in the order in which they lie in the archive.

    ``fault`` says what of it cannot be read, ``doubt`` what of their names is
    not known. A name takes some 250 bytes of memory.
    """

    members: dict[str, Member]
    fault: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class ArchiveRecord:
    """What a store keeps of an archive: its size and time when listed, and how many pictures and others it held."""

    path: str
    size: int
    mtime_ns: int
    pictures: int
    others: int


def is_archive(location: str) -> bool:
    """Tell by its name whether a file is an archive whose members are read: a member is none."""
    return location[-4:].lower() in (".tar", ".zip") and split(location) is None


def is_compressed_whole(location: str) -> bool:
    """Tell by its name whether a file is a tar archive that is compressed as a whole: a member counts as none."""
    return _WHOLE.search(location) is not None and split(location) is None


def expanded(source: str) -> Iterator[str]:
    """Yield the files that a name like ``shards-{000..099}.tar`` stands for, as in a shell; another name as it is."""
    match = _RANGE.fullmatch(source)
    if match is None or os.path.lexists(source):
        yield source
        return
    before, first, last, after = match.groups()
    begin, end = int(first), int(last)
    if abs(end - begin) >= _MOST_IN_RANGE:
        raise SourceError(f"{source} stands for more than {_MOST_IN_RANGE} sources: name a folder that holds them")
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
    step = 1 if begin <= end else -1
    for number in range(begin, end + step, step):
        yield from expanded(f"{before}{number:0{width}}{after}")


def split(location: str) -> tuple[str, str] | None:
    """Return the archive and the member that ``archive.tar::member`` names, None for another name."""
    match = _LOCATION.fullmatch(location) if "::" in location else None
    return (match[1], match[2]) if match else None


def join(archive: str, member: str) -> str:
    """Return the location of a member."""
    return f"{archive}::{member}"


def listing(file: BinaryIO, length: int, name: str) -> Listing:
    """List an archive of `length` bytes; `name` is that of its file.

    Reads the headers of a tar archive, and the directory of a zip one. Raises
    `DamagedError` when it is no archive.
    """
    if _is_zip(name):
        entries, fault, guessed = zips.directory(file, length)
        doubt = f"does not say which code page its names are in: taken for {guessed.upper()}" if guessed else ""
        members = {entry.name: Member(entry.offset, entry.size) for entry in entries}
    else:
        members, fault = _tar_members(file, length)
        doubt = ""
    if not doubt and not all(map(is_utf8, members)):
        doubt = "does not say how its names are coded, and some are not UTF-8: their bytes are kept as they are"
    return Listing(members, fault, doubt)


def blocks(file: BinaryIO, member: Member, archive: str, block: int) -> Iterator[bytes]:
    """Yield the bytes of a member in blocks of at most `block` bytes, or any size for -1.

    Raises `DamagedError` when the archive does not hold all of them.
    """
    if _is_zip(archive):
        return zips.blocks(file, member.offset, member.size, block)
    return _stored(file, member, block)


def _is_zip(archive: str) -> bool:
    return archive[-4:].lower() == ".zip"


def _stored(file: BinaryIO, member: Member, block: int) -> Iterator[bytes]:
    file.seek(member.offset)
    left = member.size
    while left:
        data = file.read(left if block < 0 else min(left, block))
        if not data:
            raise DamagedError("is cut off in its archive")
        left -= len(data)
        yield data


def _tar_members(file: BinaryIO, length: int) -> tuple[dict[str, Member], str]:
    if _COMPRESSED.match(file.read(6)):
        raise DamagedError(COMPRESSED)
    file.seek(0)
    members: dict[str, Member] = {}
    try:
        tar = tarfile.TarFile(fileobj=cast(BinaryIO, _Headers(file)), encoding="utf-8", errors="surrogateescape")
    except _BROKEN as error:
        raise DamagedError(f"is no tar archive ({error}): mend it, or name another") from error
    fault, end = "", -1
    while not fault:
        try:
            entry = tar.next()
        except _BROKEN as error:
            fault = f"is damaged behind byte {tar.offset} ({error}): what follows is not read"
            break
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all, 2 kB each
        if entry is None:
            fault = _after_last(file, tar.offset, length)
            break
        if entry.offset <= end or not 0 <= entry.size <= length - entry.offset_data:
            fault = f"is cut off or damaged at {entry.name!r}: it and what follows are not read"
        elif entry.isreg() and not entry.issparse():
            if "\0" in entry.name:
                fault = f"is damaged behind byte {entry.offset}, a name with a NUL: what follows is not read"
            elif entry.name:
                members.pop(entry.name, None)  # an earlier one of that name has no place in the order
                members[entry.name] = Member(entry.offset_data, entry.size)
        end = entry.offset
    return members, fault


def _after_last(file: BinaryIO, offset: int, length: int) -> str:
    """Return what is wrong where tarfile sees the end of an archive: it takes a damaged header for one."""
    file.seek(offset)
    header = file.read(512)
    if any(header):
        return f"is damaged at byte {offset} of {length}: what follows is not read"
    return ""


class _Headers(RawIOBase):
    """A file of which tarfile may read headers alone: one that declares gigabytes would fill the memory."""

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
