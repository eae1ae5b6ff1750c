"""Find picture files and read their bytes.

In: folders and single files. Out: a sorted stream of `Reference`s, one for
each regular file, and for a reference the bytes of its file with the size and
modification time that those bytes had. Nothing here knows what a picture is,
and nothing but a regular file is ever opened.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from rn50feat.errors import SourceError, VanishedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """One file: its absolute path and what is known of its bytes.

    ``size`` is in bytes, ``mtime_ns`` in nanoseconds since 1970, ``digest``
    the BLAKE2b-128 of the bytes, empty until they were read. A name in a list
    that leads to no file has a ``size`` of -1. Bytes of a name that are not
    UTF-8 are surrogate escapes in ``location``.
    """

    location: str
    size: int
    mtime_ns: int
    digest: bytes = b""


def locate(path: Path, real: Callable[[str], str] = os.path.realpath) -> str:
    """Return the absolute location of `path`, with the links above it resolved.

    The last part stays as it is, so that a link to a folder keeps its own
    name; the parts above are made `real`, so that one folder has one name
    however the working directory was reached.
    """
    name = os.path.basename(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(real(os.path.dirname(path)), name)


def roots(sources: Iterable[Path]) -> list[str]:
    """Return the locations of `sources`, without those that lie inside another.

    Raises `SourceError` for a source that does not exist or is neither a
    folder nor a regular file.
    """
    found: dict[str, None] = {}
    for source in sources:
        try:
            mode = os.stat(source).st_mode
        except OSError as error:
            raise SourceError(f"{source}: {error.strerror}: name an existing folder or picture") from error
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise SourceError(f"{source} is neither a folder nor a regular file: name one of these")
        found[locate(source)] = None
    return [root for root in found if not any(_inside(root, other) for other in found)]


def _inside(path: str, folder: str) -> bool:
    return path != folder and path.startswith(os.path.join(folder, ""))


def below(location: str, roots: Sequence[str]) -> bool:
    """Tell whether a location is one of `roots` or lies below one."""
    return any(location == root or _inside(location, root) for root in roots)


def is_gone(location: str) -> bool:
    """Tell whether there surely is no file at `location`: a folder that cannot be searched proves nothing."""
    try:
        os.stat(location)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def walk(locations: Sequence[str], *, warn: bool = True) -> Iterator[os.DirEntry[str] | str]:
    """Yield every entry below `locations` that is no folder, in sorted order.

    Links to folders are followed, but never into a folder that is being
    walked already. A single file is yielded as its location. Folders that
    cannot be listed are passed over, and warned of if `warn` says so.
    """
    for location in locations:
        if os.path.isdir(location):
            yield from _walk_folder(location, warn)
        else:
            yield location


def _walk_folder(location: str, warn: bool) -> Iterator[os.DirEntry[str]]:
    trail: dict[tuple[int, int], Iterator[os.DirEntry[str]]] = {}  # folder -> what is left of it
    below: str | None = location
    while below or trail:
        if below:
            trail.setdefault(*_list(below, warn))  # a folder on the trail already is not entered again
            below = None
        identity = next(reversed(trail))
        for entry in trail[identity]:
            if _is_folder(entry):
                below = entry.path
                break
            yield entry
        else:
            del trail[identity]


def _list(folder: str, warn: bool) -> tuple[tuple[int, int], Iterator[os.DirEntry[str]]]:
    """Return the device and inode of a folder, and its entries in sorted order."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if warn:
            logger.warning("%s cannot be listed (%s): its pictures are passed over", folder, error.strerror)
        return (-1, -1), iter(())
    return (status.st_dev, status.st_ino), iter(listing)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be resolved: a circle of links, say
        return False


def references(locations: Sequence[str]) -> Iterator[Reference]:
    """Yield a `Reference` for each regular file below `locations`, in sorted order.

    FIFOs, sockets, devices and dangling links are passed over.
    """
    return filter(None, map(reference, walk(locations)))


def reference(entry: os.DirEntry[str] | str) -> Reference | None:
    """Return the `Reference` of a regular file, None for anything else."""
    try:
        status = os.stat(entry) if isinstance(entry, str) else entry.stat()
    except OSError:  # a dangling link, or a file that vanished since it was listed
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Reference(os.fspath(entry), status.st_size, status.st_mtime_ns)


def obstacle(location: str) -> str:
    """Return why a location that was named is no file to read."""
    try:
        os.stat(location)
    except OSError as error:
        return f"is listed, but cannot be found: {error.strerror}"
    return "is listed, but neither a folder nor a regular file"


@contextmanager
def _open(reference: Reference) -> Iterator[tuple[FileIO, os.stat_result]]:
    """Open a regular file, unbuffered; raise `SourceError` with the reason, without the path."""
    try:
        # O_NONBLOCK: a FIFO that took the file's place must not block the open.
        handle = os.open(reference.location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with FileIO(handle) as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError("is no regular file any more")
            yield file, status
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VanishedError("has vanished") from error
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error


def head(reference: Reference, length: int = 32) -> bytes:
    """Return the first `length` bytes of a file."""
    with _open(reference) as (file, _):
        return file.read(length)


def digest(reference: Reference) -> Reference:
    """Return `reference` with the size, time and digest of the file as it is now.

    The size and time are taken before the first byte is read: a file that
    changes meanwhile shows as changed in the next run.
    """
    with _open(reference) as (file, status):
        state = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            state.update(block)
    return replace(reference, size=status.st_size, mtime_ns=status.st_mtime_ns, digest=state.digest())


def read(reference: Reference) -> tuple[Reference, bytes]:
    """Return what `digest` returns, and the bytes that it belongs to."""
    with _open(reference) as (file, status):
        data = file.readall()
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return replace(reference, size=status.st_size, mtime_ns=status.st_mtime_ns, digest=digest), data
