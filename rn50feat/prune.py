"""Find the rows whose pictures are gone.

In: a store, what a run looked at, and the rows that the run has met. Out: the
rows to remove, or a `PruneError` where their number smells of an unmounted
disk rather than of deleted pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import PruneError, SourceError
from rn50feat.places import sources
from rn50feat.places.selection import Selection
from rn50feat.presence import is_gone
from rn50feat.store import FeatureStore

LIMIT = 20.0  # percent of the rows under the sources


def check(selection: Selection, prune: bool) -> None:
    """Raise `SourceError` where a run that is to prune has a list: what a list leaves out is not gone."""
    if prune and selection.listing is not None:
        raise SourceError(
            "--prune removes what is gone from folders, and a list does not tell that: run it without --from-file,"
            " on the folders themselves"
        )


def gone(
    store: FeatureStore, selection: Selection, met: NDArray[np.bool_], *, limit: float, force: bool
) -> NDArray[np.int64]:
    """Return the rows, ascending, of pictures that `selection` covers and that are gone, or left out.

    `met` tells for each row whether the run met its picture; of the others,
    a row counts as gone only when its file surely is. Raises `PruneError`
    when a source holds no file, or none that is not left out, or when more
    than `limit` percent of the covered rows would go, unless `force` is
    given. What a pattern leaves out does not count: it was asked for.
    """
    if not force:
        for root in selection.roots:
            if not selection.holds_any(root):
                empty = "empty" if next(sources.references([root]), None) is None else "empty but for what is excluded"
                raise PruneError(f"nothing was pruned: {root} is {empty}: mount it, or use --force if that is right")
    rows, left_out, under = [], [], 0
    with store.reading():
        for first in range(0, len(met), 8192):
            for row, path in enumerate(store.paths(first, min(first + 8192, len(met))), first):  # later rows are new
                location = store.locate(path)
                if not selection.covers(location):
                    continue
                if selection.rule(location):
                    left_out.append(row)
                    continue
                under += 1
                if not met[row] and is_gone(location):
                    rows.append(row)
    if not force and len(rows) > under * limit / 100:
        raise PruneError(
            f"nothing was pruned: {len(rows)} of the {under} rows under these sources would go, more than"
            f" {limit:g} %: use --force if that is right, or raise --prune-limit"
        )
    return np.array(sorted(rows + left_out), np.int64)


def gone_failures(store: FeatureStore, paths: Sequence[str], selection: Selection) -> list[str]:
    """Return which stored paths of the ledger, covered by `selection`, belong to files that are gone, or left out."""
    locations = {path: store.locate(path) for path in paths}
    return [path for path, at in locations.items() if selection.covers(at) and (selection.rule(at) or is_gone(at))]
