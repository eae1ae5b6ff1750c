"""Copy damaged tables into a store that is written anew.

In: an open store, and a file that has a copy of everything else. Out: in that
file, what can be understood of the tables, and checksums that say so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import h5py

from rn50feat.store import layout
from rn50feat.store.checksums import Record, accept_tables
from rn50feat.store.damage import H5PY_ERRORS
from rn50feat.store.summary import is_run

logger = logging.getLogger(__name__)


def copy_damaged_tables(old: h5py.File, new: h5py.File, names: Sequence[str]) -> None:
    """Copy what can be understood of the tables `names`; nothing of those that `extract` fills again."""
    for name in names:
        again, table = name in ("failures", "archives"), layout.SMALL_TABLES[name]
        what = "found out again by extract" if again else "kept where it can be read"
        logger.warning("what %s holds in %s is damaged: %s", old.filename, name, what)
        layout.create(new, table)
        for entry in () if again else _readable(old, table):
            layout.append(new, {column: [value] for column, value in entry.items()})
    accept_tables(new, names, Record(old).hashes)


def _readable(file: h5py.File, table: layout.Table) -> list[dict[str, Any]]:
    """Read the entries of a table that can be read, and are records where they must be."""
    entries = list[dict[str, Any]]()
    with suppress(*H5PY_ERRORS):
        for i in range(min(len(layout.dataset(file, column)) for column in table)):
            with suppress(*H5PY_ERRORS):
                entries.append({column: file[column][i] for column in table})
    return [entry for entry in entries if "runs" not in entry or is_run(entry["runs"])]
