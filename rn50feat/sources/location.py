"""Decide once what kind of place a location names.

In: text from a user, a list or a store. Out: a `Location`: a file or folder of
this machine (`local`), an object in remote storage (`remote`), or a member of
an archive on either (`archive`). What is done with it from then on does not
ask for its kind again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rn50feat.sources import archive
from rn50feat.sources.archive import Member
from rn50feat.sources.local import Local
from rn50feat.sources.reference import Reference
from rn50feat.sources.remote import Remote
from rn50feat.sources.urls import is_url


class Location(Protocol):
    """A place that holds files. Errors are `SourceError`s that give the reason without the location."""

    @property
    def path(self) -> str:
        """The location as text, as references and stores have it."""

    @property
    def needs_network(self) -> bool:
        """Whether a look at it costs a request to another machine."""

    def walk(self) -> Iterator[Location]:
        """Yield the files at or below it, in sorted order; errors have the location, since it may be a folder's."""

    def stat(self) -> Reference:
        """Look up size and time without reading the file; raise `SourceError` where there is none."""

    def exists(self) -> bool:
        """Check whether there is a file; True in doubt, so that False can be relied on."""

    def open(self, known: Reference, block: int) -> AbstractContextManager[tuple[Reference, Iterator[bytes]]]:
        """Yield `known` with the size and time as of now, and the bytes in blocks of `block`, any size for -1.

        Size and time are taken before the first byte is read: a file that
        changes meanwhile shows as changed in the next run.
        """

    def head(self, known: Reference, length: int) -> bytes:
        """Read the first `length` bytes."""


def at(path: str) -> Local | Remote | Member:
    """Return the place that a location names.

    ``a.tar::b`` is a member, unless there is no file ``a.tar`` on this
    machine: then it is a file with an odd name.
    """
    if "::" in path and (parts := archive.split(path)):
        if is_url(path):
            return Member(Remote(parts[0]), parts[1])
        if os.path.isfile(parts[0]):
            return Member(Local(parts[0]), parts[1])
    return Remote(path) if "://" in path and is_url(path) else Local(path)


def locate(path: str | os.PathLike[str], real: Callable[[str], str] = os.path.realpath) -> Location:
    """Return the place that a user names, as its absolute location with the links above it resolved.

    The last part stays as it is, so that a link to a folder keeps its own
    name; the folders above are made `real`, so that one folder has one name
    however the working directory was reached. Raises `SourceError` for a URL
    that carries credentials, or whose file system is not installed.
    """
    place = at(os.fspath(path))
    if isinstance(place, Local):
        return Local(_absolute(place.path, real))
    if isinstance(place, Remote):
        return Remote.of(place.path)
    file = place.file
    return Member(Local(_absolute(file.path, real)) if isinstance(file, Local) else Remote.of(file.path), place.name)


def _absolute(path: str, real: Callable[[str], str]) -> str:
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    try:
        return os.path.join(real(folder), name)
    except ValueError:  # a NUL, or half a character of UTF-16: there is no such folder
        return os.path.join(os.getcwd(), path)


def absolute(path: str, folder: str) -> str:
    """Return the location for a path that a store in `folder`, which ends in a slash, has."""
    return path if path.startswith("/") or is_url(path) else folder + path


def is_plain(path: str) -> bool:
    """Check whether a stored path is one that a run writes: not empty, and without ``..`` but for one at the start.

    A member's name is only a name, and so is an object's.
    """
    path = archive_of(path) or path
    inner = path.removeprefix("../")
    return is_url(path) or (bool(path) and os.path.normpath(path) == path and inner.split("/")[0] != "..")


def archive_of(path: str) -> str:
    """Return the archive that a path names a member of, by the path alone; "" for any other."""
    parts = archive.split(path)
    return parts[0] if parts else ""


def folders(path: str) -> tuple[str, ...]:
    """Return the names of the folders that a location is in, from the top; an archive is one, named without its suffix.

    The first part of a URL is its scheme, the next its bucket or host.
    """
    archive = archive_of(path)
    names = path.removeprefix(archive).removeprefix("::").split("/")[:-1]
    above = [*archive[:-4].split("/")] if archive else []
    return tuple(name for name in [*above, *names] if name not in ("", "."))
