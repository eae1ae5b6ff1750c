"""Turn folders of images into ResNet50 features, and find similar images.

The public functions::

    extract(images, store)       compute a row of features for every image
    search(queries, store)       find a store's most similar images
    index(store)                 build its FAISS index, or bring it up to date
    duplicates(store)            find groups of near-identical images
    compare(first, second)       find out which images of the second store are in the first
    merge(stores, store)         merge the rows of several stores into one
    export(store, file)          write rows for other programs
    import_features(file, store) import rows from other programs
    verify(store)                check that a store is intact
    compact(store)               write it again without holes, or to a copy
    relocate(old, new, store)    change the paths of images that have moved
    FeatureStore(path)           read a store

Heavy libraries are imported only when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "EngineOptions",
    "FeatureStore",
    "RN50FeatError",
    "Selection",
    "Shard",
    "compact",
    "compare",
    "duplicates",
    "export",
    "extract",
    "import_features",
    "index",
    "merge",
    "relocate",
    "search",
    "verify",
]

if TYPE_CHECKING:
    from rn50feat.engines.contract import EngineOptions
    from rn50feat.errors import RN50FeatError
    from rn50feat.exchange.export import export
    from rn50feat.exchange.importing import import_features
    from rn50feat.exchange.merge import merge
    from rn50feat.extraction.extract import extract
    from rn50feat.extraction.relocate import relocate
    from rn50feat.extraction.verify import verify
    from rn50feat.searching.comparison import compare
    from rn50feat.searching.duplicates import duplicates
    from rn50feat.searching.index import index
    from rn50feat.searching.search import search
    from rn50feat.sources.selection import Selection, Shard
    from rn50feat.store.array import FeatureStore
    from rn50feat.store.compact import compact

_MODULES = {
    "EngineOptions": "engines.contract",
    "FeatureStore": "store.array",
    "RN50FeatError": "errors",
    "Selection": "sources.selection",
    "Shard": "sources.selection",
    "compact": "store.compact",
    "compare": "searching.comparison",
    "duplicates": "searching.duplicates",
    "export": "exchange.export",
    "extract": "extraction.extract",
    "import_features": "exchange.importing",
    "index": "searching.index",
    "merge": "exchange.merge",
    "relocate": "extraction.relocate",
    "search": "searching.search",
    "verify": "extraction.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
