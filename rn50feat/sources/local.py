"""Find and read files and folders of this machine.

In: an absolute path. Out: the files below it, what is known of one of them,
and its bytes. Only regular files are ever opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import FileIO

from rn50feat.errors import SourceError, VanishedError
from rn50feat.sources import folders
from rn50feat.sources.reference import Reference


@dataclass(slots=True, unsafe_hash=True)
class Local:
    """A path of this machine. One that comes from a walk has its ``entry`` or ``status``: the facts of that moment."""

    path: str
    entry: os.DirEntry[str] | None = field(default=None, compare=False)
    status: os.stat_result | None = field(default=None, compare=False)

    @property
    def needs_network(self) -> bool:
        """False: to look at it costs no request."""
        return False

    def walk(
        self, tour: folders.Tour | None = None, enters: Callable[[str], bool] = lambda folder: True
    ) -> Iterator[Local]:
        """Yield the path itself if it is no folder, else all in it that is none, in sorted order.

        Folders that `enters` refuses are yielded too, and not entered. Links
        to folders are left to the `tour`; without one they are followed last.
        """
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):  # `stat` says why
            yield self
            return
        if not stat.S_ISDIR(status.st_mode):
            yield Local(self.path, status=status)
            return
        own = folders.Tour(warn=False) if tour is None else tour
        for entry in own.entries(self.path, enters):
            yield Local(entry.path, entry)
        if tour is None:
            for entry in own.linked(enters):
                yield Local(entry.path, entry)

    def stat(self) -> Reference:
        """Look up the file's size and time; raise `SourceError` unless it is a regular file that can be looked at.

        What a walk meets on a file system of the kernel's is none: the kernel makes up its bytes.
        """
        try:
            status = self.status or (os.stat(self.path) if self.entry is None else self.entry.stat())
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise VanishedError(f"cannot be found: {getattr(error, 'strerror', error)}") from error
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode) or (self.entry is not None and folders.is_made_up(status.st_dev)):
            raise SourceError("is not a regular file")
        return Reference(self.path, status.st_size, status.st_mtime_ns)

    def exists(self) -> bool:
        """Check whether something is there; a folder that cannot be searched proves nothing, and counts as yes."""
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        except OSError:
            return True
        return True

    @contextmanager
    def open(self, known: Reference, block: int) -> Iterator[tuple[Reference, Iterator[bytes]]]:
        """Open the file; see `Location.open`."""
        with self.parts() as (file, now):
            yield replace(known, size=now.size, mtime_ns=now.mtime_ns), iter(partial(file.read, block), b"")

    def head(self, known: Reference, length: int) -> bytes:
        """Read the first `length` bytes."""
        with self.parts() as (file, _):
            return file.read(length)

    @contextmanager
    def parts(self) -> Iterator[tuple[FileIO, Reference]]:
        """Open the file unbuffered, to read parts of it; yield it with its reference as of now."""
        try:
            # O_NONBLOCK: a FIFO that took the file's place must not block the open.
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with FileIO(handle) as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise SourceError("is no longer a regular file")
                yield file, Reference(self.path, status.st_size, status.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VanishedError("has vanished") from error
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from error
