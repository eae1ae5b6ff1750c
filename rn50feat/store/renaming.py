"""Change the paths that an open store has, and nothing else of its rows and entries.

In: the file that `writer` is changing, and new locations. Out: the same file
with the stored paths of these, and a note of what needs a new checksum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rn50feat.store import layout
from rn50feat.store.checksums import Seals
from rn50feat.store.paths import current, stored_path


def rename_rows(
    store: Path, file: h5py.File, seals: Seals, first: int, locations: Sequence[str], mtimes: NDArray[np.int64]
) -> None:
    """Give the rows from `first` on new locations, and their files' times, int64 of shape (n,)."""
    part = slice(first, first + len(locations))
    file["paths"][part] = _texts(stored_path(store, location) for location in locations)
    file["mtime_ns"][part] = mtimes
    for row in range(part.start, part.stop):
        seals.row_changed(row)


def rename_entries(store: Path, file: h5py.File, seals: Seals, table: str, renamed: Mapping[str, str | None]) -> None:
    """Give entries of a table, failures or archives, other stored paths; None removes an entry."""
    before = [current(store, layout.decode_text(name)) for name in file[f"{table}/path"][:]]
    kept = [(i, name) for i, path in enumerate(before) if (name := renamed.get(path, path)) is not None]
    for column in layout.SMALL_TABLES[table]:
        values = file[column][:][[i for i, _ in kept]]
        file[column].resize(len(kept), axis=0)
        file[column][:] = _texts(name for _, name in kept) if column == f"{table}/path" else values
    seals.table_changed(table)


def _texts(texts: Any) -> NDArray[np.object_]:
    return np.array([layout.encode_text(text) for text in texts], dtype=object)
