"""Gather what ``info`` shows about a store, its index, and this machine's cache.

Takes a store and returns facts, ready for JSON; `report` puts them into words.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rn50feat.durable import caches
from rn50feat.errors import RN50FeatError

if TYPE_CHECKING:
    from rn50feat.store.reader import FeatureStore


def describe(store: FeatureStore, runs: int = 5) -> dict[str, Any]:
    """Describe a store, ready for JSON, with its last `runs` runs, newest first."""
    from rn50feat.store.damage_notes import damaged

    with store.reading():
        return {
            "rows": len(store),
            "dtype": str(store.dtype),
            "bytes": store.path.stat().st_size,
            "id": store.id,
            "provenance": json.loads(store.provenance.to_json()),
            "failures": len(store.failures()),
            "damaged": len(damaged(store)),
            "index": _index_of(store),
            "cache": _cache(),
            "runs": store.runs(-runs)[::-1],
        }


def _index_of(store: FeatureStore) -> dict[str, Any] | None:
    """Describe a store's index, or say why it cannot be used; return None if there is none."""
    from rn50feat.searching import index_file

    try:
        facts = index_file.read_facts(store.path)
        if facts is None:
            return None
        index_file.require_same(store, facts)
    except RN50FeatError as error:
        return {"error": str(error)}
    behind = int((store.column("ids") >= facts.next_id).sum())
    return {"file": str(index_file.faiss_path(store.path)), **facts.as_dict(), "behind": behind}


def _cache() -> dict[str, Any]:
    """Describe the cache of compiled networks: its folder (None without a home), their number and size in bytes."""
    found = caches.compiled()
    folder = caches.compiled_folder()
    return {
        "folder": folder and str(folder),
        "networks": len(found),
        "bytes": sum(status.st_size for _, status in found),
    }
