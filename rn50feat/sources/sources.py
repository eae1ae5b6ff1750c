"""Find picture files and read their bytes.

In: folders and single files. Out: a sorted stream of `Reference`s, one for
each regular file, and for a reference the bytes of its file with the size and
modification time that those bytes had. A member of an archive is a file, too:
``archive.tar::member`` is its location; and so is an object in remote storage
by its URL. Nothing here knows what a picture is, and nothing but a regular
file is ever opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from io import FileIO
from itertools import chain
from typing import BinaryIO, cast

from rn50feat.errors import DamagedError, SourceError, TooLargeError, VanishedError
from rn50feat.sources import archives, folders, lists, remote
from rn50feat.sources.zip_names import as_now

UNKNOWN = bytes(16)  # the digest of a file that nobody could read: equal to none, not even to another such one


@dataclass(frozen=True)
class Reference:
    """One file: its absolute path and what is known of its bytes.

    ``size`` is in bytes, ``mtime_ns`` in nanoseconds since 1970, ``digest``
    the BLAKE2b-128 of the bytes, empty until they were read, `UNKNOWN` for a
    row whose file could not be read. A name in a list
    that leads to no file has a ``size`` of -1. Bytes of a name that are not
    UTF-8 are surrogate escapes in ``location``. A member of an archive has
    its own size and the archive's time; ``offset`` is where it begins in the
    archive, -1 where that is not known. ``damage`` is what is wrong with the
    image, "" for nothing that is known. The location of an object in remote
    storage is its URL, its time that of `remote.Item`.
    """

    location: str
    size: int
    mtime_ns: int
    digest: bytes = b""
    offset: int = field(default=-1, compare=False)
    damage: str = field(default="", compare=False)

    @property
    def known_digest(self) -> bytes:
        """The digest, empty where it is not known: programs that compare digests take two empty ones for no match."""
        return b"" if self.digest == UNKNOWN else self.digest

    def __fspath__(self) -> str:
        return self.location


def locate(path: str | os.PathLike[str], real: Callable[[str], str] = os.path.realpath) -> str:
    """Return the absolute location of `path`, with the links above it resolved.

    The last part stays as it is, so that a link to a folder keeps its own
    name; the parts above are made `real`, so that one folder has one name
    however the working directory was reached.
    """
    if member := as_member(os.fspath(path)):
        return archives.join(locate(member[0]), member[1])
    if remote.is_url(os.fspath(path)):
        return remote.checked(os.fspath(path))
    name = os.path.basename(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    try:
        return os.path.join(real(os.path.dirname(path)), name)
    except ValueError:  # a NUL, or half a character of UTF-16: there is no such folder
        return os.path.join(os.getcwd(), path)


def roots(sources: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the locations of `sources`, without those that lie inside another.

    Raises `SourceError` for a source that does not exist or is no folder,
    regular file or member of an archive.
    """
    found: dict[str, None] = {}
    for source in chain.from_iterable(archives.expanded(os.fspath(source)) for source in sources):
        if remote.is_url(source):
            found[locate(source)] = None
            continue
        if as_member(source):
            try:
                found[find(locate(source)).location] = None
            except SourceError as error:
                raise SourceError(f"{source} {error}: name a member that is there, or the archive itself") from error
            continue
        try:
            mode = os.stat(source).st_mode
        except (OSError, ValueError) as error:
            kinds = f", or a URL of {', '.join(remote.PACKAGES)}" if "://" in source else ""
            reason = getattr(error, "strerror", error)
            raise SourceError(f"{source}: {reason}: name an existing folder or picture{kinds}") from error
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise SourceError(f"{source} is neither a folder nor a regular file: name one of these")
        if stat.S_ISREG(mode) and archives.is_compressed_whole(source):
            raise SourceError(f"{source} {archives.COMPRESSED}")
        found[locate(source)] = None
    return [root for root in found if root_of((archives.split(root) or (os.path.dirname(root),))[0], found) is None]


def root_of(location: str, roots: Container[str]) -> str | None:
    """Return the one of `roots` that a location is or lies below, None for another; in a set, roots may be many."""
    if location in roots:
        return location
    place, _ = archives.split(location) or (location, "")
    while place not in roots:
        place, within = os.path.dirname(place), place
        if place in ("", within):
            return None
    return place


def walk(
    locations: Sequence[str], *, warn: bool = True, enters: Callable[[str], bool] = lambda folder: True
) -> Iterator[os.DirEntry[str] | Reference | str]:
    """Yield every entry below `locations` that is no folder, or one that `enters` says not to enter, in sorted order.

    A single file is yielded as its location, an object in remote storage as
    its `Reference`. What links to folders lead to comes last, each real
    folder once. Folders that cannot be listed are passed over, and warned of
    if `warn` says so; raises `SourceError` for remote storage that cannot.
    """
    tour = folders.Walk(warn)
    for location in locations:
        if os.path.isdir(location) and not remote.is_url(location):
            yield from tour.entries(location, enters)
        else:
            yield from single(location)
    yield from tour.linked(enters)


def single(location: str) -> Iterator[Reference | str]:
    """Yield a location that is no folder of this machine, or what there is below it in remote storage."""
    if remote.is_url(location):
        yield from _walk_remote(location)
    else:
        yield location


def _walk_remote(url: str) -> Iterator[Reference]:
    try:
        if archives.split(url):
            yield find(url)
            return
        for item in remote.items(url):
            yield Reference(item.url, item.size, item.mtime_ns)
    except SourceError as error:
        raise type(error)(f"{url} {error}") from error


def references(locations: Sequence[str]) -> Iterator[Reference]:
    """Yield a `Reference` for each regular file below `locations`, in sorted order.

    FIFOs, sockets, devices and dangling links are passed over.
    """
    return filter(None, map(reference, walk(locations)))


def reference(entry: os.DirEntry[str] | Reference | str) -> Reference | None:
    """Return the `Reference` of a regular file, a member or an object, None for anything else.

    A file below /proc or /sys, which a link may lead to, is none: the kernel makes up its bytes.
    """
    if isinstance(entry, Reference):
        return entry
    try:
        if isinstance(entry, str):
            return find(entry)
        status = entry.stat()
    except (OSError, SourceError):  # a dangling link, or a file that vanished since it was listed
        return None
    if not stat.S_ISREG(status.st_mode) or folders.is_made_up(status.st_dev):
        return None
    return Reference(os.fspath(entry), status.st_size, status.st_mtime_ns)


def obstacle(location: str) -> str:
    """Return why a location that was named is no file to read."""
    try:
        find(location)
    except SourceError as error:
        coded = "" if lists.is_utf8(location) else " (its name is not UTF-8: if its list should be, save it as UTF-8)"
        return f"is listed, but {error}{remote.other_scheme(location)}{coded}"
    return "is listed, but was not there a moment ago"


def find(location: str) -> Reference:
    """Return what is known of a file, or a member, without reading it; raise `SourceError` with the reason."""
    if member := as_member(location):
        archive = find(member[0])
        entry = _find(archive, member[1])
        return Reference(location, entry.size, archive.mtime_ns, offset=entry.offset)
    if remote.is_url(location):
        item = remote.item(location)
        return Reference(location, item.size, item.mtime_ns)
    try:
        status = os.stat(location)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise VanishedError(f"cannot be found: {getattr(error, 'strerror', error)}") from error
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceError("is no regular file")
    return Reference(location, status.st_size, status.st_mtime_ns)


def as_member(location: str) -> tuple[str, str] | None:
    """Return the archive and the name of the member at a location, None where it is none's."""
    member = archives.split(location)
    return member if member and (remote.is_url(location) or os.path.isfile(member[0])) else None


def listing(archive: Reference) -> archives.Listing:
    """Return what an archive holds; raise `SourceError` with the reason when it cannot be read, or is none."""
    return _listing(archive.location, archive.size, archive.mtime_ns)


@lru_cache(2)
def _listing(location: str, size: int, mtime_ns: int) -> archives.Listing:
    with _archive(location) as (file, archive):
        return archives.listing(file, archive.size, location)


def members(archive: Reference) -> Iterator[Reference]:
    """Yield a `Reference` for each member of an archive, in the order in which they lie there."""
    for name, entry in listing(archive).members.items():
        yield Reference(archives.join(archive.location, name), entry.size, archive.mtime_ns, offset=entry.offset)


def _find(archive: Reference, name: str) -> archives.Member:
    contents = listing(archive)
    for spelled in (name, *as_now(name)):
        if spelled in contents.members:
            return contents.members[spelled]
    if contents.fault:
        raise DamagedError(f"cannot be read: its archive {contents.fault}")
    raise VanishedError("has vanished from its archive")


@contextmanager
def _open(location: str) -> Iterator[tuple[FileIO, os.stat_result]]:
    """Open a regular file, unbuffered; raise `SourceError` with the reason, without the path."""
    try:
        # O_NONBLOCK: a FIFO that took the file's place must not block the open.
        handle = os.open(location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with FileIO(handle) as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError("is no regular file any more")
            yield file, status
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VanishedError("has vanished") from error
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error


@contextmanager
def _archive(location: str) -> Iterator[tuple[BinaryIO, Reference]]:
    """Open an archive; yield it with its reference as of now."""
    if remote.is_url(location):
        now = find(location)
        with remote.opened(location) as file:
            yield file, now
    else:
        with _open(location) as (local, status):
            yield cast(BinaryIO, local), Reference(location, status.st_size, status.st_mtime_ns)


@contextmanager
def _content(reference: Reference, block: int) -> Iterator[tuple[Reference, Iterator[bytes]]]:
    """Open a file or a member; yield its reference as of now, and its bytes in blocks of `block`, any size for -1.

    The size and time are taken before the first byte is read: a file that
    changes meanwhile shows as changed in the next run.
    """
    member = as_member(reference.location)
    if member is None and remote.is_url(reference.location):
        now = reference if block < 0 and reference.mtime_ns > 0 else find(reference.location)
        yield now, (remote.read(url) for url in (reference.location,))  # read when it is asked for
        return
    if member is None:
        with _open(reference.location) as (file, status):
            now = replace(reference, size=status.st_size, mtime_ns=status.st_mtime_ns)
            yield now, iter(partial(file.read, block), b"")
        return
    with _archive(member[0]) as (archive, state):
        entry = archives.Member(reference.offset, reference.size)
        if reference.offset < 0 or reference.mtime_ns != state.mtime_ns:  # not known, or another archive by now
            entry = _find(state, member[1])
        now = replace(reference, size=entry.size, mtime_ns=state.mtime_ns, offset=entry.offset)
        yield now, archives.blocks(archive, entry, member[0], block)


def head(reference: Reference, length: int = 32) -> bytes:
    """Return the first `length` bytes of a file."""
    if remote.is_url(reference.location) and not archives.split(reference.location):
        return remote.read(reference.location, length)
    with _content(reference, length) as (_, blocks):
        return next(blocks, b"")


def digest(reference: Reference) -> Reference:
    """Return `reference` with the size, time and digest of the file as it is now."""
    with _content(reference, 1 << 20) as (now, blocks):
        state = hashlib.blake2b(digest_size=16)
        for block in blocks:
            state.update(block)
    return replace(now, digest=state.digest())


def read(reference: Reference, most: int = 0) -> tuple[Reference, bytes]:
    """Return what `digest` returns, and the bytes; raise `TooLargeError` unread for more than `most` (0: any)."""
    with _content(reference, -1) as (now, blocks):
        if 0 < most < now.size:
            raise TooLargeError(now.size, most)
        data = b"".join(blocks)
    return replace(now, digest=hashlib.blake2b(data, digest_size=16).digest()), data
