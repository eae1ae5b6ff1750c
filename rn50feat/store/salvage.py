"""Save what can be read of a store that HDF5 cannot read completely.

In: a damaged store. Out: a new one with the rows that can be read and do not
differ from their checksums, and the names of what it lacks. Rows keep their
ids. The history goes on with a new mark, so that an index of the damaged store
is brought up to date.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from rn50feat.store import layout
from rn50feat.store.checksums import BLOCK, Record, Seals, row_checksums
from rn50feat.store.damage import H5PY_ERRORS, Malformed
from rn50feat.store.summary import is_run

NAMED = 10  # lost rows that are named


def salvage(old: h5py.File, new: h5py.File) -> tuple[int, list[str]]:
    """Copy what can be read of `old` to `new`, an empty file; return how many rows are lost, and names of what is.

    Raises `Malformed` or an error of h5py if an attribute, a column or all
    rows cannot be read. What other programs have added is not copied.
    """
    for name in layout.ATTRIBUTES:
        new.attrs[name] = layout.attribute(old, name)
    layout.create(new, layout.ROWS, layout.dataset(old, "features").dtype)
    record = _record(old)
    rows, lost = _copy_rows(old, new, checked=record is None or record.current)
    for name in layout.SMALL_TABLES:
        if name not in layout.OPTIONAL or name in old:
            layout.create(new, layout.SMALL_TABLES[name])
            try:
                layout.append(new, _table(old, name, record))
            except H5PY_ERRORS:
                lost.append(name)
    if "history" not in new:
        layout.create(new, layout.HISTORY)
    layout.append(new, {"history": np.frombuffer(uuid.uuid4().bytes, np.uint8)[None]})
    Seals(new).close()
    return rows, lost + layout.additions(old)


def _record(file: h5py.File) -> Record | None:
    """Read which commit the checksums are for; None if that cannot be read."""
    try:
        return Record(file)
    except H5PY_ERRORS:
        return None


def _copy_rows(old: h5py.File, new: h5py.File, *, checked: bool) -> tuple[int, list[str]]:
    """Copy the rows that can be read and, if `checked`, have their checksums; return how many do not, and names."""
    columns = {name: layout.dataset(old, name) for name in layout.ROWS}
    count, lost, named = len(columns["ids"]), 0, list[str]()
    known = None
    with suppress(*H5PY_ERRORS):
        known = layout.dataset(old, "checksum")[:] if checked else None
    for first in range(0, count, BLOCK):
        for part, values in _readable(columns, first, min(count, first + BLOCK)):
            sound = np.full(part.stop - part.start, values is not None)
            if values is not None:
                sound &= known is None or row_checksums(values) == known[part]
                layout.append(new, {name: value[sound] for name, value in values.items()})
            wrong = np.flatnonzero(~sound) + part.start
            lost += len(wrong)
            named += [_name(columns["paths"], row) for row in wrong[: NAMED - len(named)].tolist()]
    if count and lost == count:
        raise Malformed("no row can be read")
    return lost, named


def _readable(columns: Mapping[str, Any], start: int, stop: int) -> Iterator[tuple[slice, dict[str, Any] | None]]:
    """Yield parts of some rows with the values of their columns, None for a row that cannot be read."""
    try:
        yield slice(start, stop), {name: column[start:stop] for name, column in columns.items()}
    except H5PY_ERRORS:
        if stop - start == 1:
            yield slice(start, stop), None
            return
        middle = (start + stop) // 2
        yield from _readable(columns, start, middle)
        yield from _readable(columns, middle, stop)


def _name(paths: h5py.Dataset, row: int) -> str:
    with suppress(*H5PY_ERRORS):
        return layout.decode_text(paths[row])
    return f"row {row}"


def _table(file: h5py.File, name: str, record: Record | None) -> dict[str, Any]:
    """Read a small table; raise `Malformed` if it differs from its hash."""
    if record is not None and record.wrong_tables([name]):
        raise Malformed(f"{name} differs from its checksum")
    values = {column: layout.dataset(file, column)[:] for column in layout.SMALL_TABLES[name]}
    if name == "runs" and not all(map(is_run, values["runs"])):
        raise Malformed("a run has no record")
    return values
