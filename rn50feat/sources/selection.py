"""Select the files of a run: folders, files, a list of either, or one share of these.

In: sources, a list, a shard, and patterns of what to leave out. Out: a stream
of files, each once, and which locations belong to the run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rn50feat.errors import SourceError
from rn50feat.sources import folders, lists
from rn50feat.sources.archive import Archive, is_archive
from rn50feat.sources.exclusion import Excluded, Exclusion
from rn50feat.sources.local import Local
from rn50feat.sources.location import Location, archive_of, locate
from rn50feat.sources.reference import Reference
from rn50feat.sources.remote import Remote
from rn50feat.sources.roots import root_of, roots

Sources = Iterable[str | os.PathLike[str]] | str | os.PathLike[str]
Found = Reference | Archive | Excluded


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``count``, counted from 1: a stable part of any sources."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse a text like 2/8; raise `SourceError` for any other."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise SourceError(f"{text} is not a shard: give 1/8 for the first of eight, up to 8/8")
        return cls(int(match[1]), int(match[2]))

    def holds(self, name: str) -> bool:
        """Check whether a file belongs to this share, by its name below its source.

        The BLAKE2b hash is the same on every machine and in every version:
        adding images, or moving the whole source, moves none to another share.
        """
        key = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(key, "big") % self.count == self.number - 1


class Selection:
    """The files of a run: those at or below `images`, folders or files, then those of a list.

    The names in `listing` (``-`` is standard input) are relative to the
    working folder, and end in NULs if `null` is set. Files that a list names
    twice come once; names that lead nowhere come too, with a size of -1, and
    end in the ledger. `shard` takes one share of all these, by the names of
    files below their source, or in the list. By the same names, `exclude`
    leaves files out: patterns of ``.gitignore`` files, on top of
    `exclusion.LEFTOVERS`. Each real folder is entered once, by its own name
    where that is below the sources; ``outside`` has the links that the last
    pass followed out of them, and where they lead. Raises `SourceError` for
    sources and patterns that cannot be used.
    """

    def __init__(
        self,
        images: Sources,
        *,
        listing: str | os.PathLike[str] | None = None,
        null: bool = False,
        shard: Shard | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        if isinstance(images, (str, os.PathLike)):
            images = [images]
        self.roots = roots(images)
        self._places = frozenset(root.path for root in self.roots)
        self._real_places = frozenset(os.path.realpath(root.path) for root in self.roots if not root.needs_network)
        self.outside: dict[str, str] = {}
        self.listing = None if listing is None else Path(listing)
        self._null = null
        self._shard = shard
        self._exclusion = Exclusion(exclude, self._places)

    @classmethod
    def of(cls, images: Sources | Selection) -> Selection:
        """Return the selection of all of `images`, which may be one already."""
        return images if isinstance(images, Selection) else cls(images)

    def references(self) -> Iterator[Reference]:
        """Yield a `Reference` for each file, an archive being one, folders in sorted order."""
        for found in self.found():
            if not isinstance(found, Excluded):
                yield found.reference if isinstance(found, Archive) else found

    def found(self) -> Iterator[Found]:
        """Yield each file as its `Reference`, an archive as such, and an `Excluded` for each folder and file left out.

        Only a list gives files that are not there, with a size of -1.
        """
        tour = folders.Tour(warn=True)
        self.outside = tour.outside
        for entry in self._rooted(tour):
            if found := _looked_up(entry):
                yield found
        if self.listing is None:
            return
        met = lists.Names()
        for entry in self._listed(tour):
            location = entry.location if isinstance(entry, Excluded) else entry.path
            if root_of(location, self._places) or not met.add(location):
                continue
            if found := _looked_up(entry):
                yield found
            elif not isinstance(entry, Excluded) and _is_named(entry):
                yield _typed(entry, Reference(location, -1, -1))

    @property
    def can_be_read_again(self) -> bool:
        """Whether the files can be found more than once, unlike those of a list on standard input."""
        return self.listing is None or lists.can_be_read_again(self.listing)

    def count(self) -> int | None:
        """Count the files, about; None for a list that can be read only once, and for remote storage."""
        if any(root.needs_network for root in self.roots):  # listing costs money there: once is enough
            return None
        if not self.can_be_read_again:
            return None
        tour = folders.Tour(warn=False)
        return sum(1 for _ in self._rooted(tour)) + sum(1 for _ in self._listed(tour))

    def covers(self, location: str) -> bool:
        """Check whether a location lies at or below the sources of the run, and in its share."""
        root = root_of(location, self._places)
        if root is None:
            return False
        # The members of an archive are in one share.
        return self._holds(_name(location if location == root else archive_of(location) or location, root))

    def holds_any(self, root: Location, *, excluded: bool = False) -> bool:
        """Check whether there is a file at or below one of the `roots`, in any share; one that is `excluded` if set."""
        if excluded or not isinstance(root, Local):
            return any(_looked_up(place) for place in root.walk() if excluded or not self._rule_below(place, root))
        places = root.walk(enters=self._enters(root.path, None))
        return any(_looked_up(place) for place in places if not self._rule_below(place, root))

    def _rule_below(self, place: Location, root: Location) -> str | None:
        return self._exclusion.rule(_name(place.path, root.path))

    def rule(self, location: str) -> str | None:
        """Return the pattern that leaves out a location below the sources, or a member of a listed archive."""
        root = root_of(location, self._places)
        if (archive := archive_of(location)) and root in (None, archive):
            # Patterns start in the archive then, as in a folder.
            member = location[len(archive) + 2 :]
            return self._exclusion.rule(os.path.basename(archive)) or self._exclusion.rule(member)
        return self._exclusion.rule(os.path.basename(location) if root is None else _name(location, root))

    def _holds(self, name: str) -> bool:
        return self._shard is None or self._shard.holds(name)

    def _rooted(self, tour: folders.Tour) -> Iterator[Location | Excluded]:
        return self._walked(((root, None) for root in self.roots), tour)

    def _listed(self, tour: folders.Tour) -> Iterator[Location | Excluded]:
        if self.listing is None:
            return iter(())
        real = lru_cache(1024)(os.path.realpath)  # of the folders: 20 µs for each name of a list else
        names = lists.names(self.listing, null=self._null)
        return self._walked(((locate(name, real), name) for name in names), tour)

    def _walked(
        self, places: Iterable[tuple[Location, str | None]], tour: folders.Tour
    ) -> Iterator[Location | Excluded]:
        """Yield what is at or below `places`, given with their names in the list, and last what links there lead to."""
        links: deque[tuple[str, str, str | None]] = deque()
        for place, listed in places:
            root = place.path
            if isinstance(place, Local):
                if listed is None:
                    tour.warn_if_entered(root)
                yield from self._taken(place.walk(tour, self._enters(root, listed)), root, listed)
                links.extend((link, root, listed) for link in tour.links())
            else:
                yield from self._taken([place] if listed else place.walk(), root, listed)  # a list names single files
        while links:
            link, root, listed = links.popleft()
            if (target := tour.target(link)) is None:
                continue
            if root_of(target, {os.path.realpath(root), *self._real_places}) is None:
                tour.note_outside(link, target)
            yield from self._taken(Local(link).walk(tour, self._enters(root, listed)), root, listed)
            links.extend((link, root, listed) for link in tour.links())

    def _enters(self, root: str, listed: str | None) -> Callable[[str], bool]:
        """Make the check of whether to enter a folder below `root`, which a list names `listed`."""
        return lambda folder: self._exclusion.rule_of_folder(_name(folder, root, listed)) is None

    def _taken(self, places: Iterable[Location], root: str, listed: str | None) -> Iterator[Location | Excluded]:
        """Yield the `places` at or below `root` that are in the share; as `Excluded` what is left out."""
        for place in places:
            name = _name(place.path, root, listed)
            if not self._holds(name):
                continue
            if isinstance(place, Local) and place.entry is not None and folders.is_folder(place.entry):
                yield Excluded(f"{place.path}/", self._exclusion.rule_of_folder(name) or "")
            elif pattern := self._exclusion.rule(name):
                yield Excluded(place.path, pattern)
            else:
                yield place


def _looked_up(place: Location | Excluded) -> Found | None:
    """Look up a file's size and time; None for what is no regular file, or has vanished since it was listed."""
    if isinstance(place, Excluded):
        return place
    try:
        return _typed(place, place.stat())
    except SourceError:
        return None


def _typed(place: Location, reference: Reference) -> Reference | Archive:
    if isinstance(place, (Local, Remote)) and is_archive(place.path):
        return Archive(place, reference)
    return reference


def _is_named(place: Location) -> bool:
    """Check whether a location was named, rather than found in a folder."""
    return not isinstance(place, Local) or place.entry is None


def _name(location: str, root: str, listed: str | None = None) -> str:
    """Return the path of a file below its source, or its own name where it is the source; in a list, as named there."""
    if location == root:
        return os.path.basename(location) if listed is None else listed
    below = location[len(root) + (not root.endswith("/")) :]
    return below if listed is None else os.path.join(listed, below)
