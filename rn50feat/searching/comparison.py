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

from rn50feat.errors import QueryError
from rn50feat.searching.best import NO_ROWS, Best, Rows
from rn50feat.searching.distinct import DistinctFiles, KnownFile, StoredImage
from rn50feat.searching.duplicates import least_cosine, open_relations
from rn50feat.searching.exact import best_of
from rn50feat.searching.groups import Relation
from rn50feat.searching.many_queries import most
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

    @property
    def label(self) -> str:
        """The relation in words."""
        return self.relation or "near-identical"


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
    def total(self) -> int:
        """The number of images of the second store."""
        return len(self.found) + len(self.new) + len(self.uncompared)

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
    the pixels of near images, at most 16 for each image of `second`, and only
    those that come from each other count. It keeps relations next to `second`;
    `check` also reads images in remote storage for that. `on_progress` gets (stage, images done, in total).
    Raises `ProvenanceError` for features that cannot be compared, `QueryError`
    for two paths of one store, a threshold that is not a cosine above 0 and
    `verify` without OpenCV, and `StoreError` if rows are replaced or removed
    while this runs.
    """
    stores = [store if isinstance(store, FeatureStore) else FeatureStore(store) for store in (first, second)]
    _require_comparable(*stores, exact=exact)
    comparing = _Comparing(DistinctFiles(stores[0]), DistinctFiles(stores[1]), least_cosine(stores[1], threshold))
    comparing.take_copies()
    if not exact:
        with closing(open_relations(stores[1], check)) if verify else nullcontext() as relations:
            comparing.take_near(relations, on_progress)
    return comparing.finished()


def _require_comparable(first: FeatureStore, second: FeatureStore, *, exact: bool) -> None:
    if os.path.samefile(first.path, second.path):
        raise QueryError(f"{first.path} and {second.path} are one store: to find what it has twice, use duplicates")
    if not exact:
        remedy = "extract both in the same way, or use --exact, which compares no features"
        first.provenance.require_same(second.provenance, where=first.path, there=second.path, remedy=remedy)


@dataclass(frozen=True)
class _Found:
    """The row of the first store that a file of the second is, their cosine, and how they relate."""

    row: int
    similarity: float
    relation: Relation | None


class _Comparing:
    """What is known of the distinct files of the `second` store so far, by their rows."""

    def __init__(self, first: DistinctFiles, second: DistinctFiles, threshold: float) -> None:
        self._first, self._second, self._threshold = first, second, threshold
        self._rows = np.sort(first.order)
        self._found: dict[int, _Found] = {}
        self._uncompared: set[int] = set()

    def take_copies(self) -> None:
        """Find the files that have a copy in the first store."""
        self._found |= {row: _Found(copy, 1.0, "same bytes") for row, copy in self._second.same_bytes(self._first)}

    def take_near(self, relations: Relations | None, on_progress: Report) -> None:
        """Find near images for all other files, and compare their pixels if `relations` are given."""
        rows = np.setdiff1d(self._second.order, np.array(list(self._found), np.int64))
        k = 1 if relations is None else _CANDIDATES
        for start in range(0, len(rows), most(k)):
            part = rows[start : start + most(k)]

            def advance(scanned: int, start: int = start, size: int = len(part)) -> None:
                on_progress("comparing", start + size * scanned // len(self._rows), len(rows))

            near = self._near(part, k, advance)
            if relations is None:
                self._found |= {row: _Found(int(others[0]), float(scores[0]), None) for row, others, scores in near}
            else:
                self._take_related(near, relations, partial(on_progress, "comparing pixels"))

    def _near(self, part: Rows, k: int, on_block: Callable[[int], None]) -> list[tuple[int, Rows, Scores]]:
        """Return those of `part` that have near images in the first store, with up to `k` of these, nearest first."""
        with self._second.reading():
            queries = self._second.store.features(part)

        def work() -> list[Best]:
            with self._first.reading():
                own = [NO_ROWS] * len(part)
                return best_of(queries, own, self._first.store, self._first.ids, k, "cosine", self._rows, on_block)

        near = []
        for row, best in zip(part.tolist(), self._first.store.steadily(work)):
            others, scores = best.ranking()
            if not len(others) and len(self._rows):  # its features are not finite
                self._uncompared.add(row)
            reached = reaches(scores, self._threshold)
            if reached.any():
                near.append((row, others[reached][:k], scores[reached][:k]))
        return near

    def _take_related(
        self, near: list[tuple[int, Rows, Scores]], relations: Relations, on_progress: Callable[[int, int], None]
    ) -> None:
        """Compare the pixels of images with those that they are near; the first that is related is taken.

        `relations` are asked how the others come from the image, since it is decoded once then: both ways, a relation
        has the same name.
        """
        with self._first.reading():
            originals = self._first.known(np.concatenate([NO_ROWS, *(others for _, others, _ in near)]).tolist())
        with self._second.reading():
            images = self._second.known([row for row, _, _ in near])
        for done, (row, others, scores) in enumerate(near, 1):
            references = [originals[other].reference for other in others.tolist()]
            made = list(relations.of(images[row].reference, references))
            related = [i for i, one in enumerate(made) if one is not None and one.relation is not None]
            if related:
                best = made[related[0]]
                assert best is not None
                self._found[row] = _Found(int(others[related[0]]), float(scores[related[0]]), best.relation)
            elif None in made:
                self._uncompared.add(row)
            on_progress(done, len(near))

    def finished(self) -> Comparison:
        """Return the images of all files, with those of their copies."""
        first, second = self._first, self._second
        with first.reading():
            originals = first.known([found.row for found in self._found.values()])
        with second.reading():
            images = second.known(range(len(second.ids)))
        matches, new, uncompared = list[Match](), list[StoredImage](), list[StoredImage]()
        for row in second.order.tolist():
            copies = [images[copy] for copy in second.copies(row).tolist()]
            if (found := self._found.get(row)) is not None:
                matches += [_match(copy, originals[found.row], found) for copy in copies]
            else:
                others = uncompared if row in self._uncompared else new
                others += [copy.image for copy in copies]
        scores, ids = [match.similarity for match in matches], [match.image.id for match in matches]
        order, _ = in_order(np.array(scores), np.array(ids), "cosine")
        new.sort(key=lambda image: image.id)
        uncompared.sort(key=lambda image: image.id)
        return Comparison(tuple(matches[i] for i in order), tuple(new), tuple(uncompared))


def _match(image: KnownFile, original: KnownFile, found: _Found) -> Match:
    relation = found.relation
    if relation == "same bytes":
        own = identity(image.reference.location)
        if own is not None and own == identity(original.reference.location):
            relation = "same file"
    return Match(image.image, original.image, found.similarity, relation)
