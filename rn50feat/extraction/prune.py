"""Find the rows whose images are gone, and remove them.

In: a store, the selection of a run, and the rows whose images the run has
found. Out: the rows that are gone, or a `PruneError` where their number
suggests an unmounted disk rather than deleted images. An image that has moved
is not lost, and does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rn50feat.errors import PruneError, SourceError, count
from rn50feat.extraction.todo import Todo
from rn50feat.sources.location import Location, archive_of, at
from rn50feat.sources.roots import root_of
from rn50feat.sources.selection import Selection
from rn50feat.store.reader import FeatureStore
from rn50feat.store.session import WriteSession

LIMIT = 20.0  # percent of the rows under the sources


def check(selection: Selection, prune: bool) -> None:
    """Raise `SourceError` for a run that is to prune and has a list: what a list leaves out is not gone."""
    if prune and selection.listing is not None:
        raise SourceError(
            "--prune removes what is gone from folders, and a list does not tell that: run it without --from-file,"
            " on the folders themselves"
        )


def prune(session: WriteSession, selection: Selection, todo: Todo, *, limit: float, force: bool) -> None:
    """Remove the rows and ledger entries of images that `todo` has not met and that are gone; see `gone`."""
    if (old := session.old) is None:
        return
    session.remove(gone(old, selection, todo.met, limit=limit, force=force))
    doubtful = [path for path in todo.failures if archive_of(path) not in todo.known]
    session.clear_failures(gone_failures(old, doubtful, selection))
    session.commit(ended=True)


def gone(
    store: FeatureStore,
    selection: Selection,
    met: NDArray[np.bool_],
    *,
    limit: float,
    force: bool,
    arrived: Collection[int] = (),
) -> NDArray[np.int64]:
    """Return the rows, ascending, of images that `selection` covers and that are gone, or excluded.

    `met` tells for each row, bool of shape (N,), whether the run found its
    image; of the others, a row counts as gone only when its file certainly
    is. A gone row is lost unless a row that stays has the same bytes (the
    image has moved) or, in a preview, which does not read new files, one of
    those may have: `arrived` has their sizes. Raises `PruneError` when a
    source holds no file, or only excluded ones, or when more than `limit`
    percent of the covered rows would be lost, unless `force` is set. What a
    pattern excludes does not count: that was asked for.
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
                if not met[row] and not at(location).exists():
                    rows.append(row)
        found = np.array(sorted(rows + left_out), np.int64)
        if not force:
            missing = np.array(rows, np.int64)
            _check_roots(store, selection, missing, missing[_lost(store, missing, len(met), arrived)])
            _check_limit(missing[_lost(store, missing, 0, arrived, found)], missing, under, limit)
    return found


def _lost(
    store: FeatureStore, gone: NDArray[np.int64], first: int, arrived: Collection[int], leaving: ArrayLike = ()
) -> NDArray[np.bool_]:
    """Check for each of the `gone` rows whether no row from `first` on has its content, except those `leaving`."""
    digests, sizes = store.column("digest"), store.column("size")[gone]
    contents = np.ascontiguousarray(digests).view("V16").reshape(-1)
    stays = np.arange(len(contents)) >= first
    stays[np.asarray(leaving, np.int64)] = False
    unknown = ~digests[gone].any(axis=1)  # an import whose file was not there: zeros say nothing about its content
    survives = np.isin(contents[gone], contents[stays]) & ~unknown
    return ~survives & ~np.isin(sizes, np.fromiter(arrived, np.int64, len(arrived)))


def _check_roots(store: FeatureStore, selection: Selection, gone: NDArray[np.int64], lost: NDArray[np.int64]) -> None:
    """Raise `PruneError` for a source without any file, unless all of its images have moved elsewhere in this run.

    Images that were elsewhere before are copies: an unmounted mirror has not moved.
    """
    for root in selection.roots:
        if not selection.holds_any(root):
            below = partial(_any_below, store, root)
            if below(lost) or not below(gone):
                empty = not selection.holds_any(root, excluded=True)
                cause = "is empty: mount it, or" if empty else "holds only what is excluded: change that, or"
                raise PruneError(f"nothing was pruned: {root.path} {cause} use --force if that is right")


def _any_below(store: FeatureStore, root: Location, rows: NDArray[np.int64]) -> bool:
    below = frozenset([root.path])
    return any(root_of(store.locate(store.path_of(row)), below) for row in rows.tolist())


def _check_limit(lost: NDArray[np.int64], gone: NDArray[np.int64], under: int, limit: float) -> None:
    if len(lost) > under * limit / 100:
        moved = f", not counting {len(gone) - len(lost)} that moved" if len(gone) > len(lost) else ""
        raise PruneError(
            f"nothing was pruned: {len(lost)} of the {count(under, 'row')} under these sources would go{moved},"
            f" more than {limit:g} %: use --force if that is right, or raise --prune-limit"
        )


def gone_failures(store: FeatureStore, paths: Sequence[str], selection: Selection) -> list[str]:
    """Return which stored paths of the ledger, covered by `selection`, belong to files that are gone, or excluded."""
    locations = {path: store.locate(path) for path in paths}
    return [
        path
        for path, location in locations.items()
        if selection.covers(location) and (selection.rule(location) or not at(location).exists())
    ]
