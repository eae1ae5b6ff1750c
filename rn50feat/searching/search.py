"""Rank the pictures of a store by their similarity to a query.

In: pictures, or stored paths, and a store. Out: `Hit`s, the best first, for
each query. The queries are embedded by the same engine, weights and
preprocessing as the store, and looked for by `nearest`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from rn50feat.engines import local
from rn50feat.engines.contract import EngineOptions, StartEngine
from rn50feat.errors import QueryError, SourceError
from rn50feat.model.download import Told
from rn50feat.searching.embed import embed_like
from rn50feat.searching.exact import NO_ROWS, Rows
from rn50feat.searching.nearest import Nearest, open_index
from rn50feat.searching.scores import METRICS, Vectors, reaches
from rn50feat.sources import sources
from rn50feat.sources.presence import State, state
from rn50feat.sources.sources import Reference
from rn50feat.store.reader import FeatureStore, stored_path

# Queries that are computed on the CPU unless a device is named: CUDA takes 6 s to start on an H100, more than a
# CPU needs for them.
FEW = 64
ALIKE = 0.75  # of the letters of two file names, for one to be meant by the other
SPELLED_ROWS = 100_000  # among which a path is looked for that is spelled like one that is not there


@dataclass(frozen=True)
class Hit:
    """One similar picture.

    ``score`` is a cosine or an inner product, where more is nearer, or for
    l2 a Euclidean distance, where less is. Scores within 1e-6 of each other
    are equal, and equal ones are ordered by ``id``. ``path`` is the stored one;
    ``location`` opens the picture, and ``state`` tells whether a file of the
    size and time that the row was made from is there now; for an object in
    remote storage it is ``unchecked``, unless that was asked for. ``damage`` is what
    was wrong with the image when the row was made, "" for nothing.
    """

    rank: int
    score: float
    path: str
    location: str
    id: int
    state: State = "present"
    damage: str = ""


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
    exact: bool = False,
    check: bool = False,
    weights_file: str | None = None,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    on_download: Told = lambda done, total: None,
) -> list[Result]:
    """Return the `k` most similar pictures of `store` for each picture in `queries`.

    `metric` is cosine, l2 or ip; `min_score` drops hits below it (not for
    l2). `exclude_self` drops the query's own row: the one with its path or,
    where there is none, those with its very bytes. `exact` looks at every row
    even where there is an index. `check` asks remote storage about hits there.

    `weights_file` says where the store's weights are when they have moved.
    Raises `QueryError` for a query that cannot be read, `WeightsError` and
    `ProvenanceError` when the store's weights cannot be had, `IndexingError`
    for an index that is damaged or of another store.
    """
    _check(metric, min_score)
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    names = [os.fspath(q) for q in ([queries] if isinstance(queries, (str, os.PathLike)) else queries)]
    if not names:
        return []
    references, vectors = _embed(names, store, weights_file, options, start, on_download)

    def work() -> list[list[_Found]]:
        own = _own_rows(references, store) if exclude_self else [NO_ROWS] * len(references)
        return _rank(vectors, own, store, k, metric, min_score, exact)

    return _results(names, store.steadily(work), check)


def search_stored(
    paths: Iterable[str] | str,
    store: FeatureStore | str | os.PathLike[str],
    *,
    k: int = 10,
    metric: str = "cosine",
    min_score: float | None = None,
    exclude_self: bool = False,
    exact: bool = False,
    check: bool = False,
) -> list[Result]:
    """Return what `search` does for pictures that `store` holds, without touching their files.

    `paths` are stored ones, or the locations of hits. Raises `QueryError` for others, with those that may be meant.
    """
    _check(metric, min_score)
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    names = [paths] if isinstance(paths, str) else list(paths)

    def work() -> list[list[_Found]]:
        rows = np.array(_rows_of(names, store), np.int64)
        own = [rows[i : i + 1] if exclude_self else NO_ROWS for i in range(len(rows))]
        return _rank(store.features(rows), own, store, k, metric, min_score, exact)

    return _results(names, store.steadily(work), check)


def _check(metric: str, min_score: float | None) -> None:
    """Raise `QueryError` for a metric that is none, and for a least score that no hit can have."""
    if metric not in METRICS:
        raise QueryError(f"there is no metric {metric}: give one of {', '.join(METRICS)}")
    if min_score is None:
        return
    if metric == "l2":
        raise QueryError("--min-score is for similarities, and l2 is a distance: use --metric cosine or ip")
    if not math.isfinite(min_score):
        raise QueryError(f"--min-score {min_score:g} is no number: give one, 0.9 say")
    if metric == "cosine" and min_score > 1:
        raise QueryError(f"--min-score {min_score:g} is more than any cosine: give at most 1, or use --metric ip")


def _rows_of(names: Sequence[str], store: FeatureStore) -> list[int]:
    """Return the rows of stored paths, or of locations where a name is no stored path."""
    rows = store.rows_of(names)
    if None in rows:
        others = store.rows_of([stored_path(store.path, name) for name in names])
        rows = [other if row is None else row for row, other in zip(rows, others)]
    for name, row in zip(names, rows):
        if row is None:
            remedy = "give a path as rn50feat search shows it"
            if alike := _alike(name, store):
                remedy = f"did you mean {' or '.join(alike)}?"
            raise QueryError(f"{store.path} holds no picture {name}: {remedy}")
    return [row for row in rows if row is not None]


def _alike(name: str, store: FeatureStore) -> list[str]:
    """Return up to three stored paths that may be meant: by the same file name, else by one that is spelled alike."""
    last = os.path.basename(name)
    found: dict[str, str] = {}  # file name -> a path
    for first in range(0, min(len(store), SPELLED_ROWS), 8192):
        paths = store.paths(first, first + 8192)
        if same := [path for path in paths if os.path.basename(path) == last]:
            return same[:3]
        names = {os.path.basename(path): path for path in paths}
        found |= {other: names[other] for other in get_close_matches(last, names, 3, ALIKE)}
    return [found[other] for other in get_close_matches(last, found, 3, ALIKE)]


def _embed(
    names: Sequence[str],
    store: FeatureStore,
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    on_download: Told,
) -> tuple[list[Reference], Vectors]:
    """Return the references and features, (m, 2048), of query pictures."""
    references = [_reference(name) for name in names]
    if options.device == "auto" and len(references) <= FEW:
        options = replace(options, device="cpu")
    found: dict[str, tuple[Reference, Vectors]] = {}
    for batch in embed_like(store, references, weights_file, options, start, on_download=on_download):
        for failure in batch.failures:
            raise QueryError(f"{failure.reference.location} {failure.reason}: give another picture")
        found.update((ref.location, (ref, row)) for ref, row in zip(batch.references, batch.features))
    read = [found[reference.location] for reference in references]
    return [reference for reference, _ in read], np.stack([row for _, row in read])


def _reference(name: str) -> Reference:
    location = sources.locate(name)
    try:
        return sources.find(location)
    except SourceError as error:
        raise QueryError(f"{name} {error}: name an existing picture") from error


def _own_rows(references: Sequence[Reference], store: FeatureStore) -> list[Rows]:
    rows = store.rows_of([stored_path(store.path, reference.location) for reference in references])
    digests = store.column("digest")
    return [
        np.flatnonzero((digests == np.frombuffer(reference.digest, np.uint8)).all(axis=1))
        if row is None
        else np.array([row])
        for row, reference in zip(rows, references)
    ]


_Found = tuple[Hit, Reference]  # a hit, and its file as its row knows it


def _rank(
    queries: Vectors,
    own: Sequence[Rows],
    store: FeatureStore,
    k: int,
    metric: str,
    min_score: float | None,
    exact: bool,
) -> list[list[_Found]]:
    """Return the hits of `queries`, (m, 2048), without their `own` rows."""
    nearest = Nearest(store, metric, None if exact else open_index(store))
    facts = {name: store.column(name) for name in ("ids", "size", "mtime_ns")}
    damage = store.damage()
    results = []
    for rows, scores in nearest.find(queries, own, k):
        hits = []
        if min_score is not None:
            rows, scores = rows[reaches(scores, min_score)], scores[reaches(scores, min_score)]
        for rank, (row, score) in enumerate(zip(rows.tolist(), scores.tolist()), 1):
            path, number = store.path_of(row), int(facts["ids"][row])
            known = Reference(store.locate(path), int(facts["size"][row]), int(facts["mtime_ns"][row]))
            hit = Hit(rank, score, path, known.location, number, damage=damage.get(number, ""))
            hits.append((hit, known))
        results.append(hits)
    return results


def _results(names: Sequence[str], found: Sequence[Sequence[_Found]], check: bool) -> list[Result]:
    """Return results with the states of all files: a slow disk is asked when the store is no longer held."""
    return [
        Result(name, tuple(replace(hit, state=state(known, check=check)) for hit, known in hits))
        for name, hits in zip(names, found)
    ]
