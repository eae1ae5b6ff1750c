"""Compare what a store knows about a file with what is in its place now.

In: a location, or a `Reference` from which a row was made. Out: whether the
file is still there, and which paths lead to the same file. Looks files up, and
reads none.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from rn50feat.errors import SourceError
from rn50feat.sources.archive import Member
from rn50feat.sources.lists import is_utf8
from rn50feat.sources.local import Local
from rn50feat.sources.location import archive_of, at
from rn50feat.sources.reference import Reference
from rn50feat.sources.urls import one_scheme, other_scheme

State = Literal["present", "missing", "changed", "unchecked"]
Keeper = Literal["", "in an archive", "in remote storage", "a link", "missing"]
Identity = tuple[int, int, str] | str


def state(known: Reference, *, check: bool = True) -> State:
    """Compare a file with what it was when its row was made.

    Unless `check` is set, nothing in remote storage is looked up: a store may
    come from anywhere, and must not choose where this machine sends requests.
    """
    place = at(known.location)
    if place.needs_network and not check:
        return "unchecked"
    try:
        if isinstance(place, Member) and place.file.stat().mtime_ns == known.mtime_ns:
            return "present"  # the archive has not changed: it need not be listed
        now = place.stat()
    except (SourceError, ValueError):
        return "missing"
    return "present" if (now.size, now.mtime_ns) == (known.size, known.mtime_ns) else "changed"


def readable(location: str, *, check: bool) -> str:
    """Return a location if it may be read, else "": as in `state`, remote storage is left alone without `check`."""
    return location if check or not at(location).needs_network else ""


def identity(location: str) -> Identity | None:
    """Identify a file by what all paths to it have in common; None where there is no file.

    That is its device and inode, so that links, hard links and bind mounts
    show; for a member those of the archive, and the member's name; for an
    object in remote storage its URL.
    """
    place = at(location)
    if place.needs_network:
        return one_scheme(location)
    file, member = (place.file.path, place.name) if isinstance(place, Member) else (location, "")
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    # Some network file systems have no inodes.
    return (status.st_dev, status.st_ino, member) if status.st_ino else f"{os.path.realpath(file)}::{member}"


def keeper(location: str) -> Keeper:
    """Say why deleting a location by itself would free no space, or cannot be done; "" where it would free a file's."""
    place = at(location)
    if not isinstance(place, Local):
        return "in remote storage" if place.needs_network else "in an archive"
    try:
        status = os.lstat(location)
    except (OSError, ValueError):
        return "missing"
    return "" if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else "a link"


def fingerprint(location: str) -> tuple[object, ...]:
    """Identify a file on this machine, even by a second mount that gives it another device; () where there is none."""
    try:
        status = os.stat(location)
    except (OSError, ValueError):
        return ()
    return (status.st_ino or os.path.realpath(location), status.st_size, status.st_mtime_ns)


def file_url(location: str) -> str:
    """Return the ``file://`` URL of a file on this machine, "" for anything else; a member is no file of its own."""
    if not os.path.isabs(location) or not isinstance(at(location), Local):
        return ""
    return "" if archive_of(location) and not os.path.isfile(location) else Path(location).as_uri()


def obstacle(location: str) -> str:
    """Say why a location in a list cannot be read."""
    try:
        at(location).stat()
    except SourceError as error:
        encoded = "" if is_utf8(location) else " (its name is not UTF-8: if its list should be, save it as UTF-8)"
        return f"is listed, but {error}{other_scheme(location)}{encoded}"
    return "is listed, but was not there a moment ago"
