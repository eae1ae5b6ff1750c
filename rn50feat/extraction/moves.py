"""Recognise images that only moved: their rows keep ids and features.

In: the digest of a new file. Out: a row with that digest whose own file is
certainly gone, and did not just become invisible with an unmounted disk. In
doubt there is none, and the image is taken for a copy: it gets a row of its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from rn50feat.extraction.catalogue import Catalogue
from rn50feat.sources.location import at
from rn50feat.sources.roots import root_of
from rn50feat.sources.selection import Selection
from rn50feat.store.reader import FeatureStore

_BLOCK = 1024  # paths to read at once, 2 ms: images that move together mostly have neighbouring rows


class Moves:
    """The rows that can still move in a run: each moves once."""

    def __init__(self, store: FeatureStore, selection: Selection, catalogue: Catalogue) -> None:
        self._store, self._selection, self._catalogue = store, selection, catalogue
        self._roots = {root.path: root for root in selection.roots}
        self._copies: dict[bytes, Iterator[int]] = {}  # of images with several rows, the rows not looked at yet
        self._paths = lru_cache(64)(self._read_paths)
        self._holds_any = lru_cache(None)(lambda root: selection.holds_any(self._roots[root]))

    def origin(self, digest: bytes) -> int | None:
        """Return a row whose image has moved to a new file with `digest`, None if there is none; note the move."""
        rows = self._copies.get(digest)
        if rows is None:
            found = self._catalogue.rows_of_copies(digest)
            rows = iter(found)
            if len(found) > 1:  # or 10,000 identical images would be looked at for each new one
                self._copies[digest] = rows
        row = next((row for row in rows if self._is_gone(row)), None)
        if row is not None:
            self._catalogue.note_moved(row)
        return row

    def _is_gone(self, row: int) -> bool:
        """Check whether a row's image belongs to this run and is gone, by the rules of `prune`."""
        if self._catalogue.met[row]:
            return False
        location = self._store.locate(self._paths(row // _BLOCK)[row % _BLOCK])
        root = root_of(location, self._roots)
        if root is None or not self._selection.covers(location) or self._selection.rule(location):
            return False
        return not at(location).exists() and self._holds_any(root)

    def _read_paths(self, block: int) -> list[str]:
        return self._store.paths(block * _BLOCK, (block + 1) * _BLOCK)
