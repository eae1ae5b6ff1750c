"""Keep a Qdrant collection in step with a store; the only module that imports its client.

Takes a store and the location of Qdrant, and gives the collection a point for
each row, under the row's id. Ids are never reused, and a changed image gets a
new one, so that the points to send and to delete are the difference of two
sets of ids and paths, one read from the collection itself. Nothing has to be
remembered elsewhere, and the next sync completes one that was killed. Each
point records its store, and the store's last commit when the point was sent:
ids of another store, or of another history of this one (after a backup was
restored, for example), mean other images.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ExchangeError
from rn50feat.exchange.export import watched
from rn50feat.extraction.catalogue import path_key
from rn50feat.sources import lists
from rn50feat.store.layout import WIDTH
from rn50feat.store.reader import FeatureStore
from rn50feat.store.snapshot import Snapshot

logger = logging.getLogger(__name__)

PAGE = 10_000  # ids to list or delete in one request
REQUEST = 8_000_000  # bytes of JSON to send in one request, at most; a server accepts 32 MB
_NUMBER = 25  # bytes of a number as JSON, at most
TIMEOUT = 60  # seconds for one request
_NOT_IN_NAMES = '/\\<>:"|?*'  # characters that a server rejects in a collection's name


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
    """Give a Qdrant collection the rows of `store`, and no others.

    `url` is a server, whose key is in ``QDRANT_API_KEY``, or a folder for the
    client's local mode, for trying things out. `collection` is the name of the
    store's file unless given; it is created if needed, with cosine distance. A
    point's payload is the store's id, the stored path, the digest and the
    store's last commit. Points of another history of the store are replaced.
    Points of another store are an error, or deleted if `overwrite` is set.
    Raises `ExchangeError`, and `StoreError` if rows of the store move
    meanwhile; the next sync continues from there.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    name = collection or store.path.stem
    _check(url, name)
    with _connected(url) as (client, models):
        _prepare(client, models, name, store.id, overwrite)
        with store.reading():
            snapshot, rows = Snapshot(store), _rows(store)
        replaced = _settle_history(client, models, name, snapshot)
        (present, points), mark = _points(client, name), {"mark": snapshot.history[-1]} if snapshot.history else {}
        lacking = ~np.isin(rows, points)  # or at the path that an image had before it moved
        surplus = np.setdiff1d(present, snapshot.ids)
        total = int(lacking.sum())
        for block in watched(snapshot.blocks(lacking), total, on_stage):
            facts = [
                {"store": store.id, "path": lists.readable(path), "digest": reference.known_digest.hex(), **mark}
                for path, reference in zip(block.paths, block.references)
            ]
            for part in _requests(block.paths):
                _upsert(client, models, name, block.ids[part], block.features[part], facts[part], server="://" in url)
        for at in range(0, len(surplus), PAGE):
            client.delete(name, models.PointIdsList(points=surplus[at : at + PAGE].tolist()), wait=True)
    return Sync(total, len(surplus) + replaced, len(snapshot) - total)


def _requests(paths: Sequence[str]) -> Iterator[slice]:
    """Split the rows of `paths` by the bytes of their points."""
    ends = np.cumsum([WIDTH * _NUMBER + 6 * len(path) + 200 for path in paths])  # up to 6 bytes for an escaped sign
    bounds = [*np.flatnonzero(np.diff(ends // REQUEST, prepend=0)).tolist(), len(paths)]
    return (slice(first, last) for first, last in zip([0, *bounds], bounds) if first < last)


def _upsert(
    client: Any,
    models: ModuleType,
    name: str,
    ids: NDArray[np.int64],
    features: NDArray[np.floating[Any]],
    facts: list[dict[str, str]],
    *,
    server: bool,
) -> None:
    """Send points; float16 to a server as text from a table: 6,600 rows per CPU second, where the client has 3,600."""
    if server and features.dtype == np.float16:
        rows = "],[".join(map(",".join, _texts()[features.view(np.uint16)].tolist()))
        text = f'{{"batch":{{"ids":{ids.tolist()},"vectors":[[{rows}]],"payloads":{json.dumps(facts)}}}}}'
        client.http.client.request(
            type_=dict,
            method="PUT",
            url="/collections/{collection_name}/points",
            path_params={"collection_name": name},
            params={"wait": "true"},
            headers={"Content-Type": "application/json"},
            content=text.encode(),
        )
        return
    vectors = features.astype(np.float32).tolist()
    client.upsert(name, models.Batch(ids=ids.tolist(), vectors=vectors, payloads=facts), wait=True)


@cache
def _texts() -> NDArray[np.object_]:
    """Return each float16, by its bits, as JSON that is exact in float32; null for NaN and infinity."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return np.array([str(value) if np.isfinite(value) else "null" for value in values], object)


def _check(url: str, name: str) -> None:
    """Raise `ExchangeError` if `url` cannot be Qdrant's, or `name` cannot be a collection's."""
    if not url:
        raise ExchangeError("the location of Qdrant is empty: give a server's URL, or a folder")
    if re.fullmatch(r"[^/]+:\d{1,5}/?", url) and not os.path.isdir(url):
        server = shown(f"http://{url}")
        raise ExchangeError(f"{server.removeprefix('http://')} looks like a server: give {server}")
    if os.path.isfile(url):
        raise ExchangeError(f"{url} is a file: give a Qdrant server's URL, or a folder")
    if "://" not in url and url.endswith((".npy", ".csv", ".parquet", ".h5", ".hdf5")):
        raise ExchangeError(f"{url} is named like a file: leave out --to, or give a server's URL or a folder")
    if name in (".", "..") or any(sign in name for sign in _NOT_IN_NAMES):
        raise ExchangeError(
            f"{name} cannot be a collection's name: use --collection with a name without any of {_NOT_IN_NAMES}"
        )


@contextmanager
def _connected(url: str) -> Iterator[tuple[Any, ModuleType]]:
    """Yield a client and its models; report its errors, of many kinds, in one line."""
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
            # To find out whether threads may share its database, the client opens another one and never closes it.
            # Only this thread uses it.
            client = QdrantClient(path=url, force_disable_check_same_thread=True)
        with closing(client):
            yield client, models
    except (ApiException, OSError, RuntimeError, ValueError) as error:
        # The text of an unexpected response is the whole page that a server sent.
        text = f"{error.status_code} {error.reason_phrase}" if isinstance(error, UnexpectedResponse) else str(error)
        reason = " ".join(text.split())[:300] or type(error).__name__
        raise ExchangeError(f"{shown(url)}: {reason}: check Qdrant's URL and QDRANT_API_KEY") from error


def shown(url: str) -> str:
    """Remove user and password from a URL."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _prepare(client: Any, models: ModuleType, name: str, store: str, overwrite: bool) -> None:
    """Create the collection, or check whether it belongs to this store."""
    if not client.collection_exists(name):
        # A search reads 2 kB a row from memory, and only the best rows from the disk. One bit per dimension would say
        # nothing: features are never negative.
        vectors = models.VectorParams(size=WIDTH, distance=models.Distance.COSINE, on_disk=True)
        integers = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        quantized = models.ScalarQuantization(scalar=integers)
        client.create_collection(name, vectors_config=vectors, quantization_config=quantized)
        return
    vectors = client.get_collection(name).config.params.vectors
    if not isinstance(vectors, models.VectorParams) or vectors.size != WIDTH:
        raise ExchangeError(f"collection {name} does not hold vectors of {WIDTH}: name another with --collection")
    own = models.FieldCondition(key="store", match=models.MatchValue(value=store))
    others = models.Filter(must_not=[own])
    if not client.count(name, count_filter=others, exact=True).count:
        return
    if not overwrite:
        raise ExchangeError(
            f"collection {name} has points of another store: name another with --collection, or use"
            " --overwrite, which deletes them"
        )
    client.delete(name, models.FilterSelector(filter=others), wait=True)


def _settle_history(client: Any, models: ModuleType, name: str, snapshot: Snapshot) -> int:
    """Delete the points that were sent after a commit that the store does not have, and return their number.

    Points from versions without marks are taken to be the store's own, and get its last mark.
    """
    unmarked = models.IsEmptyCondition(is_empty=models.PayloadField(key="mark"))
    known = [models.FieldCondition(key="mark", match=models.MatchAny(any=snapshot.history))] if snapshot.history else []
    strangers = models.Filter(must_not=[unmarked, *known])
    if count := int(client.count(name, count_filter=strangers, exact=True).count):
        logger.warning(
            "%d points in %s are from another history of %s and are replaced", count, name, snapshot.store.path
        )
        client.delete(name, models.FilterSelector(filter=strangers), wait=True)
    old = models.Filter(must=[unmarked])
    if snapshot.history and client.count(name, count_filter=old, exact=True).count:
        client.set_payload(name, {"mark": snapshot.history[-1]}, models.FilterSelector(filter=old), wait=True)
    return count


def _rows(store: FeatureStore) -> NDArray[np.void]:
    """Return a key for each row's id and path."""
    ids, blocks = store.column("ids").tolist(), range(0, len(store), PAGE)
    paths = (path for first in blocks for path in store.paths(first, first + PAGE))
    return _keys(zip(ids, map(lists.readable, paths)))


def _keys(named: Iterable[tuple[int, str]]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(number.to_bytes(8, "big") + path_key(path) for number, path in named), "V24")


def _points(client: Any, name: str) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """List the ids of all points, and the keys of their ids and paths."""
    ids, keys, offset = [np.empty(0, np.int64)], [np.empty(0, "V24")], None
    while True:
        points, offset = client.scroll(name, limit=PAGE, offset=offset, with_payload=["path"], with_vectors=False)
        ids.append(np.array([point.id for point in points], np.int64))
        keys.append(_keys((point.id, (point.payload or {}).get("path", "")) for point in points))
        if offset is None:
            return np.concatenate(ids), np.concatenate(keys)
