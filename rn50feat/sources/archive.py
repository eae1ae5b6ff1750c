"""Look into tar and zip archives, on this machine or in remote storage.

In: a file whose name says that it is an archive, or ``archive.tar::member``.
Out: its members, what is known of one of them, and its bytes. Nothing is
unpacked to disk, and a member's name is only a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

from rn50feat.errors import DamagedError, SourceError, VanishedError
from rn50feat.sources import tars, zips
from rn50feat.sources.listing import Extent, Listing
from rn50feat.sources.lists import is_utf8
from rn50feat.sources.local import Local
from rn50feat.sources.reference import Reference
from rn50feat.sources.remote import Remote
from rn50feat.sources.zip_names import as_now

_LOCATION = re.compile(r"(.+?\.(?:tar|zip))::(.+)", re.DOTALL | re.IGNORECASE)
_WHOLE = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


@dataclass(frozen=True)
class ArchiveRecord:
    """What a store keeps of an archive: its size and time when listed, and how many images and others it held."""

    path: str
    size: int
    mtime_ns: int
    pictures: int
    others: int


@dataclass(frozen=True)
class Archive:
    """An archive that a walk has found: its ``file``, and the ``reference`` of that file."""

    file: Local | Remote
    reference: Reference

    def listing(self) -> Listing:
        """List what the archive holds; raise `SourceError` when it cannot be read, `DamagedError` when it is none."""
        return _listing(self.file, self.reference.size, self.reference.mtime_ns)

    def members(self) -> Iterator[Reference]:
        """Yield a reference for each member, in the order of the archive."""
        for name, extent in self.listing().members.items():
            location = join(self.reference.location, name)
            yield Reference(location, extent.size, self.reference.mtime_ns, offset=extent.offset)

    def find(self, name: str) -> Extent:
        """Find a member by its name; raise `SourceError` with the reason why there is none."""
        listing = self.listing()
        for spelled in (name, *as_now(name)):
            if spelled in listing.members:
                return listing.members[spelled]
        if listing.fault:
            raise DamagedError(f"cannot be read: its archive {listing.fault}")
        raise VanishedError("has vanished from its archive")


@lru_cache(2)
def _listing(file: Local | Remote, size: int, mtime_ns: int) -> Listing:
    with file.parts() as (opened, now):
        listing = zips.listing(opened, now.size) if _is_zip(file) else tars.listing(opened, now.size)
    if not listing.doubt and not all(map(is_utf8, listing.members)):
        doubt = "does not say how its names are encoded, and some are not UTF-8: their bytes are kept as they are"
        return replace(listing, doubt=doubt)
    return listing


def _is_zip(file: Local | Remote) -> bool:
    return file.path[-4:].lower() == ".zip"


@dataclass(slots=True)
class Member:
    """A member of an archive: the archive's file, and the member's name in it."""

    file: Local | Remote
    name: str

    @property
    def path(self) -> str:
        """The location: that of the archive, and the name."""
        return join(self.file.path, self.name)

    @property
    def needs_network(self) -> bool:
        """Whether the archive is in remote storage."""
        return self.file.needs_network

    def walk(self) -> Iterator[Member]:
        """Yield the member itself; raise `SourceError`, with the location, when it cannot be found."""
        try:
            self.stat()
        except SourceError as error:
            raise type(error)(f"{self.path} {error}") from error
        yield self

    def stat(self) -> Reference:
        """Look up the member's size and its archive's time; raise `SourceError` with the reason."""
        archive = self.file.stat()
        extent = Archive(self.file, archive).find(self.name)
        return Reference(self.path, extent.size, archive.mtime_ns, offset=extent.offset)

    def exists(self) -> bool:
        """Check whether the archive lists the member; an archive that is damaged proves nothing, and counts as yes."""
        try:
            listing = Archive(self.file, self.file.stat()).listing()
        except VanishedError:
            return False
        except SourceError:
            return True
        return self.name in listing.members or bool(listing.fault)

    @contextmanager
    def open(self, known: Reference, block: int) -> Iterator[tuple[Reference, Iterator[bytes]]]:
        """Open the member, by its known offset if the archive has not changed; see `Location.open`."""
        with self.file.parts() as (file, archive):
            extent = Extent(known.offset, known.size)
            if known.offset < 0 or known.mtime_ns != archive.mtime_ns:
                extent = Archive(self.file, archive).find(self.name)
            now = replace(known, size=extent.size, mtime_ns=archive.mtime_ns, offset=extent.offset)
            yield now, zips.blocks(file, extent, block) if _is_zip(self.file) else tars.blocks(file, extent, block)

    def head(self, known: Reference, length: int) -> bytes:
        """Read the first `length` bytes."""
        with self.open(known, length) as (_, blocks):
            return next(blocks, b"")


def is_archive(path: str) -> bool:
    """Check by its name whether a file is an archive whose members are read; a member is none."""
    return path[-4:].lower() in (".tar", ".zip") and split(path) is None


def is_compressed_whole(path: str) -> bool:
    """Check by its name whether a file is a tar archive that is compressed as a whole; a member is none."""
    return _WHOLE.search(path) is not None and split(path) is None


def split(path: str) -> tuple[str, str] | None:
    """Split ``archive.tar::member`` into archive and member; None for any other text."""
    if "::" not in path:
        return None
    match = _LOCATION.fullmatch(path)
    return (match[1], match[2]) if match else None


def join(archive: str, member: str) -> str:
    """Return the location of a member."""
    return f"{archive}::{member}"
