"""Undo an interrupted commit from the journal that it left.

Takes the path of a file and restores its last commit. A journal holds the
committed length of the file, the old and new content of the pages that a commit
changes, and a checksum; `journal` writes it. An incomplete one, or one of
another file, undoes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rn50feat.durable.disk import DISK, Disk, close
from rn50feat.errors import StoreError

PAGE = 4096
SECTOR = 512  # a disk writes these whole: a page may be half old, half new
_MAGIC = b"rn50feat journal 1\n"
_HEADER = struct.Struct("<QQ")  # committed length in bytes, number of pages
_PAGE = struct.Struct(f"<Q{PAGE}s{PAGE}s")  # number, old content, new content
_CHECKSUM = 16


@dataclass(frozen=True)
class Page:
    """A page of the file, before and after a commit."""

    number: int
    old: bytes
    new: bytes


def journal_path(path: Path) -> Path:
    """Name the journal of a file."""
    return path.with_name(path.name + "-journal")


def packed(length: int, pages: Sequence[Page]) -> bytes:
    """Pack a journal: the committed length, and the pages in ascending order."""
    pieces = [
        _MAGIC + _HEADER.pack(length, len(pages)),
        *(_PAGE.pack(page.number, page.old, page.new) for page in pages),
    ]
    content = b"".join(pieces)
    return content + hashlib.blake2b(content, digest_size=_CHECKSUM).digest()


def left(path: Path) -> bool:
    """Check whether `path` has a journal: a commit is in progress, or was interrupted."""
    return os.path.lexists(journal_path(path))


def recover(path: Path, disk: Disk = DISK) -> bool:
    """Undo an interrupted commit at `path`; return whether there was one.

    The caller holds the file exclusively. Raises `StoreError` if the journal is
    not a regular file.
    """
    journal = journal_path(path)
    try:
        handle = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _no_journal(journal) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        close(handle)
        raise _no_journal(journal)
    with open(handle, "rb") as file:
        undone = _undo(path, file, disk)
    disk.remove(journal)
    disk.sync_folder(path.parent)
    return undone


def _no_journal(journal: Path) -> StoreError:
    return StoreError(f"{journal} is not a journal, but a folder, a device or a link to another file: remove it")


def _undo(path: Path, journal: BinaryIO, disk: Disk) -> bool:
    """Restore the old pages from a complete journal of the file at `path`; return whether it is one."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        length = _belonging(journal, handle)
        if length is None:
            return False
        for page in _pages(journal):
            disk.write(handle, page.old[: length - page.number * PAGE], page.number * PAGE)
        disk.truncate(handle, length)
        disk.sync(handle)
        return True
    finally:
        close(handle)


def _belonging(journal: BinaryIO, handle: int) -> int | None:
    """Read the committed length from a journal; None if it is incomplete or belongs to another file than `handle`.

    It may have any size and come from anywhere: it is read page by page, and
    only as far as it makes sense.
    """
    size = os.fstat(handle).st_size
    head = journal.read(len(_MAGIC) + _HEADER.size)
    if len(head) != len(_MAGIC) + _HEADER.size or not head.startswith(_MAGIC):
        return None
    length, count = _HEADER.unpack_from(head, len(_MAGIC))
    if os.fstat(journal.fileno()).st_size != len(head) + count * _PAGE.size + _CHECKSUM:
        return None
    checksum = hashlib.blake2b(head, digest_size=_CHECKSUM)
    known = min(length, size)  # anything beyond is cut off, or was
    last, cut_off = -1, 0
    for page in _pages(journal, checksum.update):
        if not last < page.number < -(-length // PAGE) or not _belongs(handle, page, known):
            return None
        last = page.number
        cut_off += page.number >= size // PAGE
    whole = length <= size or cut_off == -(-length // PAGE) - size // PAGE
    return length if whole and journal.read() == checksum.digest() else None


def _pages(journal: BinaryIO, read: Callable[[bytes], object] = lambda _: None) -> Iterator[Page]:
    """Yield the pages of a journal, and hand their bytes to `read`."""
    journal.seek(len(_MAGIC))
    _, count = _HEADER.unpack(journal.read(_HEADER.size))
    for _ in range(count):
        data = journal.read(_PAGE.size)
        read(data)
        yield Page(*_PAGE.unpack(data))


def _belongs(handle: int, page: Page, length: int) -> bool:
    """Check whether each sector of a page, in a file of `length`, is the old or the new one."""
    found = os.pread(handle, max(0, min(PAGE, length - page.number * PAGE)), page.number * PAGE)
    cuts = [slice(start, min(start + SECTOR, len(found))) for start in range(0, len(found), SECTOR)]
    return all(found[cut] in (page.old[cut], page.new[cut]) for cut in cuts)
