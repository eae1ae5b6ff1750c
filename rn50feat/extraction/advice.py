"""Notice that a run's images have moved here from a place outside its sources.

In: the store after a run, most of whose images were copies of rows. Out: where
they were before, if it is one place and no image is there any more. Their new
rows are second ones, and `relocate` makes the old ones take their places.
Takes 16 bytes of memory per row, and looks at the places of a sample.
"""

from __future__ import annotations

import os
import re
from collections import Counter

import numpy as np

from rn50feat.extraction.relocate import Move, survey
from rn50feat.sources.location import archive_of, at
from rn50feat.sources.selection import Selection
from rn50feat.store.reader import FeatureStore
from rn50feat.store.summary import MovedFrom, Summary

LEAST = 10  # images that moved, and half of those found: fewer are not worth a note
_SAMPLE = 1000  # copies whose places are compared


def moved_from(store: FeatureStore, selection: Selection, rows: int, summary: Summary) -> MovedFrom | None:
    """Return where most images of a run were before, None if it is not one place; the store had `rows` rows then."""
    if not _enough(summary.reused - summary.moved, summary):
        return None
    with store.reading():
        folders = _folders(store, selection, rows)
        moves: Counter[tuple[str, str]] = Counter()
        for (old, new), inner in folders.items():
            common = os.path.commonpath(inner) if all(inner) else ""
            moves[old + common.rstrip("/"), new + common.rstrip("/")] += len(inner)
        if not moves:
            return None
        (old, new), _ = moves.most_common(1)[0]
        plan = survey(store, Move(old, new))
    return MovedFrom(len(plan.gone), old, new) if old and _enough(len(plan.gone), summary) and not plan.still else None


def _enough(images: int, summary: Summary) -> bool:
    return images >= LEAST and 2 * images >= summary.found


def _folders(store: FeatureStore, selection: Selection, rows: int) -> dict[tuple[str, str], list[str]]:
    """Return by where copies were, and are now, the folders in both, for images that are gone from where they were."""
    contents = np.ascontiguousarray(store.column("digest")).view("V16").reshape(-1)
    _, before, now = np.intersect1d(contents[:rows], contents[rows:], return_indices=True)
    some = np.unique(np.linspace(0, len(before), _SAMPLE, endpoint=False).astype(np.int64))[: len(before)]
    found: dict[tuple[str, str], list[str]] = {}
    for was, is_now in zip(before[some].tolist(), (now[some] + rows).tolist()):
        old, new = (store.locate(store.path_of(row)) for row in (was, is_now))
        inner = _common_end(old, new)
        if inner and not (selection.covers(old) or at(old).needs_network or at(old).exists()):
            start = old[: -len(inner)]
            folder = os.path.dirname(archive_of(old) or old)[len(start) :]
            found.setdefault((start, new[: -len(inner)]), []).append(folder)
    return found


def _common_end(old: str, new: str) -> str:
    """Return the whole names that two locations end in alike, with the separator before them."""
    length = len(os.path.commonprefix([old[::-1], new[::-1]]))  # noqa: RUF071 - cut to whole names below
    match = re.search("/|::", old[len(old) - length :])
    return old[len(old) - length + match.start() :] if match else ""
