"""ResNet50 features for folders of pictures, and similar pictures found by them.

The doors of the library::

    extract(pictures, store)     give every picture a row in a store
    search(queries, store)       the most similar pictures of a store
    index(store)                 build its FAISS index, or bring it up to date
    duplicates(store)            groups of near-identical pictures
    merge(stores, store)         bring the rows of several stores into one
    export(store, file)          write rows for other programs
    import_features(file, store) take in those of other programs
    verify(store)                check that a store is what it should be
    FeatureStore(path)           read a store

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "EngineOptions",
    "FeatureStore",
    "RN50FeatError",
    "Selection",
    "Shard",
    "duplicates",
    "export",
    "extract",
    "import_features",
    "index",
    "merge",
    "search",
    "verify",
]

if TYPE_CHECKING:
    from rn50feat.duplicates import duplicates
    from rn50feat.engines import EngineOptions
    from rn50feat.errors import RN50FeatError
    from rn50feat.exchange.export import export
    from rn50feat.exchange.importing import import_features
    from rn50feat.exchange.merge import merge
    from rn50feat.extract import extract
    from rn50feat.indexing.index import index
    from rn50feat.places.selection import Selection, Shard
    from rn50feat.search import search
    from rn50feat.store import FeatureStore
    from rn50feat.verify import verify

_HOMES = {
    "EngineOptions": "engines",
    "FeatureStore": "store",
    "RN50FeatError": "errors",
    "Selection": "places.selection",
    "Shard": "places.selection",
    "duplicates": "duplicates",
    "export": "exchange.export",
    "extract": "extract",
    "import_features": "exchange.importing",
    "index": "indexing.index",
    "merge": "exchange.merge",
    "search": "search",
    "verify": "verify",
}


class _Package(ModuleType):
    """This package: imports its doors when they are first used.

    Python sets ``rn50feat.extract`` to the module of that name whenever it is
    imported; here the function of the same name takes that place.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
