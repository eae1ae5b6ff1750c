"""Rank the images of a store by their similarity to a query.

In: query images or stored paths, and a store. Out: for each query its `Hit`s,
best first. Queries are embedded with the same engine, weights and
preprocessing as the store; `nearest` finds the hits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from rn50feat.engines import local
from rn50feat.engines.contract import EngineOptions, StartEngine
from rn50feat.errors import QueryError
from rn50feat.model.download import OnDownload
from rn50feat.searching import path_file
from rn50feat.searching.best import NO_ROWS, Rows
from rn50feat.searching.embed import embed_like
from rn50feat.searching.nearest import Nearest, open_index
from rn50feat.searching.queries import Box, Gathering, Given, Query, combined
from rn50feat.searching.scores import METRICS, Vectors, reaches
from rn50feat.sources.presence import State, state
from rn50feat.sources.reference import Reference
from rn50feat.store.reader import FeatureStore

# The number of queries that is embedded on the CPU unless a device is named: CUDA takes 6 s to start on an H100,
# longer than a CPU needs for them.
CPU_QUERIES = 64
OnFailure = Callable[[QueryError], None]
SUGGESTION_CUTOFF = 0.75  # similarity of two file names (difflib's ratio) for one to be suggested for the other
SUGGESTION_ROWS = 100_000  # that are searched for a suggestion


@dataclass(frozen=True)
class Hit:
    """A similar image.

    ``score`` is a cosine or an inner product (higher is nearer), or for l2 a
    Euclidean distance (lower is nearer). Scores within 1e-6 of each other are
    equal, and equal scores are ordered by ``id``. ``path`` is the stored path;
    ``location`` opens the image. ``state`` says whether a file with the
    extracted size and time is still there; objects in remote storage are
    ``unchecked`` unless requested. ``damage`` is what was wrong with the image
    when it was extracted, "" if nothing.
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
    """A query, as given, and its hits, best first; ``location`` opens the query's file, "" if there is none."""

    query: str
    hits: tuple[Hit, ...]
    location: str = ""


def search(
    queries: Iterable[Given] | Given,
    store: FeatureStore | str | os.PathLike[str],
    *,
    unlike: Iterable[Given] | Given = (),
    together: bool = False,
    box: Box | None = None,
    k: int = 10,
    metric: str = "cosine",
    min_score: float | None = None,
    exclude_self: bool = False,
    exact: bool = False,
    check: bool = False,
    weights_file: str | None = None,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    on_download: OnDownload = lambda done, total: None,
    on_failure: OnFailure | None = None,
) -> list[Result]:
    """Find the `k` most similar images in `store` for each image in `queries`.

    A query is a path (a folder stands for its images), a Pillow image, its
    pixels (uint8), or features (floats of shape (2048,)). With `together`, all
    of them are one query: their mean. The hits stay away from the images in
    `unlike`. `box`, (left, top, width, height) in pixels, is the part of each
    image in `queries` to search with.

    `metric` is cosine, l2 or ip; `min_score` drops hits below it (not for
    l2). `exclude_self` drops the query's own row: the one with its path or,
    if there is none, those with the same bytes. `exact` ignores the index and
    scans every row. `check` also checks hits in remote storage.

    `weights_file` is where the store's weights are if they have moved. Raises
    `QueryError` for a query that cannot be read, or passes it to `on_failure`
    and leaves that query out; `WeightsError` or `ProvenanceError` without the
    store's weights; `IndexingError` for an index that is damaged or another's.
    """
    _check(metric, min_score)
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    on_failure = None if together else on_failure  # the mean of other images would be another query
    with Gathering(store.provenance.preprocessing, options.max_megapixels * 1_000_000) as gathering:
        asked = _usable(gathering.queries(queries, box), on_failure)
        both = [*asked, *_usable(gathering.queries(unlike), None)]
        found = _embed(both, store, weights_file, options, start, on_download) if asked else []
    likes, avoided = _usable(found[: len(asked)], on_failure), _usable(found[len(asked) :], None)
    if not likes:
        return []
    names = [query.name for query in likes]
    vectors = combined(likes, avoided, metric, together=together)

    def work() -> list[list[_HitFile]]:
        own = _own_rows(likes, store, together=together) if exclude_self else [NO_ROWS] * len(vectors)
        return _rank(vectors, own, store, k, metric, min_score, exact)

    results = _results([" + ".join(names)] if together else names, store.steadily(work), check)
    return [replace(result, location=query.location) for result, query in zip(results, likes)]


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
    """Search like `search`, but for images that `store` holds, without reading their files.

    `paths` are stored paths, or locations of hits. Raises `QueryError` for others, with suggestions.
    """
    _check(metric, min_score)
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    names = [paths] if isinstance(paths, str) else list(paths)

    def work() -> list[list[_HitFile]]:
        rows = np.array(_rows_of(names, store), np.int64)
        store.require_sound(rows.tolist())
        own = [rows[i : i + 1] if exclude_self else NO_ROWS for i in range(len(rows))]
        return _rank(store.features(rows), own, store, k, metric, min_score, exact)

    return _results(names, store.steadily(work), check)


def _check(metric: str, min_score: float | None) -> None:
    """Raise `QueryError` for an unknown metric, and for a minimum score that no hit can reach."""
    if metric not in METRICS:
        raise QueryError(f"there is no metric {metric}: use one of {', '.join(METRICS)}")
    if min_score is None:
        return
    if metric == "l2":
        raise QueryError("--min-score needs a similarity, but l2 is a distance: use --metric cosine or ip")
    if not math.isfinite(min_score):
        raise QueryError(f"--min-score {min_score:g} is not a finite number: use one such as 0.9")
    if metric == "cosine" and min_score > 1:
        raise QueryError(f"--min-score {min_score:g} is more than any cosine: use at most 1, or --metric ip")


def _rows_of(names: Sequence[str], store: FeatureStore) -> list[int]:
    """Look up the rows of stored paths or locations; raise `QueryError` for others."""
    rows = path_file.rows_of(store, names)
    for name, row in zip(names, rows):
        if row is None:
            remedy = "use a path as rn50feat search -0 shows it"
            if suggestions := _suggestions(name, store):
                remedy = f"did you mean {' or '.join(suggestions)}?"
            raise QueryError(f"{store.path} has no image {name}: {remedy}")
    return [row for row in rows if row is not None]


def _suggestions(name: str, store: FeatureStore) -> list[str]:
    """Suggest up to three stored paths: with the same file name, or else with a similar one."""
    last = os.path.basename(name)
    similar: dict[str, str] = {}  # file name -> a path
    for first in range(0, min(len(store), SUGGESTION_ROWS), 8192):
        paths = store.paths(first, first + 8192)
        if same := [path for path in paths if os.path.basename(path) == last]:
            return same[:3]
        names = {os.path.basename(path): path for path in paths}
        similar |= {other: names[other] for other in get_close_matches(last, names, 3, SUGGESTION_CUTOFF)}
    return [similar[other] for other in get_close_matches(last, similar, 3, SUGGESTION_CUTOFF)]


def _embed(
    queries: Sequence[Query],
    store: FeatureStore,
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    on_download: OnDownload,
) -> list[Query | QueryError]:
    """Embed the files of queries; return each with its features, or why it has none."""
    files = {query.file.location: query for query in queries if query.file is not None}
    references = [query.file for query in files.values() if query.file is not None]
    if options.device == "auto" and len(queries) <= CPU_QUERIES:
        options = replace(options, device="cpu")
    found: dict[str, tuple[Reference, Vectors] | QueryError] = {}
    for batch in embed_like(store, references, weights_file, options, start, on_download=on_download) if files else ():
        for failed in batch.failures:
            name = files[failed.reference.location].name
            found[failed.reference.location] = QueryError(f"{name} {failed.reason}: use another image")
        found.update((ref.location, (ref, row)) for ref, row in zip(batch.references, batch.features))
    return [query if query.file is None else _embedded(query, found[query.file.location]) for query in queries]


def _embedded(query: Query, found: tuple[Reference, Vectors] | QueryError) -> Query | QueryError:
    return found if isinstance(found, QueryError) else replace(query, file=found[0], vector=found[1])


def _usable(queries: Iterable[Query | QueryError], on_failure: OnFailure | None) -> list[Query]:
    """Leave out what is no query, and pass it to `on_failure`, or raise it."""
    usable = []
    for query in queries:
        if isinstance(query, Query):
            usable.append(query)
        elif on_failure is None:
            raise query
        else:
            on_failure(query)
    return usable


def _own_rows(queries: Sequence[Query], store: FeatureStore, *, together: bool) -> list[Rows]:
    """Look up the rows of each query's file, none for a vector; those of all if they are one query `together`."""
    rows = iter(_rows_of_files([query.file for query in queries if query.file is not None], store))
    own = [NO_ROWS if query.file is None else next(rows) for query in queries]
    return [np.unique(np.concatenate(own))] if together else own


def _rows_of_files(references: Sequence[Reference], store: FeatureStore) -> list[Rows]:
    rows = path_file.rows_of(store, [reference.location for reference in references])
    digests = store.column("digest") if None in rows else np.empty((0, 16), np.uint8)
    return [
        np.flatnonzero((digests == np.frombuffer(reference.digest, np.uint8)).all(axis=1))
        if row is None
        else np.array([row])
        for row, reference in zip(rows, references)
    ]


_HitFile = tuple[Hit, Reference]  # a hit, and its file as it was when it was extracted


def _rank(
    queries: Vectors,
    own: Sequence[Rows],
    store: FeatureStore,
    k: int,
    metric: str,
    min_score: float | None,
    exact: bool,
) -> list[list[_HitFile]]:
    """Find the hits of `queries`, (m, 2048), without their `own` rows."""
    nearest = Nearest(store, metric, None if exact else open_index(store))
    damage = store.damage()
    rankings = nearest.find(queries, own, k)
    store.require_sound(row for rows, _ in rankings for row in rows.tolist())
    results = []
    for rows, scores in rankings:
        hits = []
        if min_score is not None:
            rows, scores = rows[reaches(scores, min_score)], scores[reaches(scores, min_score)]
        for rank, (row, score) in enumerate(zip(rows.tolist(), scores.tolist()), 1):
            (known,) = store.references(row, 1)
            number = int(store.column("ids", row, row + 1)[0])
            hit = Hit(rank, score, store.path_of(row), known.location, number, damage=damage.get(number, ""))
            hits.append((hit, known))
        results.append(hits)
    return results


def _results(names: Sequence[str], ranked: Sequence[Sequence[_HitFile]], check: bool) -> list[Result]:
    """Add the state of each hit's file: the disk may be slow, so this happens after the store is released."""
    return [
        Result(name, tuple(replace(hit, state=state(known, check=check)) for hit, known in hits))
        for name, hits in zip(names, ranked)
    ]
