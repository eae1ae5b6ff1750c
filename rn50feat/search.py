"""Rank the pictures of a store by their similarity to a query.

In: pictures, or stored paths, and a store. Out: `Hit`s, the best first, for
each query. The queries are embedded by the same engine, weights and
preprocessing as the store; the scan is exact, block by block, in memory that
does not grow with the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rn50feat import sources
from rn50feat.embedding import embed_like
from rn50feat.engines import EngineOptions, StartEngine, local
from rn50feat.errors import QueryError
from rn50feat.sources import Reference
from rn50feat.store import FeatureStore, stored_path

METRICS = ("cosine", "l2", "ip")
Vectors = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]
_NONE: Rows = np.empty(0, np.int64)


@dataclass(frozen=True)
class Hit:
    """One similar picture.

    ``score`` is a cosine or an inner product, where more is nearer, or for
    l2 a Euclidean distance, where less is. ``path`` is the stored one;
    ``location`` opens the picture; ``state`` tells whether its file is still
    the one that the row was made from.
    """

    rank: int
    score: float
    path: str
    location: str
    id: int
    state: Literal["present", "missing", "changed"] = "present"


@dataclass(frozen=True)
class Result:
    """A query, as it was given, and its hits, the best first."""

    query: str
    hits: tuple[Hit, ...]


def search(
    queries: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    store: FeatureStore | str | os.PathLike[str],
    *,
    k: int = 10,
    metric: str = "cosine",
    min_score: float | None = None,
    exclude_self: bool = False,
    weights_file: str | None = None,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    progress: bool = False,
) -> list[Result]:
    """Return the `k` most similar pictures of `store` for each picture in `queries`.

    `metric` is cosine, l2 or ip; `min_score` drops hits below it (not for
    l2). `exclude_self` drops the query's own row: the one with its path or,
    where there is none, those with its very bytes.
    `weights_file` says where the store's weights are when they have moved.
    Raises `QueryError` for a query that cannot be read, `WeightsError` and
    `ProvenanceError` when the store's weights cannot be had.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    names = [os.fspath(q) for q in ([queries] if isinstance(queries, (str, os.PathLike)) else queries)]
    if not names:
        return []
    references, vectors = _embed(names, store, weights_file, options, start, progress)
    with store.reading():
        own = _own_rows(references, store) if exclude_self else [_NONE] * len(references)
        return _rank(names, vectors, own, store, k, metric, min_score)


def search_stored(
    paths: Iterable[str],
    store: FeatureStore | str | os.PathLike[str],
    *,
    k: int = 10,
    metric: str = "cosine",
    min_score: float | None = None,
    exclude_self: bool = False,
) -> list[Result]:
    """Return what `search` does for pictures that `store` holds, by stored path, without touching their files."""
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    names = list(paths)
    with store.reading():
        found = store.rows_of(names)
        for name, row in zip(names, found):
            if row is None:
                raise QueryError(f"{store.path} holds no picture {name}: give a path as rn50feat search shows it")
        rows = np.array(found, np.int64)
        own = [rows[i : i + 1] if exclude_self else _NONE for i in range(len(rows))]
        return _rank(names, store.features(rows), own, store, k, metric, min_score)


def _embed(
    names: Sequence[str],
    store: FeatureStore,
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    progress: bool,
) -> tuple[list[Reference], Vectors]:
    """Return the references and features, (m, 2048), of query pictures."""
    references = [_reference(name) for name in names]
    found: dict[str, tuple[Reference, Vectors]] = {}
    for batch in embed_like(store, references, weights_file, options, start, progress=progress):
        for failure in batch.failures:
            raise QueryError(f"{failure.reference.location} {failure.reason}: give another picture")
        found.update((ref.location, (ref, row)) for ref, row in zip(batch.references, batch.features))
    read = [found[reference.location] for reference in references]
    return [reference for reference, _ in read], np.stack([row for _, row in read])


def _reference(name: str) -> Reference:
    try:
        status = os.stat(name)
    except OSError as error:
        raise QueryError(f"{name}: {error.strerror}: name an existing picture") from error
    if not stat.S_ISREG(status.st_mode):
        raise QueryError(f"{name} is no regular file: name a picture")
    return Reference(sources.locate(Path(name)), status.st_size, status.st_mtime_ns)


def _own_rows(references: Sequence[Reference], store: FeatureStore) -> list[Rows]:
    rows = store.rows_of([stored_path(store.path, reference.location) for reference in references])
    digests = store.column("digest")
    return [
        np.flatnonzero((digests == np.frombuffer(reference.digest, np.uint8)).all(axis=1))
        if row is None
        else np.array([row])
        for row, reference in zip(rows, references)
    ]


def _rank(
    names: Sequence[str],
    queries: Vectors,
    own: Sequence[Rows],
    store: FeatureStore,
    k: int,
    metric: str,
    min_score: float | None,
) -> list[Result]:
    """Return the hits of `queries`, (m, 2048), without their `own` rows."""
    if metric not in METRICS:
        raise QueryError(f"there is no metric {metric}: give one of {', '.join(METRICS)}")
    if metric == "l2" and min_score is not None:
        raise QueryError("--min-score is for similarities, and l2 is a distance: use --metric cosine or ip")
    ids = store.column("ids")
    results = []
    for name, (rows, scores) in zip(names, scan(queries, own, store, k, metric)):
        kept = [(int(row), float(score)) for row, score in zip(rows, scores) if min_score is None or score >= min_score]
        paths = [store.path_of(row) for row, _ in kept]
        hits = (
            Hit(rank, score, path, store.locate(path), int(ids[row]))
            for rank, ((row, score), path) in enumerate(zip(kept, paths), 1)
        )
        results.append(Result(name, tuple(hits)))
    return results


def scan(
    queries: Vectors, own: Sequence[Rows], store: FeatureStore, k: int, metric: str
) -> list[tuple[Rows, NDArray[np.float64]]]:
    """Return the rows and scores, the best first, of the `k` best rows for each of `queries`, (m, 2048).

    Equal scores stand in the order of their rows. Every row is looked at, in
    blocks; `own` rows are left out.
    """
    wanted = _unit(queries) if metric == "cosine" else np.asarray(queries, np.float32)
    block = max(64, min(4096, (1 << 22) // max(1, len(queries))))  # at most 16 MB of scores
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for first, features in store.blocks(block):
        nearness = _nearness(wanted, features, metric)
        for i, excluded in enumerate(own):
            inside = excluded[(excluded >= first) & (excluded < first + len(features))]
            nearness[i, inside - first] = -np.inf
        best = np.concatenate([best, nearness], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(first, first + len(features)), nearness.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    kept = [row[score > -np.inf] for row, score in zip(rows, best)]
    return [_exactly(query, row, store, metric) for query, row in zip(queries, kept)]


def _unit(vectors: Vectors) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = np.array(vectors, np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit


def _nearness(queries: NDArray[np.float32], features: Vectors, metric: str) -> NDArray[np.float32]:
    """Return (m, n) numbers that order rows as `metric` does, more being nearer."""
    rows = _unit(features) if metric == "cosine" else np.asarray(features, np.float32)
    nearness: NDArray[np.float32] = queries @ rows.T
    if metric == "l2":  # -|q - f|^2, less |q|^2, which is the same for all rows
        nearness = 2 * nearness - np.einsum("ij,ij->i", rows, rows)
    return nearness


def _exactly(query: Vectors, rows: Rows, store: FeatureStore, metric: str) -> tuple[Rows, NDArray[np.float64]]:
    """Return `rows` and their scores in double precision, ordered by these: float32 leaves ties in doubt."""
    features, vector = store.features(rows).astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        scores = np.linalg.norm(features - vector, axis=1)
    else:
        scores = features @ vector
    if metric == "cosine":
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(vector)
        scores = np.clip(scores / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    order = np.lexsort((rows, scores if metric == "l2" else -scores))
    return rows[order], scores[order]
