"""Repair what differs from its checksum in a store that is open for writing.

HDF5 frees a text when it is replaced. A damaged entry may refer to a text that
belongs to another one, so a table with damaged entries is written anew before
any of them changes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import h5py

from rn50feat.store import layout
from rn50feat.store.checksums import BLOCK, Seals
from rn50feat.store.summary import is_run

logger = logging.getLogger(__name__)

_PATHS: layout.Table = {"paths": layout.ROWS["paths"]}


def repair_tables(path: Path, file: h5py.File, seals: Seals) -> None:
    """Clear damaged tables of the store at `path` that `extract` fills again; keep what can be understood of others."""
    for name in seals.wrong_tables():
        again, table = name in ("failures", "archives"), layout.SMALL_TABLES[name]
        what = "found out again by extract" if again else "kept where it can be read"
        logger.warning("what %s holds in %s is damaged: %s", path, name, what)
        kept = {column: file[column][: 0 if again else None] for column in table}
        if name == "runs":
            kept = {name: [text for text in kept[name] if is_run(text)]}
        for column in table:
            del file[column]
        layout.create(file, table)
        layout.append(file, kept)
        seals.accept(name)


def renew_paths(file: h5py.File) -> None:
    """Write all paths anew, since some of them are damaged."""
    old = file["paths"]
    del file["paths"]
    layout.create(file, _PATHS)
    for first in range(0, len(old), BLOCK):
        layout.append(file, {"paths": old[first : first + BLOCK]})
