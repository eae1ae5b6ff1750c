"""Keep a collection of Qdrant in step with a store; the only module that imports its client.

In: a store, and where Qdrant is. Out: a collection with a point for each row,
under the row's id. Ids are never used twice, and a changed picture gets a new
one: what the collection lacks and what it has too much is the difference of
two sets of ids, asked of the collection itself. So nothing has to be
remembered beside it, and a sync that was killed is gone on with by the next.
The points say which store they are of, and the last commit that it had when
they were sent: ids of another store, or of another history of this one (a
backup that was restored, say), mean other pictures.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ExchangeError
from rn50feat.exchange.export import watched
from rn50feat.sources import lists
from rn50feat.store.layout import WIDTH
from rn50feat.store.reader import FeatureStore
from rn50feat.store.snapshot import Snapshot

logger = logging.getLogger(__name__)

PAGE = 10_000  # ids that are asked for, or deleted, at once
UPSERT = 128  # points that are sent at once: 3 MB of JSON; a server takes 32 MB
TIMEOUT = 60  # seconds for one request
_NOT_IN_NAMES = '/\\<>:"|?*'  # what a server takes in no name of a collection


@dataclass(frozen=True)
class Sync:
    """What a sync did, in points."""

    upserted: int
    deleted: int
    unchanged: int


def sync(
    store: FeatureStore | str | os.PathLike[str],
    url: str,
    *,
    collection: str | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Sync:
    """Give a collection of Qdrant the rows of `store`, and no others.

    `url` is that of a server, whose key is in ``QDRANT_API_KEY``, or a folder
    for the client's local mode, for trying things out. `collection` is named
    as the store's file unless given, and made where there is none, for
    cosines. A point has the id of its store, the stored path, the digest and
    the store's last commit for payload. Points of another history of the store
    are replaced. Points of another store are an error, unless `overwrite` is
    given: then they go. Raises `ExchangeError`, and `StoreError` when rows of
    the store move meanwhile; a second sync goes on from there.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    name = collection or store.path.stem
    _check(url, name)
    with _connected(url) as (client, models):
        _prepare(client, models, name, store.id, overwrite)
        snapshot = Snapshot(store)
        replaced = _settle_history(client, models, name, snapshot)
        present, mark = _ids(client, name), {"mark": snapshot.history[-1]} if snapshot.history else {}
        lacking = ~np.isin(snapshot.ids, present)
        surplus = np.setdiff1d(present, snapshot.ids)
        total = int(lacking.sum())
        for block in watched(snapshot.blocks(lacking), total, on_stage):
            facts = [
                {"store": store.id, "path": lists.readable(path), "digest": reference.known_digest.hex(), **mark}
                for path, reference in zip(block.paths, block.references)
            ]
            for at in range(0, len(facts), UPSERT):
                part = slice(at, at + UPSERT)
                vectors = block.features[part].astype(np.float32).tolist()
                points = models.Batch(ids=block.ids[part].tolist(), vectors=vectors, payloads=facts[part])
                client.upsert(name, points, wait=True)
        for at in range(0, len(surplus), PAGE):
            client.delete(name, models.PointIdsList(points=surplus[at : at + PAGE].tolist()), wait=True)
    return Sync(total, len(surplus) + replaced, len(snapshot) - total)


def _check(url: str, name: str) -> None:
    """Raise `ExchangeError` for a place that is none, and for a name that no collection can have."""
    if not url:
        raise ExchangeError("the place of Qdrant is empty: give the URL of a server, or a folder")
    if re.fullmatch(r"[^/]+:\d{1,5}/?", url) and not os.path.isdir(url):
        server = shown(f"http://{url}")
        raise ExchangeError(f"{server.removeprefix('http://')} looks like a server: give {server}")
    if os.path.isfile(url):
        raise ExchangeError(f"{url} is a file: give the URL of a Qdrant server, or a folder")
    if "://" not in url and url.endswith((".npy", ".csv", ".parquet", ".h5", ".hdf5")):
        raise ExchangeError(f"{url} is named like a file: leave --to out, or give the URL of a server or a folder")
    if name in (".", "..") or any(sign in name for sign in _NOT_IN_NAMES):
        raise ExchangeError(
            f"{name} cannot be the name of a collection: give one without any of {_NOT_IN_NAMES} with --collection"
        )


@contextmanager
def _connected(url: str) -> Iterator[tuple[Any, ModuleType]]:
    """Yield a client and its models; tell in one line of what it raises, which is of many kinds."""
    try:
        from qdrant_client import QdrantClient, models
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse
    except ImportError as error:
        raise ExchangeError("Qdrant needs its client: pip install 'rn50feat[qdrant]'") from error
    try:
        if "://" in url:
            key = os.environ.get("QDRANT_API_KEY")
            client = QdrantClient(url=url, api_key=key, timeout=TIMEOUT, check_compatibility=False)
        else:
            # To find out whether threads may share its database the client opens another, and never closes it;
            # no thread but this one uses it.
            client = QdrantClient(path=url, force_disable_check_same_thread=True)
        with closing(client):
            yield client, models
    except (ApiException, OSError, RuntimeError, ValueError) as error:
        # An unexpected response has the whole page that a server answered with in its text.
        told = f"{error.status_code} {error.reason_phrase}" if isinstance(error, UnexpectedResponse) else str(error)
        reason = " ".join(told.split())[:300] or type(error).__name__
        raise ExchangeError(f"{shown(url)}: {reason}: is this where Qdrant is, and does it take the key?") from error


def shown(url: str) -> str:
    """Return a URL without the user and password in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _prepare(client: Any, models: ModuleType, name: str, store: str, overwrite: bool) -> None:
    """Make the collection, or look whether it is one for this store."""
    if not client.collection_exists(name):
        vectors = models.VectorParams(size=WIDTH, distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=vectors)
        return
    vectors = client.get_collection(name).config.params.vectors
    if not isinstance(vectors, models.VectorParams) or vectors.size != WIDTH:
        raise ExchangeError(f"collection {name} is not one of vectors of {WIDTH}: name another with --collection")
    own = models.FieldCondition(key="store", match=models.MatchValue(value=store))
    others = models.Filter(must_not=[own])
    if not client.count(name, count_filter=others, exact=True).count:
        return
    if not overwrite:
        raise ExchangeError(
            f"collection {name} has points of another store: name another with --collection, or give"
            " --overwrite, which deletes them"
        )
    client.delete(name, models.FilterSelector(filter=others), wait=True)


def _settle_history(client: Any, models: ModuleType, name: str, snapshot: Snapshot) -> int:
    """Delete the points that were sent after a commit that the store does not have, and return their number.

    Points from before there were marks are taken for the store's own, and get its last one.
    """
    unmarked = models.IsEmptyCondition(is_empty=models.PayloadField(key="mark"))
    known = [models.FieldCondition(key="mark", match=models.MatchAny(any=snapshot.history))] if snapshot.history else []
    strangers = models.Filter(must_not=[unmarked, *known])
    if count := int(client.count(name, count_filter=strangers, exact=True).count):
        logger.warning(
            "%d points in %s are of another history of %s: they are replaced", count, name, snapshot.store.path
        )
        client.delete(name, models.FilterSelector(filter=strangers), wait=True)
    old = models.Filter(must=[unmarked])
    if snapshot.history and client.count(name, count_filter=old, exact=True).count:
        client.set_payload(name, {"mark": snapshot.history[-1]}, models.FilterSelector(filter=old), wait=True)
    return count


def _ids(client: Any, name: str) -> NDArray[np.int64]:
    """Return the ids of all points."""
    pages, offset = [np.empty(0, np.int64)], None
    while True:
        points, offset = client.scroll(name, limit=PAGE, offset=offset, with_payload=False, with_vectors=False)
        pages.append(np.array([point.id for point in points], np.int64))
        if offset is None:
            return np.concatenate(pages)
