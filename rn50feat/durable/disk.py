"""Make the system calls that change what is on a disk, in one place.

Takes handles, bytes and paths, and changes the disk or raises an `OSError`.
Every change to a store passes through here, so that a test can stop the program
at each of them, or simulate a full disk.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close other programs, or raise the limit (ulimit -n)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions"),
    **dict.fromkeys((errno.EISDIR,), "move that folder away"),
    **dict.fromkeys((errno.ENOMEM,), "close other programs, or raise the limit (ulimit -v)"),
    **dict.fromkeys((errno.EFBIG,), "raise the limit (ulimit -f)"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
        "it or its folder was renamed, replaced or removed meanwhile: use its current path",
    ),
}


def advice(error: OSError) -> str:
    """Suggest a fix for an error from the operating system."""
    return _ADVICE.get(error.errno or 0, "check the disk")


class Disk:
    """The system calls that change what is on the disk; all of them raise `OSError`."""

    def create(self, path: Path) -> int:
        """Create an empty file in place of whatever has this name; the target of a link stays as it is."""
        path.unlink(missing_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, handle: int, data: ReadableBuffer, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(handle, view, offset)
            view, offset = view[done:], offset + done

    def truncate(self, handle: int, length: int) -> None:
        os.ftruncate(handle, length)

    def sync(self, handle: int) -> None:
        os.fsync(handle)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        except OSError as error:  # some network file systems cannot sync folders
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            close(handle)


DISK = Disk()


def close(handle: int) -> None:
    """Close a file whose content is synced or no longer needed: an error can lose nothing any more."""
    with suppress(OSError):
        os.close(handle)


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; raise `OSError` also for a FIFO, which would block, a folder or a device."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return open(handle, "rb")
