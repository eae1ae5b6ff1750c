"""Find out which images of one store are in another.

In: two stores with features of one provenance. Out: a `Comparison`: the images
of the second that are in the first, each with the one there that it is most
similar to, and those that are not. Copies are found by their digests. All
other files are compared with every row of the first store, in blocks, so that
no pair is missed and memory does not grow with their product.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.errors import ProvenanceError, QueryError
from rn50feat.searching.best import NO_ROWS, Ranking, Rows
from rn50feat.searching.crowd import most
from rn50feat.searching.distinct import DistinctFiles, KnownFile, StoredImage
from rn50feat.searching.duplicates import default_threshold, open_relations
from rn50feat.searching.exact import best_of
from rn50feat.searching.groups import Relation
from rn50feat.searching.scores import Scores, in_order, reaches
from rn50feat.sources.presence import identity
from rn50feat.store.reader import FeatureStore

if TYPE_CHECKING:
    from rn50feat.searching.relations import Relations

_CANDIDATES = 16  # images of the first store with which the pixels of an image are compared
Report = Callable[[str, int, int], None]  # gets (stage, images done, images in total)


@dataclass(frozen=True)
class Match:
    """An ``image`` of the second store that is in the first, as ``original``, and their cosine.

    ``relation`` is "same file" for two paths to one file, "same bytes" for a
    copy, that of the pixels if they were compared, and else None.
    """

    image: StoredImage
    original: StoredImage
    similarity: float
    relation: Relation | None = None

    @property
    def is_copy(self) -> bool:
        """Whether both files had the same bytes when they were extracted."""
        return self.relation in ("same file", "same bytes")


@dataclass(frozen=True)
class Comparison:
    """The images of the second store: those ``found`` in the first, most similar first, and the ``new`` ones.

    ``uncompared`` are neither: their pixels, or those of the images they are
    near, could not be read, or their features are not finite.
    """

    found: tuple[Match, ...]
    new: tuple[StoredImage, ...]
    uncompared: tuple[StoredImage, ...] = ()

    @property
    def copies(self) -> int:
        """The number of images found that are copies."""
        return sum(match.is_copy for match in self.found)


def compare(
    first: FeatureStore | str | os.PathLike[str],
    second: FeatureStore | str | os.PathLike[str],
    *,
    threshold: float | None = None,
    exact: bool = False,
    verify: bool = False,
    check: bool = False,
    on_progress: Report = lambda stage, done, total: None,
) -> Comparison:
    """Find the images of the store `second` that are in `first`.

    An image is in `first` if that has a file with the same bytes, or one whose
    cosine with it is at least `threshold`, by default
    `duplicates.default_threshold`. `exact` finds only copies. `verify` compares
    the pixels of near images, of at most 16 for each one of `second`, and only
    those that come from each other count; `check` also reads images in remote
    storage for that. `on_progress` gets (stage, images done, in total).
    Raises `ProvenanceError` for features that cannot be compared, `QueryError`
    for two paths of one store, a threshold that is not a cosine above 0 and
    `verify` without OpenCV, and `StoreError` if rows are replaced or removed
    while this runs.
    """
    stores = [store if isinstance(store, FeatureStore) else FeatureStore(store) for store in (first, second)]
    _require_comparable(*stores, exact=exact)
    threshold = default_threshold(stores[1]) if threshold is None else threshold
    if not 0 < threshold <= 1:
        raise QueryError(f"the threshold {threshold:g} is not a similarity: use one above 0 and at most 1")
    comparing = _Comparing(DistinctFiles(stores[0]), DistinctFiles(stores[1]), threshold)
    comparing.take_copies()
    if not exact:
        with closing(open_relations(stores[1], check)) if verify else nullcontext() as relations:
            comparing.take_near(relations, on_progress)
    return comparing.finished()


def _require_comparable(first: FeatureStore, second: FeatureStore, *, exact: bool) -> None:
    if os.path.samefile(first.path, second.path):
        raise QueryError(f"{first.path} and {second.path} are one store: to find what it has twice, use duplicates")
    difference = first.provenance.difference(second.provenance)
    if difference and not exact:
        name, own, other = difference
        raise ProvenanceError(
            f"{first.path} holds features with {name} {own}, {second.path} with {other}:"
            " extract both in the same way, or use --exact, which compares no features"
        )


class _Comparing:
    """What is known of the distinct files of the `second` store so far, by rows."""

    def __init__(self, first: DistinctFiles, second: DistinctFiles, threshold: float) -> None:
        self._first, self._second, self._threshold = first, second, threshold
        self._found: dict[int, tuple[int, float, Relation | None]] = {}  # rows of the first store, and how they relate
        self._uncompared: set[int] = set()

    def take_copies(self) -> None:
        """Find the files that have a copy in the first store."""
        for row, copy in self._second.same_bytes(self._first):
            self._found[row] = copy, 1.0, "same bytes"

    def take_near(self, relations: Relations | None, on_progress: Report) -> None:
        """Find near images for all other files, and compare their pixels if `relations` are given."""
        rows = np.setdiff1d(self._second.order, np.array(list(self._found), np.int64))
        k = 1 if relations is None else _CANDIDATES
        for start in range(0, len(rows), most(k)):
            part = rows[start : start + most(k)]
            scanned = partial(_scanned, on_progress, start, len(part), len(rows), len(self._first.order))
            for done, (row, ranked) in enumerate(zip(part.tolist(), self._ranked(part, k, scanned)), 1):
                self._take(row, *ranked, relations)
                if relations is not None:
                    on_progress("comparing pixels", start + done, len(rows))

    def _ranked(self, part: Rows, k: int, on_block: Callable[[int], None]) -> list[Ranking]:
        """Return the `k` rows of the first store that are most similar to each of a `part` of the second."""
        with self._second.reading():
            queries = self._second.store.features(part)
        with self._first.reading():
            store, ids, rows = self._first.store, self._first.ids, np.sort(self._first.order)
            bests = best_of(queries, [NO_ROWS] * len(part), store, ids, k, "cosine", rows, on_block)
        return [best.ranking() for best in bests]

    def _take(self, row: int, rows: Rows, scores: Scores, relations: Relations | None) -> None:
        """Note which of the most similar `rows` of the first store an image of the second is, if any."""
        if not len(rows) and len(self._first.order):
            self._uncompared.add(row)
        near = reaches(scores, self._threshold)
        rows, scores = rows[near][:_CANDIDATES], scores[near][:_CANDIDATES]
        if not len(rows):
            return
        if relations is None:
            self._found[row] = int(rows[0]), float(scores[0]), None
            return
        with self._first.reading(), self._second.reading():
            originals, image = self._first.known(rows.tolist()), self._second.known([row])[row]
        made = list(relations.of(image.reference, [originals[original].reference for original in rows.tolist()]))
        for original, score, one in zip(rows.tolist(), scores.tolist(), made):
            if one is not None and one.relation is not None:
                self._found[row] = original, score, one.relation
                return
        if None in made:
            self._uncompared.add(row)

    def finished(self) -> Comparison:
        """Return the images of all files, with those of their copies."""
        first, second = self._first, self._second
        with first.reading(), second.reading():
            originals = first.known([row for row, _, _ in self._found.values()])
            images = second.known(range(len(second.ids)))
        found, other = list[Match](), {True: list[StoredImage](), False: list[StoredImage]()}
        for row in second.order.tolist():
            for copy in second.copies(row).tolist():
                if row in self._found:
                    original, similarity, relation = self._found[row]
                    found.append(_match(images[copy], originals[original], similarity, relation))
                else:
                    other[row in self._uncompared].append(images[copy].image)
        order, _ = in_order(np.array([m.similarity for m in found]), np.array([m.image.id for m in found]), "cosine")
        new, uncompared = (tuple(sorted(other[key], key=lambda image: image.id)) for key in (False, True))
        return Comparison(tuple(found[i] for i in order), new, uncompared)


def _scanned(on_progress: Report, start: int, size: int, total: int, all_rows: int, scanned: int) -> None:
    on_progress("comparing", start + size * scanned // all_rows, total)


def _match(image: KnownFile, original: KnownFile, similarity: float, relation: Relation | None) -> Match:
    if relation == "same bytes":
        own = identity(image.reference.location)
        if own is not None and own == identity(original.reference.location):
            relation = "same file"
    return Match(image.image, original.image, similarity, relation)
