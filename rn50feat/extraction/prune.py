"""Find the rows whose pictures are gone.

In: a store, what a run looked at, and the rows that the run has met. Out: the
rows to remove, or a `PruneError` where their number suggests an unmounted
disk rather than deleted images. An image that has moved is not lost, and does
not count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import PruneError, SourceError, count
from rn50feat.sources import sources
from rn50feat.sources.presence import is_gone
from rn50feat.sources.selection import Selection
from rn50feat.store.reader import FeatureStore

LIMIT = 20.0  # percent of the rows under the sources


def check(selection: Selection, prune: bool) -> None:
    """Raise `SourceError` where a run that is to prune has a list: what a list leaves out is not gone."""
    if prune and selection.listing is not None:
        raise SourceError(
            "--prune removes what is gone from folders, and a list does not tell that: run it without --from-file,"
            " on the folders themselves"
        )


def gone(
    store: FeatureStore,
    selection: Selection,
    met: NDArray[np.bool_],
    *,
    limit: float,
    force: bool,
    arrived: Collection[int] = (),
) -> NDArray[np.int64]:
    """Return the rows, ascending, of pictures that `selection` covers and that are gone, or left out.

    `met` tells for each row whether the run met its picture; of the others,
    a row counts as gone only when its file surely is. A gone row is lost
    unless a row that stays has the same bytes (the image has moved), or, for
    a run that has not read its new files yet, one of those may have: `arrived`
    are their sizes. Raises `PruneError` when a source holds no file, or none
    that is not left out, or when more than `limit` percent of the covered
    rows would be lost, unless `force` is given. What a pattern leaves out
    does not count: it was asked for.
    """
    rows, left_out, under = [], [], 0
    with store.reading():
        for first in range(0, len(met), 8192):
            for row, path in enumerate(store.paths(first, min(first + 8192, len(met))), first):  # later rows are new
                location = store.locate(path)
                if not selection.covers(location):
                    continue
                if not met[row] and selection.rule(location):
                    left_out.append(row)
                    continue
                under += 1
                if not met[row] and is_gone(location):
                    rows.append(row)
        found = np.array(sorted(rows + left_out), np.int64)
        if not force:
            missing = np.array(rows, np.int64)
            lost = missing[_lost(store, missing, found, arrived)]
            _check_roots(store, selection, missing, lost)
            _check_limit(lost, missing, under, limit)
    return found


def _lost(
    store: FeatureStore, gone: NDArray[np.int64], leaving: NDArray[np.int64], arrived: Collection[int]
) -> NDArray[np.bool_]:
    """Tell for each of the `gone` rows whether its content goes with it, once the rows `leaving` are removed."""
    digests, sizes = store.column("digest"), store.column("size")[gone]
    contents = np.ascontiguousarray(digests).view("V16").reshape(-1)
    stays = np.ones(len(contents), bool)
    stays[leaving] = False
    unknown = ~digests[gone].any(axis=1)  # an import whose file was not there: zeros say nothing of its content
    survives = np.isin(contents[gone], contents[stays]) & ~unknown
    return ~survives & ~np.isin(sizes, np.fromiter(arrived, np.int64, len(arrived)))


def _check_roots(store: FeatureStore, selection: Selection, gone: NDArray[np.int64], lost: NDArray[np.int64]) -> None:
    """Raise `PruneError` for a source without any file, unless all of its images have moved elsewhere."""
    for root in selection.roots:
        if not selection.holds_any(root):
            lie = partial(_any_below, store, root)
            if lie(lost) or not lie(gone):
                empty = "empty" if next(sources.references([root]), None) is None else "empty but for what is excluded"
                raise PruneError(f"nothing was pruned: {root} is {empty}: mount it, or use --force if that is right")


def _any_below(store: FeatureStore, root: str, rows: NDArray[np.int64]) -> bool:
    below = frozenset([root])
    return any(sources.root_of(store.locate(store.path_of(row)), below) for row in rows.tolist())


def _check_limit(lost: NDArray[np.int64], gone: NDArray[np.int64], under: int, limit: float) -> None:
    if len(lost) > under * limit / 100:
        moved = f", not counting {len(gone) - len(lost)} that moved" if len(gone) > len(lost) else ""
        raise PruneError(
            f"nothing was pruned: {len(lost)} of the {count(under, 'row')} under these sources would go{moved},"
            f" more than {limit:g} %: use --force if that is right, or raise --prune-limit"
        )


def gone_failures(store: FeatureStore, paths: Sequence[str], selection: Selection) -> list[str]:
    """Return which stored paths of the ledger, covered by `selection`, belong to files that are gone, or left out."""
    locations = {path: store.locate(path) for path in paths}
    return [path for path, at in locations.items() if selection.covers(at) and (selection.rule(at) or is_gone(at))]
