"""Find the store that a command means, and warn about random weights.

Looks at the argument, the variable ``RN50FEAT_STORE`` and the working folder, and opens the store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rn50feat.cli.ending import Ending
from rn50feat.cli.terminal import say
from rn50feat.errors import StoreError

if TYPE_CHECKING:
    from rn50feat.store.reader import FeatureStore


def find_store() -> Path:
    """Find the store to use if none is named; raise `StoreError` unless there is exactly one."""
    if named := os.environ.get("RN50FEAT_STORE"):
        if not os.path.exists(named):
            raise StoreError(f"{named}, which RN50FEAT_STORE names, is not there: name a store, or unset the variable")
        return Path(named)
    from rn50feat.store.opening import is_store
    from rn50feat.store.reader import SUFFIXES

    files = (path for path in Path.cwd().iterdir() if path.suffix in SUFFIXES and path.is_file())  # a FIFO would block
    found = sorted(filter(is_store, files))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise StoreError(f"the current folder holds {len(found)} stores ({names}): name one of them")
    raise StoreError("there is no store in the current folder: name one, or create one with rn50feat extract")


def open_store(named: Path | None, ending: Ending) -> FeatureStore:
    """Open the store that a command means."""
    from rn50feat.store.reader import FeatureStore

    path = named or find_store()
    ending.store = str(path)
    store = FeatureStore(path)
    ending.store = str(store.path)
    return store


def mark_random(store: FeatureStore) -> None:
    """Print a note on stderr if the store's weights are random."""
    if (provenance := store.provenance).random:
        say(f"Note: the weights are {provenance.weights}: good for trying things out, not for results")
