"""Keep the layout of a map next to its store, so that images stay where they were.

In: a store. Out: a position for each row, in the file ``out.map`` next to
``out.h5``: a NumPy archive (.npz) of ids, positions, and the projection that
places later rows. A row that was laid out once keeps its position, bit for
bit. Positions can be computed again, so a file that is damaged, or belongs to
another store or another history of it, is replaced.
"""

from __future__ import annotations

import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable.atomic import written
from rn50feat.durable.disk import open_regular
from rn50feat.errors import IndexingError, QueryError
from rn50feat.searching.projection import (
    DIMENSIONS,
    Projection,
    Report,
    Single,
    beside,
    evenly,
    open_tsne,
    principal,
    tsne,
)
from rn50feat.store.layout import WIDTH
from rn50feat.store.reader import FeatureStore

logger = logging.getLogger(__name__)

Method = Literal["pca", "tsne"]
METHODS: tuple[Method, ...] = ("pca", "tsne")
_OLD = 20_000  # rows that new ones are placed between
_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """Positions ``xy``, float32 (n, 2), of the rows with these ``ids``, int64 (n,), ascending."""

    ids: NDArray[np.int64]
    xy: Single
    method: Method
    projection: Projection

    def has_any(self, ids: NDArray[np.int64]) -> bool:
        """Check whether any of the rows with these `ids` has a position."""
        return bool(np.isin(self.ids, ids).any())

    def at(self, ids: NDArray[np.int64]) -> Single:
        """Return the positions of rows by their `ids`: (m, 2), NaN for rows without one."""
        if not len(self.ids):
            return np.full((len(ids), 2), np.nan, np.float32)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where((self.ids[place] == ids)[:, None], self.xy[place], np.float32(np.nan))


@dataclass(frozen=True)
class LaidOut:
    """A layout that is up to date; how many rows it has ``added`` and ``removed``, and whether it is ``built`` anew."""

    layout: Layout
    built: bool
    added: int
    removed: int


def map_path(store: Path) -> Path:
    """Return the path of the layout of a store."""
    return store.with_suffix(".map")


def lay_out(
    store: FeatureStore,
    *,
    method: Method | None = None,
    rebuild: bool = False,
    on_progress: Report = lambda stage, done, total: None,
) -> LaidOut:
    """Bring the layout of `store` up to date, and save it.

    `method` is by default that of the layout, or else PCA; another one than
    the layout's, or `rebuild`, lays out all rows anew. Raises `QueryError` for
    a store without rows, and `IndexingError` if openTSNE is missing or the
    file cannot be written.
    """
    if not len(store):
        raise QueryError(f"{store.path} has no rows, so there is nothing to map: extract images into it first")
    known = load(store)
    method = method or (known.method if known else "pca")
    if known is not None and not rebuild and known.method == method and known.has_any(store.column("ids")):
        done = store.steadily(lambda: _extended(store, known, on_progress))
    else:
        if method == "tsne":
            open_tsne()  # raises now, not after the work
        done = store.steadily(lambda: _fresh(store, method, on_progress))
    if done.built or done.added or done.removed:
        _save(store, done.layout)
    return done


def _fresh(store: FeatureStore, method: Method, on_progress: Report) -> LaidOut:
    ids = store.column("ids")
    order = np.argsort(ids, kind="stable")
    projection = principal(store, order, min(DIMENSIONS[method], len(ids) + 1))
    points = projection.apply(store, order, lambda done: on_progress("laying out", done, len(ids)))
    xy = points[:, :2] if method == "pca" else tsne(points, on_progress)
    return LaidOut(Layout(ids[order], np.ascontiguousarray(xy), method, projection), True, len(ids), 0)


def _extended(store: FeatureStore, known: Layout, on_progress: Report) -> LaidOut:
    """Drop the positions of rows that are gone, and place those that are new."""
    ids = store.column("ids")
    order = np.argsort(ids, kind="stable")
    xy = known.at(ids[order])
    new = np.flatnonzero(np.isnan(xy[:, 0]))
    if len(new):
        project = known.projection.apply
        points = project(store, order[new], lambda done: on_progress("laying out", done, len(new)))
        old = np.flatnonzero(~np.isnan(xy[:, 0]))
        if known.method == "pca":
            xy[new] = points[:, :2]
        else:
            old = old[evenly(len(old), _OLD)]
            xy[new] = beside(project(store, order[old], lambda done: None), xy[old], points)
    removed = len(known.ids) - (len(ids) - len(new))
    return LaidOut(Layout(ids[order], xy, known.method, known.projection), False, len(new), removed)


def load(store: FeatureStore) -> Layout | None:
    """Read the layout of `store`; None, with a warning, for one that does not belong to it or is damaged."""
    path = map_path(store.path)
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            layout = Layout(arrays["ids"], arrays["xy"], facts["method"], Projection(arrays["mean"], arrays["axes"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IndexingError(
            f"{path} cannot be read ({error.strerror or error}): remove it, and run map again"
        ) from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        logger.warning("%s is damaged: map lays out all rows anew", path)
        return None
    if facts.get("version") != _VERSION or not _is_whole(layout):
        logger.warning("%s is damaged: map lays out all rows anew", path)
        return None
    with store.reading():
        if facts.get("store") != store.id or facts.get("mark") not in ("", *store.history()):
            logger.warning("%s belongs to another store or another history of it: map lays out all rows anew", path)
            return None
    return layout


def _is_whole(layout: Layout) -> bool:
    arrays: list[tuple[NDArray[Any], type[np.generic], tuple[int, ...]]] = [
        (layout.ids, np.int64, (len(layout.ids),)),
        (layout.xy, np.float32, (len(layout.ids), 2)),
        (layout.projection.mean, np.float32, (WIDTH,)),
        (layout.projection.axes, np.float32, (len(layout.projection.axes), WIDTH)),
    ]
    return (
        layout.method in METHODS
        and all(array.dtype == kind and array.shape == shape for array, kind, shape in arrays)
        and all(bool(np.isfinite(array).all()) for array, _, _ in arrays)
        and bool((np.diff(layout.ids) > 0).all())
    )


def _save(store: FeatureStore, layout: Layout) -> None:
    mark = (store.history(-1) or [""])[0]
    facts = {"version": _VERSION, "store": store.id, "mark": mark, "method": layout.method}
    with written([map_path(store.path)], kind=IndexingError) as (file,):
        np.savez(
            file,
            facts=np.array(json.dumps(facts)),
            ids=layout.ids,
            xy=layout.xy,
            mean=layout.projection.mean,
            axes=layout.projection.axes,
        )
