"""Find damaged rows, so that a run computes them again from their images; remove rows that others replace.

A row is damaged when it differs from its checksum. Each run checks a part of
the rows, all of them within `RUNS` runs; a thorough one checks every row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from rn50feat.errors import count
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.sources.location import at
from rn50feat.store.checksums import BLOCK
from rn50feat.store.reader import FeatureStore
from rn50feat.store.session import WriteSession

logger = logging.getLogger(__name__)

RUNS = 30  # within which every row is checked
LEAST = 1000  # rows that every run checks: 5 ms


def damaged_rows(store: FeatureStore, *, thorough: bool) -> frozenset[int]:
    """Return the damaged rows among those that this run checks, every row if it is `thorough`."""
    total = len(store)
    first, rows = 0, total
    if not thorough and total > LEAST:
        rows = max(LEAST, -(-total // RUNS))
        first = store.layout()["runs"].shape[0] * rows % total
    found: list[int] = []
    for start in range(first, first + rows, BLOCK):  # around the end, and on from the first row
        found += store.wrong_rows(start % total, min(BLOCK, first + rows - start))
    if found:
        logger.warning(
            "%s has %s (%s): computed again where the image is found",
            store.path,
            count(len(found), "damaged row"),
            store.path_of(min(found)),
        )
    return frozenset(found)


def settle_damaged(session: WriteSession, catalogue: Catalogue, damaged: frozenset[int]) -> None:
    """Remove rows that other rows replace, at the end of a run: `damaged` ones, and second rows of images."""
    doubles = catalogue.doubles()
    if doubles:
        logger.warning(
            "%s: removed %s of images that have another one (%s), as an older version of rn50feat may have left them",
            session.path,
            count(len(doubles), "row"),
            FeatureStore(session.path).path_of(doubles[0]),
        )
    replaced = _replaced(session, catalogue, sorted(damaged.difference(doubles)))
    session.remove(np.array(sorted({*doubles, *replaced}), np.int64))


def _replaced(session: WriteSession, catalogue: Catalogue, damaged: Sequence[int]) -> list[int]:
    """Return which of the `damaged` rows, whose images the run has not found, have another row by now; name the others.

    That is so if its path is that of no file, or of another row, and another
    row has the same bytes: its path was damaged, and its image has a new row.
    """
    left = [row for row in damaged if not catalogue.met[row]]
    if not left:
        return []
    store = FeatureStore(session.path)
    digests = np.ascontiguousarray(store.column("digest")).view("V16").reshape(-1)
    sound = np.delete(np.arange(len(digests)), damaged)
    replaced = [
        row
        for row in left
        if digests[row].tobytes().strip(b"\0")
        and np.isin(digests[row : row + 1], digests[sound]).all()
        and (catalogue.row(path := store.path_of(row)) != row or not at(store.locate(path)).exists())
    ]
    if stays := [store.path_of(row) for row in left if row not in replaced]:
        logger.warning(
            "%s of %s could not be computed again, since no image was found (%s): name its folder, or use --prune",
            count(len(stays), "damaged row"),
            session.path,
            stays[0],
        )
    return replaced
