"""Say which files a run looks at: folders, files, a list of either, or one share of all these.

In: sources, a list and a shard. Out: a stream of `Reference`s, each file
once, and the answer to which locations belong to the run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rn50feat.errors import SourceError
from rn50feat.places import archives, lists, sources
from rn50feat.places.remote import is_url
from rn50feat.places.sources import Reference

Sources = Iterable[str | os.PathLike[str]] | str | os.PathLike[str]


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
    by the names of files below their source, or in the list. Raises
    `SourceError` for sources that cannot be used.
    """

    def __init__(
        self,
        pictures: Sources,
        *,
        listing: str | os.PathLike[str] | None = None,
        null: bool = False,
        shard: Shard | None = None,
    ) -> None:
        if isinstance(pictures, (str, os.PathLike)):
            pictures = [pictures]
        self.roots = sources.roots(pictures)
        self._places = frozenset(self.roots)
        self.listing = None if listing is None else Path(listing)
        self._null = null
        self._shard = shard

    @classmethod
    def of(cls, pictures: Sources | Selection) -> Selection:
        """Return the selection of all of `pictures`, which may be one already."""
        return pictures if isinstance(pictures, Selection) else cls(pictures)

    def references(self) -> Iterator[Reference]:
        """Yield a `Reference` for each file, folders in sorted order; without `listing`, regular files only."""
        for entry in self._rooted(warn=True):
            if reference := sources.reference(entry):
                yield reference
        if self.listing is None:
            return
        met = lists.Names()
        for entry in self._listed(warn=True):
            location = os.fspath(entry)
            if sources.root_of(location, self._places) or not met.add(location):
                continue
            if reference := sources.reference(entry):
                yield reference
            elif isinstance(entry, str):
                yield Reference(location, -1, -1)

    def count(self) -> int | None:
        """Return how many files there are, about; None for a list that can be read but once, and for remote storage."""
        if any(map(is_url, self.roots)):  # a listing costs money there: one will do
            return None
        if self.listing is not None and not lists.can_be_read_again(self.listing):
            return None
        return sum(1 for _ in self._rooted(warn=False)) + sum(1 for _ in self._listed(warn=False))

    def covers(self, location: str) -> bool:
        """Tell whether a location lies below the folders and files of the run, and in its share."""
        root = sources.root_of(location, self._places)
        if root is None:
            return False
        place, _ = archives.split(location) or (location, "")  # the members of an archive are in one share
        return self._holds(_name(location if location == root else place, root))

    def _holds(self, name: str) -> bool:
        return self._shard is None or self._shard.holds(name)

    def _rooted(self, *, warn: bool) -> Iterator[os.DirEntry[str] | Reference | str]:
        for root in self.roots:
            for entry in sources.walk([root], warn=warn):
                if self._holds(_name(os.fspath(entry), root)):
                    yield entry

    def _listed(self, *, warn: bool) -> Iterator[os.DirEntry[str] | Reference | str]:
        """Yield the files of the list; what a list names is a string, what lies below a folder of it an entry."""
        if self.listing is None:
            return
        real = lru_cache(1024)(os.path.realpath)  # of the folders: 20 µs for each name of a list else
        for name in lists.names(self.listing, null=self._null):
            root = sources.locate(name, real)
            alone = is_url(root) or archives.split(root)  # what a list names there is one file
            for entry in [root] if alone else sources.walk([root], warn=warn):
                location = os.fspath(entry)
                if self._holds(name if location == root else os.path.join(name, _name(location, root))):
                    yield entry


def _name(location: str, root: str) -> str:
    """Return the path of a file below its source, or its own name where it is the source."""
    return os.path.basename(location) if location == root else location[len(os.path.join(root, "")) :]
