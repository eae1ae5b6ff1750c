"""Project rows into few dimensions, so that they can be drawn.

In: the rows of a store. Out: a `Projection` on their principal components, and
coordinates; or, with openTSNE, positions in which neighbours stay together.
Rows count by their direction, as for cosines. Memory does not grow with the
store, but for a few numbers per row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable.limits import cores
from rn50feat.errors import IndexingError
from rn50feat.searching.best import Rows
from rn50feat.searching.exact import prepared
from rn50feat.store.layout import WIDTH
from rn50feat.store.reader import FeatureStore

Single = NDArray[np.float32]
Report = Callable[[str, int, int], None]  # gets (stage, rows done, rows in all)
DIMENSIONS = {"pca": 2, "tsne": 50}  # that rows are projected to; t-SNE then goes on to 2
SAMPLE = 16_384  # rows whose principal components stand for those of all: 2 s of a core
_FITTED = 20_000  # rows that t-SNE lays out, in a few minutes; the others are placed next to them
_FEW = 5000  # rows that one thread lays out faster than several
_ROUNDS = 750  # of t-SNE: openTSNE's own number
_EVERY = 25  # rounds from one report to the next
_BLOCK = 1024
_STEPS = 30  # of the iteration
_SPARE = 8  # more axes, which make the iteration faster
_NEAREST = 5  # neighbours that a row is placed between


@dataclass(frozen=True)
class Projection:
    """The `mean` of some rows, (2048,), and their principal `axes`, (d, 2048), the longest first."""

    mean: Single
    axes: Single

    def apply(self, store: FeatureStore, rows: Rows, on_progress: Callable[[int], None]) -> Single:
        """Project `rows` of an open store: (n, d)."""
        placed = np.empty((len(rows), len(self.axes)), np.float32)
        for start, unit in _blocks(store, rows):
            placed[start : start + len(unit)] = (unit - self.mean) @ self.axes.T
            on_progress(start + len(unit))
        return placed


def _blocks(store: FeatureStore, rows: Rows) -> Iterator[tuple[int, Single]]:
    """Yield rows of length 1, block by block, zero for damaged ones with NaN or infinity."""
    for start in range(0, len(rows), _BLOCK):
        unit = prepared(store.features(rows[start : start + _BLOCK]), "cosine")
        yield start, np.where(np.isfinite(unit).all(axis=1, keepdims=True), unit, np.float32(0))
        store.give_way()


def evenly(count: int, most: int) -> Rows:
    """Choose at most `most` of `count` rows, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def principal(store: FeatureStore, rows: Rows, dimensions: int) -> Projection:
    """Find the principal axes of an open store's rows, from a sample of `rows`."""
    pivot: Single | None = None  # the mean of some, so that little is lost where all rows are alike
    sums, products, count = np.zeros(WIDTH), np.zeros((WIDTH, WIDTH)), 0
    for _, unit in _blocks(store, rows[evenly(len(rows), SAMPLE)]):
        pivot = unit.mean(axis=0) if pivot is None else pivot
        centred = unit - pivot
        sums += centred.sum(axis=0, dtype=np.float64)
        products += centred.T @ centred
        count += len(unit)
    assert pivot is not None
    mean = sums / count
    axes = _largest(products / count - np.outer(mean, mean), dimensions)
    return Projection((pivot + mean).astype(np.float32), axes.astype(np.float32))


def _largest(matrix: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the eigenvectors of the largest eigenvalues of a symmetric matrix, (count, n), by subspace iteration."""
    space = np.random.default_rng(0).normal(size=(len(matrix), count + _SPARE))
    for _ in range(_STEPS):
        space, _ = np.linalg.qr(matrix @ space)
    _, turned = np.linalg.eigh(space.T @ matrix @ space)
    vectors = (space @ turned[:, ::-1][:, :count]).T
    signs = np.sign(vectors[np.arange(count), np.abs(vectors).argmax(axis=1)])
    return np.asarray(vectors * signs[:, None])


def tsne(points: Single, on_progress: Report) -> Single:
    """Lay out `points`, (n, d), so that neighbours stay together: (n, 2); raise `IndexingError` without openTSNE."""
    library = open_tsne()
    if len(points) < 5:
        return points[:, :2]
    some = evenly(len(points), _FITTED)

    done = 0

    def report(*_: Any) -> None:  # openTSNE counts its rounds from 0 again when it is half done
        nonlocal done
        done += _EVERY
        on_progress("t-SNE", min(done, _ROUNDS) * len(some) // _ROUNDS, len(some))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = library.TSNE(
            perplexity=min(30.0, (len(some) - 1) / 3),
            metric="euclidean",
            n_jobs=cores() if len(some) > _FEW else 1,
            random_state=0,
            callbacks=report,
            callbacks_every_iters=_EVERY,
        ).fit(points[some])
    placed = np.empty((len(points), 2), np.float32)
    placed[some] = made if np.isfinite(made).all() else points[some, :2]  # equal points have no neighbourhoods
    rest = np.setdiff1d(np.arange(len(points)), some)
    placed[rest] = beside(points[some], placed[some], points[rest])
    return placed


def open_tsne() -> ModuleType:
    """Import openTSNE; raise `IndexingError` if it is not installed."""
    try:
        import openTSNE
    except ImportError as error:
        raise IndexingError("--method tsne needs openTSNE: pip install 'rn50feat[map]'") from error
    library: ModuleType = openTSNE
    return library


def beside(points: Single, places: Single, new: Single) -> Single:
    """Place `new` points, (m, d), between the `places`, (n, 2), of the nearest of `points`, (n, d)."""
    placed = np.empty((len(new), 2), np.float32)
    squares = np.einsum("ij,ij->i", points, points)
    size, count = max(1, (1 << 24) // len(points)), min(_NEAREST, len(points))
    for start in range(0, len(new), size):
        block = new[start : start + size]
        apart = squares - 2 * block @ points.T + np.einsum("ij,ij->i", block, block)[:, None]
        near = np.argpartition(apart, count - 1, axis=1)[:, :count]
        # A copy has the place of its original.
        weights = 1 / (np.maximum(np.take_along_axis(apart, near, axis=1), 0) + 1e-6 * squares.mean() + 1e-30)
        weights /= weights.sum(axis=1, keepdims=True)
        placed[start : start + size] = np.einsum("ij,ijk->ik", weights, places[near])
    return placed
