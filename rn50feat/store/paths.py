"""Decide under which path a store holds an image.

In: a store, and the absolute location of an image. Out: the path that the
store has for it, and back. Versions before this rule stored other paths for
some locations, which `current` translates: whoever reads a path from a file
passes it through, so that two paths are equal if they lead to one place.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from rn50feat.sources.location import absolute

_UP = "../"


def stored_path(store: Path, location: str) -> str:
    """Return the path under which a store holds the image at an absolute location.

    It is relative to the store's folder below that folder, and below the one
    that holds it, as ``../images/a.jpg``: images and features side by side
    move together. Everything else, and what shares only the root with the
    store's folder, is more likely to move without the store than with it, and
    keeps its location.
    """
    folder, above = _folders(store)
    if location.startswith(folder):
        return location[len(folder) :]
    return _UP + location[len(above) :] if location.startswith(above) and above != "/" else location


def location_of(store: Path, path: str) -> str:
    """Return the absolute location of the image with a stored path."""
    folder, above = _folders(store)
    return above + path[len(_UP) :] if path.startswith(_UP) else absolute(path, folder)


def current(store: Path, path: str) -> str:
    """Translate a stored path of any version to the one that `stored_path` gives today."""
    if path.startswith("/"):
        return stored_path(store, path)
    return stored_path(store, location_of(store, path)) if path.startswith(_UP) else path


@lru_cache(64)
def _folders(store: Path) -> tuple[str, str]:
    """Return a store's folder and the one that holds it, each with a slash at the end.

    Cached, since that takes 10 µs for each of millions of paths.
    """
    return os.path.join(store.parent, ""), os.path.join(store.parent.parent, "")
