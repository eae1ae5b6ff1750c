"""Find damaged rows, so that a run computes them again from their images.

A row is damaged when it differs from its checksum. Each run checks a part of
the rows, all of them within `RUNS` runs; a thorough one checks every row.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

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


def settle_damaged(
    session: WriteSession, catalogue: Catalogue, damaged: frozenset[int], met: NDArray[np.bool_]
) -> None:
    """Deal with `damaged` rows whose images the run has not found; `met` tells for each row, bool of shape (N,).

    A row goes if its path is that of no file, or of another row, and another
    row has the same bytes: its path was damaged, and its image has a new row
    by now. The others stay.
    """
    left = [row for row in sorted(damaged) if not met[row]]
    if not left:
        return
    store = FeatureStore(session.path)
    digests = np.ascontiguousarray(store.column("digest")).view("V16").reshape(-1)
    sound = np.delete(np.arange(len(digests)), sorted(damaged))
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
    session.remove(np.array(replaced, np.int64))
