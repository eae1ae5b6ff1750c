"""Turn the sources that a user names into the places where walks start.

In: paths, URLs and ranges of them. Out: the places, none inside another, and
which of them a location lies below.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterable, Iterator

from rn50feat.errors import SourceError
from rn50feat.sources.archive import Member, is_compressed_whole
from rn50feat.sources.location import Location, archive_of, at, locate
from rn50feat.sources.tars import COMPRESSED
from rn50feat.sources.urls import PACKAGES

_MOST_IN_RANGE = 1_000_000
_RANGE = re.compile(r"(.*?)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", re.DOTALL)


def roots(sources: Iterable[str | os.PathLike[str]]) -> list[Location]:
    """Return the places of `sources`, without those inside another.

    Raises `SourceError` for a source that does not exist, or is neither a
    folder, a regular file, a member of an archive nor a URL.
    """
    named = (_checked(name) for source in sources for name in _expanded(os.fspath(source)))
    found = {place.path: place for place in named}
    return [place for place in found.values() if root_of(_above(place.path), found) is None]


def root_of(path: str, roots: Container[str]) -> str | None:
    """Return the one of `roots` that a location is or lies below, None if there is none; in a set, they may be many."""
    if path in roots:
        return path
    place = archive_of(path) or path
    while place not in roots:
        place, within = os.path.dirname(place), place
        if place in ("", within):
            return None
    return place


def _above(path: str) -> str:
    return archive_of(path) or os.path.dirname(path)


def _checked(source: str) -> Location:
    """Return the place of a source; raise `SourceError` when it cannot be used. What needs the network is not asked."""
    place = at(source)
    if place.needs_network:
        return locate(source)
    if isinstance(place, Member):
        try:
            place.stat()
        except SourceError as error:
            raise SourceError(f"{source} {error}: name a member that is there, or the archive itself") from error
        return locate(source)
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError) as error:
        kinds = f", or a URL of {', '.join(PACKAGES)}" if "://" in source else ""
        reason = getattr(error, "strerror", error)
        raise SourceError(f"{source}: {reason}: name an existing folder or image{kinds}") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise SourceError(f"{source} is neither a folder nor a regular file: name one of these")
    if stat.S_ISREG(mode) and is_compressed_whole(source):
        raise SourceError(f"{source} {COMPRESSED}")
    return locate(source)


def _expanded(source: str) -> Iterator[str]:
    """Yield the files that a name like ``shards-{000..099}.tar`` stands for, as in a shell; another name as it is.

    The package braceexpand would also take commas and single braces, which
    names of files and objects may contain, for patterns of its own.
    """
    match = _RANGE.fullmatch(source)
    if match is None or os.path.lexists(source):
        yield source
        return
    before, first, last, after = match.groups()
    begin, end = int(first), int(last)
    if abs(end - begin) >= _MOST_IN_RANGE:
        raise SourceError(f"{source} stands for more than {_MOST_IN_RANGE} sources: name a folder that holds them")
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
    step = 1 if begin <= end else -1
    for number in range(begin, end + step, step):
        yield from _expanded(f"{before}{number:0{width}}{after}")
