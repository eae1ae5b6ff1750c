"""Change a file from one commit to the next as a whole, or not at all.

Takes a path and gives h5py's file-object driver a Python file object whose
writes become visible to other programs only with `commit`. The method is
SQLite's rollback journal:

- writes beyond the committed end go to the disk at once, since nothing refers
  to them yet;
- writes to committed pages are held in memory;
- a commit syncs the file, saves the old and the new content of those pages
  with a checksum in ``<path>-journal``, syncs that, writes the new pages,
  syncs again and removes the journal. That removal is the commit.

If the process or machine dies on the way, there is either no complete journal,
and then no committed page was touched, or a complete one, from which `recover`
restores the old pages. A journal whose pages are neither old nor new in the
file next to it belongs to another file (after a backup was restored, for
example) and undoes nothing. A new file is written next to its path and renamed
at the first commit.

Every change to the disk passes through a `Disk`, so that a test can stop the
program at each of them.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rn50feat.durable.disk import DISK, Disk, close
from rn50feat.durable.rollback import PAGE, Page, journal_path, left, packed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def new_path(path: Path) -> Path:
    """Name the file that holds new content until its first commit."""
    return path.with_name(path.name + "-new")


class JournaledFile(io.RawIOBase):
    """A readable, writable, seekable file whose changes wait for `commit`.

    Only one process at a time may open a path this way, and it must have called
    `recover` first. A disk error is not raised but kept in ``error``, and the
    file is abandoned: HDF5 2.0 crashes (h5py 3.16, in H5Fclose) after a failed
    write of its driver.
    """

    def __init__(self, path: Path, *, create: bool = False, length: int = 0, disk: Disk = DISK) -> None:
        """Open `path` with its committed `length` in bytes, or create it.

        Anything beyond `length` was never committed and is cut off.
        """
        self.path = path
        self._disk = disk
        self._new = create
        self._at = 0
        self._pages: dict[int, bytearray] = {}
        self._undo_to: int | None = None  # the committed length of an abandoned file
        self.error: OSError | None = None
        self._length = self._committed = 0 if create else length
        self.handle = -1  # until it is open: Python also closes a file that could not be opened
        if create:
            self.handle = disk.create(new_path(path))
        else:
            if os.path.lexists(new_path(path)):  # of a process that was killed while it made a new file
                with suppress(OSError):
                    disk.remove(new_path(path))
            self.handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(self.handle).st_size > length:
                disk.truncate(self.handle, length)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._at)]
        view[:] = self._read(len(view), self._at)
        for number, start, stop, at in _pieces(self._at, self._held(len(view))):
            if number in self._pages:
                view[at : at + stop - start] = self._pages[number][start:stop]
        self._at += len(view)
        return len(view)

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        held = self._held(len(view))
        if held < len(view):
            try:
                self._disk.write(self.handle, view[held:], self._at + held)
            except OSError as error:
                self._give_up(error)
                held = len(view)
        for number, start, stop, at in _pieces(self._at, held):
            self._page(number)[start:stop] = view[at : at + stop - start]
        self._at += len(view)
        self._length = max(self._length, self._at)
        return len(view)

    def _held(self, length: int) -> int:
        """Count how many of the next `length` bytes are before the committed end."""
        return min(length, max(0, self._committed - self._at))

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            self._pages[number] = bytearray(self._read(PAGE, number * PAGE))
        return self._pages[number]

    def _read(self, length: int, offset: int) -> bytes:
        """Read `length` bytes from the disk, zeros beyond the end of the file."""
        try:
            return os.pread(self.handle, length, offset).ljust(length, b"\0")
        except OSError as error:
            self._give_up(error)
            return bytes(length)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        self.abandon()

    def truncate(self, length: int | None = None) -> int:
        self._length = self._at if length is None else length
        return self._length

    def commit(self, alone: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Make everything written so far durable and visible, all at once.

        `alone` is held while committed pages change. An error leaves the file
        as it was at the last commit, or a journal that restores that state.
        """
        self._disk.sync(self.handle)
        self._require_place()
        if self._new:
            if left(self.path):  # by an earlier file at this path: it must not undo this one
                self._disk.remove(journal_path(self.path))
            self._disk.rename(new_path(self.path), self.path)
            self._new = False
            self._settle()
        elif self._pages or self._length < self._committed:
            with alone():
                self._save_old_pages()
                self._write_pages()
                self._disk.remove(journal_path(self.path))
                self._settle()
        self._committed = self._length

    def _require_place(self) -> None:
        """Raise `FileNotFoundError` if the file is no longer at its path: rows written to it would be lost."""
        place = os.stat(new_path(self.path) if self._new else self.path)
        if not os.path.samestat(place, os.fstat(self.handle)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _settle(self) -> None:
        """Make the new state the committed one: nothing after this may undo it."""
        self._committed = self._length
        self._pages.clear()
        self._disk.sync_folder(self.path.parent)

    def _save_old_pages(self) -> None:
        cut_off = range(self._length // PAGE, -(-self._committed // PAGE))
        numbers = sorted({*self._pages, *cut_off})
        journal = journal_path(self.path)
        handle = self._disk.create(journal)
        try:
            pages = []
            for number in numbers:
                old = os.pread(self.handle, PAGE, number * PAGE).ljust(PAGE, b"\0")
                pages.append(Page(number, old, self._new_page(number, old)))
            self._disk.write(handle, packed(self._committed, pages), 0)
            self._disk.sync(handle)
        finally:
            close(handle)
        self._disk.sync_folder(journal.parent)

    def _new_page(self, number: int, old: bytes) -> bytes:
        """Compose a page's new content: held bytes up to the committed end, and the disk's content after it."""
        inside = self._inside(number)
        return bytes(self._pages.get(number, old)[:inside]) + old[inside:]

    def _inside(self, number: int) -> int:
        """Count the bytes of a page that a commit writes."""
        return max(0, min(self._length, self._committed, (number + 1) * PAGE) - number * PAGE)

    def _write_pages(self) -> None:
        for number, content in sorted(self._pages.items()):
            self._disk.write(self.handle, memoryview(content)[: self._inside(number)], number * PAGE)
        if self._length < self._committed:
            self._disk.truncate(self.handle, self._length)
        self._disk.sync(self.handle)

    def abandon(self) -> None:
        """Hold all further writes in memory, and let `close` undo what was not committed.

        HDF5 writes when its file is closed, whatever happened before.
        """
        if self._undo_to is None:
            self._undo_to, self._committed = self._committed, 1 << 62

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with suppress(OSError):  # the next writer removes what is left beyond the committed end, or the new file
            if self._undo_to is not None and self._new:
                self._disk.remove(new_path(self.path))
            elif self._undo_to is not None:
                self._disk.truncate(self.handle, self._undo_to)
        close(self.handle)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a span of bytes at page bounds: (page, start and stop in the page, start in the span)."""
    at = 0
    while at < length:
        number, start = divmod(offset + at, PAGE)
        stop = min(PAGE, start + length - at)
        yield number, start, stop, at
        at += stop - start
