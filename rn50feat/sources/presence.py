"""Compare what a store knows of a file with what is at its place now.

In: a location, or a `Reference` as a row was made from it. Out: whether that
file is still there, and which paths lead to one and the same file. Asks the
file system, and opens no file.
"""

from __future__ import annotations

import os
from typing import Literal

from rn50feat.errors import SourceError, VanishedError
from rn50feat.sources import archives, remote, sources
from rn50feat.sources.sources import Reference

State = Literal["present", "missing", "changed", "unchecked"]
Identity = tuple[int, int, str] | str


def is_gone(location: str) -> bool:
    """Tell whether there surely is no file at `location`.

    A folder that cannot be searched proves nothing, and neither does a
    damaged archive, or a server that does not answer.
    """
    if remote.is_url(location) and not archives.split(location):
        try:
            remote.item(location)
        except VanishedError:
            return True
        except SourceError:
            return False
        return False
    if member := sources.as_member(location):
        try:
            contents = sources.listing(sources.find(member[0]))
        except VanishedError:
            return True
        except SourceError:
            return False
        return member[1] not in contents.members and not contents.fault
    try:
        os.stat(location)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def state(known: Reference, *, check: bool = True) -> State:
    """Compare a file with what it was when its row was made.

    Unless `check` is set, remote storage is not asked: a store may come from
    anywhere, and must not choose whom this machine sends requests to.
    """
    if not check and remote.is_url(known.location):
        return "unchecked"
    try:
        return "present" if _as_known(known) else "changed"
    except (SourceError, ValueError):
        return "missing"


def _as_known(known: Reference) -> bool:
    """Tell whether a file is there with the size and time of `known`; raise `SourceError` when there is none."""
    member = sources.as_member(known.location)
    if member and sources.find(member[0]).mtime_ns == known.mtime_ns:  # not changed: it need not be listed
        return True
    now = sources.find(known.location)
    return (now.size, now.mtime_ns) == (known.size, known.mtime_ns)


def identity(location: str) -> Identity | None:
    """Return what all paths to one file have in common, None where there is no file.

    That is its device and inode, so that links, hard links and bind mounts
    show; for a member of an archive, those of the archive and the member's
    name; for an object in remote storage, its URL.
    """
    if remote.is_url(location):
        return remote.one_scheme(location)
    place, member = sources.as_member(location) or (location, "")
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return None
    # Some network file systems number no files.
    return (status.st_dev, status.st_ino, member) if status.st_ino else f"{os.path.realpath(place)}::{member}"
