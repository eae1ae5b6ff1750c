"""Record which rows come from damaged images.

In: a store, or its file open for writing; ids, and references that say what
is wrong with their images. Out: the reasons, by id. An id belongs to one
state of one image: when the image is repaired and recomputed, or removed, its
note goes too. An older program leaves stale notes behind, which do no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.sources.reference import Reference
from rn50feat.store.layout import DAMAGED, decode_text, encode_text
from rn50feat.store.reader import FeatureStore
from rn50feat.store.storable import text_for_ledger


@dataclass(frozen=True)
class DamageRecord:
    """A damaged image that has a row, and what is wrong with it."""

    path: str
    reason: str


def damaged(store: FeatureStore) -> list[DamageRecord]:
    """List the damaged images that have rows, in the order of the rows."""
    with store.reading():
        if not (reasons := store.damage()):
            return []
        ids = store.column("ids")
        rows = np.flatnonzero(np.isin(ids, list(reasons))).tolist()
        return [DamageRecord(store.path_of(row), reasons[int(ids[row])]) for row in rows]


def refusal(reference: Reference, damaged: str) -> str:
    """Explain why an image gets no row, "" if it does; `damaged` is keep or skip, what to do with damaged images."""
    if reference.damage and damaged == "skip":
        return f"is damaged: {reference.damage}: --damaged keep gives it a row"
    return ""


class DamageNotes:
    """A store's notes, in its datasets ``damaged/id`` and ``damaged/reason``."""

    def __init__(self, file: Any) -> None:
        """Read and write the notes in `file`, an open HDF5 file that may have none yet."""
        self._file = file
        self._entries: dict[int, int] = {}
        if "damaged" in file:
            self._entries = {number: i for i, number in enumerate(file["damaged/id"][:].tolist())}

    def reason(self, number: int) -> str:
        """Look up what was wrong with the image of a row, by the row's id; "" if nothing."""
        entry = self._entries.get(number)
        return "" if entry is None else decode_text(self._file["damaged/reason"][entry])

    def add(self, ids: NDArray[np.int64], references: Sequence[Reference]) -> None:
        """Add notes for new rows whose images are damaged."""
        for number, reference in zip(ids.tolist(), references):
            if reference.damage:
                if "damaged" not in self._file:
                    for name, (kind, _, chunk) in DAMAGED.items():
                        self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(chunk,))
                entry = self._entries[number] = len(self._entries)
                for name, value in (("id", number), ("reason", encode_text(text_for_ledger(reference.damage)))):
                    self._file[f"damaged/{name}"].resize(entry + 1, axis=0)
                    self._file[f"damaged/{name}"][entry] = value

    def drop(self, ids: Iterable[int]) -> bool:
        """Remove the notes of removed rows; the last notes take their places. Return whether there were any."""
        before = len(self._entries)
        for number in ids:
            if (entry := self._entries.pop(number, None)) is not None:
                last = len(self._entries)
                if entry != last:
                    moved = int(self._file["damaged/id"][last])
                    self._entries[moved] = entry
                for name in ("damaged/id", "damaged/reason"):
                    if entry != last:
                        self._file[name][entry] = self._file[name][last]
                    self._file[name].resize(last, axis=0)
        return len(self._entries) < before
