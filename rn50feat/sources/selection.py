"""Say which files a run looks at: folders, files, a list of either, or one share of all these.

In: sources, a list, a shard, and patterns of what to leave out. Out: a stream
of `Reference`s, each file once, and the answer to which locations belong to
the run.
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
from typing import Union

from rn50feat.errors import SourceError
from rn50feat.sources import archives, folders, lists, sources
from rn50feat.sources.exclusion import Excluded, Exclusion
from rn50feat.sources.remote import is_url
from rn50feat.sources.sources import Reference

Sources = Iterable[str | os.PathLike[str]] | str | os.PathLike[str]
_Entry = Union["os.DirEntry[str]", Reference, str]


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``count``, counted from 1: a stable part of any sources."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text like 2/8 names; raise `SourceError` for another."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise SourceError(f"{text} is no shard: give 1/8 for the first of eight, up to 8/8")
        return cls(int(match[1]), int(match[2]))

    def holds(self, name: str) -> bool:
        """Tell whether a file belongs to this share, by its name below its source.

        By BLAKE2b, the same on every machine and in every version: who adds
        pictures, or moves the whole source elsewhere, moves none to another share.
        """
        key = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(key, "big") % self.count == self.number - 1


class Selection:
    """The files of a run: those below `pictures`, folders or files, then those of a list.

    The names in `listing` (``-`` is standard input) are relative to the
    working folder, and ended by NULs when `null` says so. Of a list, files
    that are named twice come once; names that lead nowhere come too, with a
    size of -1, and end in the ledger. `shard` takes one share of all these,
    by the names of files below their source, or in the list. By the same
    names, what `exclude` matches is left out: patterns of ``.gitignore``
    files, on top of `exclusion.LEFTOVERS`. Each real folder is entered once,
    by its own name where that is below the sources; ``outside`` has the links
    that the last pass followed out of them, and where they lead. Raises
    `SourceError` for sources and patterns that cannot be used.
    """

    def __init__(
        self,
        pictures: Sources,
        *,
        listing: str | os.PathLike[str] | None = None,
        null: bool = False,
        shard: Shard | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        if isinstance(pictures, (str, os.PathLike)):
            pictures = [pictures]
        self.roots = sources.roots(pictures)
        self._places = frozenset(self.roots)
        self._real_places = frozenset(os.path.realpath(root) for root in self.roots if not is_url(root))
        self.outside: dict[str, str] = {}
        self.listing = None if listing is None else Path(listing)
        self._null = null
        self._shard = shard
        self._exclusion = Exclusion(exclude, self.roots)

    @classmethod
    def of(cls, pictures: Sources | Selection) -> Selection:
        """Return the selection of all of `pictures`, which may be one already."""
        return pictures if isinstance(pictures, Selection) else cls(pictures)

    def references(self) -> Iterator[Reference]:
        """Yield a `Reference` for each file, folders in sorted order; without `listing`, regular files only."""
        return (found for found in self.found() if isinstance(found, Reference))

    def found(self) -> Iterator[Reference | Excluded]:
        """Yield what `references` does, and an `Excluded` for each folder and file that is left out."""
        walk = folders.Walk(warn=True)
        self.outside = walk.outside
        for entry in self._rooted(walk):
            if isinstance(entry, Excluded):
                yield entry
            elif reference := sources.reference(entry):
                yield reference
        if self.listing is None:
            return
        met = lists.Names()
        for entry in self._listed(walk):
            location = entry.location if isinstance(entry, Excluded) else os.fspath(entry)
            if sources.root_of(location, self._places) or not met.add(location):
                continue
            if isinstance(entry, Excluded):
                yield entry
            elif reference := sources.reference(entry):
                yield reference
            elif isinstance(entry, str):
                yield Reference(location, -1, -1)

    @property
    def can_be_read_again(self) -> bool:
        """Whether the files can be found more than once, unlike those of a list on standard input."""
        return self.listing is None or lists.can_be_read_again(self.listing)

    def count(self) -> int | None:
        """Return how many files there are, about; None for a list that can be read but once, and for remote storage."""
        if any(map(is_url, self.roots)):  # a listing costs money there: one will do
            return None
        if not self.can_be_read_again:
            return None
        walk = folders.Walk(warn=False)
        return sum(1 for _ in self._rooted(walk)) + sum(1 for _ in self._listed(walk))

    def covers(self, location: str) -> bool:
        """Tell whether a location lies below the folders and files of the run, and in its share."""
        root = sources.root_of(location, self._places)
        if root is None:
            return False
        place, _ = archives.split(location) or (location, "")  # the members of an archive are in one share
        return self._holds(_name(location if location == root else place, root))

    def holds_any(self, root: str) -> bool:
        """Tell whether there is a file in one of the `roots`, in any share, that is not left out."""
        entries = sources.walk([root], warn=False, enters=self._enters(root, None))
        names = ((_name(os.fspath(entry), root), entry) for entry in entries)
        return any(self._exclusion.rule(name) is None and sources.reference(entry) for name, entry in names)

    def rule(self, location: str) -> str | None:
        """Return the pattern that leaves out a location below the sources, or a member of a listed archive."""
        root = sources.root_of(location, self._places)
        archive, member = archives.split(location) or (location, "")
        if root is None or (member and root == archive):  # patterns start in the archive then, as in a folder
            return self._exclusion.rule(os.path.basename(archive)) or (self._exclusion.rule(member) if member else None)
        return self._exclusion.rule(_name(location, root))

    def _holds(self, name: str) -> bool:
        return self._shard is None or self._shard.holds(name)

    def _rooted(self, walk: folders.Walk) -> Iterator[_Entry | Excluded]:
        return self._walked(((root, None) for root in self.roots), walk)

    def _listed(self, walk: folders.Walk) -> Iterator[_Entry | Excluded]:
        """Yield the files of the list; what a list names is a string, what lies below a folder of it an entry."""
        if self.listing is None:
            return iter(())
        real = lru_cache(1024)(os.path.realpath)  # of the folders: 20 µs for each name of a list else
        names = lists.names(self.listing, null=self._null)
        return self._walked(((sources.locate(name, real), name) for name in names), walk)

    def _walked(self, places: Iterable[tuple[str, str | None]], walk: folders.Walk) -> Iterator[_Entry | Excluded]:
        """Yield what is at `places`, locations and their names in the list, and last what links there lead to."""
        links: deque[tuple[str, str, str | None]] = deque()
        for root, listed in places:
            alone = listed is not None and (is_url(root) or archives.split(root))  # a list names one file there
            if alone or is_url(root) or not os.path.isdir(root):
                yield from self._taken([root] if alone else sources.single(root), root, listed)
                continue
            if listed is None:
                walk.tell_if_entered(root)
            yield from self._taken(walk.entries(root, self._enters(root, listed)), root, listed)
            links.extend((link, root, listed) for link in walk.links())
        while links:
            link, root, listed = links.popleft()
            if (target := walk.target(link)) is None:
                continue
            if sources.root_of(target, {os.path.realpath(root), *self._real_places}) is None:
                walk.tell_of_outside(link, target)
            yield from self._taken(walk.entries(link, self._enters(root, listed)), root, listed)
            links.extend((link, root, listed) for link in walk.links())

    def _enters(self, root: str, listed: str | None) -> Callable[[str], bool]:
        """Return what tells whether to enter a folder below `root`, which a list names `listed`."""
        return lambda folder: self._exclusion.rule_of_folder(_name(folder, root, listed)) is None

    def _taken(self, entries: Iterable[_Entry], root: str, listed: str | None) -> Iterator[_Entry | Excluded]:
        """Yield those of the entries below `root` that are in the share; what is left out as such."""
        for entry in entries:
            location = os.fspath(entry)
            name = _name(location, root, listed)
            if not self._holds(name):
                continue
            if isinstance(entry, os.DirEntry) and folders.is_folder(entry):
                yield Excluded(f"{location}/", self._exclusion.rule_of_folder(name) or "")
            elif pattern := self._exclusion.rule(name):
                yield Excluded(location, pattern)
            else:
                yield entry


def _name(location: str, root: str, listed: str | None = None) -> str:
    """Return the path of a file below its source, or its own name where it is the source; in a list, as named there."""
    if location == root:
        return os.path.basename(location) if listed is None else listed
    below = location[len(os.path.join(root, "")) :]
    return below if listed is None else os.path.join(listed, below)
