"""Merge inverted lists that need not fit in memory.

In: files with lists of codes and ids, as FAISS writes them. Out: the last
section of a FAISS file, which has the rows of all of them, list by list. Needs
no FAISS.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable.disk import open_regular
from rn50feat.errors import IndexingError

Rows = NDArray[np.int64]
Write = Callable[[bytes], None]
_PIECE = 1 << 24  # bytes of the codes of a list that are in memory at once
_ID = 8  # bytes


@dataclass(frozen=True)
class Lists:
    """Inverted lists in a file: list i has ``sizes[i]`` codes from byte ``offsets[i]`` on, and then as many ids.

    Of these rows, ``kept[i]`` are to be merged.
    """

    path: Path
    code_size: int
    sizes: Rows
    offsets: Rows
    kept: Rows

    def keep(self, wanted: Rows) -> tuple[Lists, NDArray[np.bool_]]:
        """Keep only the rows with ids in `wanted`, ascending; also return a mask of those that no list has."""
        lacking, kept = np.ones(len(wanted), bool), np.zeros_like(self.sizes)
        with open_regular(self.path) as file:
            for number in np.flatnonzero(self.sizes).tolist():
                for ids in self._ids(file.fileno(), number):
                    at, stays = places(wanted, ids)
                    lacking[at[stays]] = False
                    kept[number] += stays.sum()
        return replace(self, kept=kept), lacking

    def codes(self, handle: int, number: int, wanted: Rows) -> Iterator[bytes]:
        """Yield the codes of a list that are to be merged; `wanted` are the ids that `keep` got."""
        pieces = self._pieces(handle, number, 0, self.code_size)
        if self._whole(number):
            yield from pieces
            return
        for piece, ids in zip(pieces, self._ids(handle, number)):
            yield np.frombuffer(piece, f"V{self.code_size}")[places(wanted, ids)[1]].tobytes()

    def ids(self, handle: int, number: int, wanted: Rows) -> Iterator[bytes]:
        """Yield the ids of the same rows, 8 bytes each."""
        for ids in self._ids(handle, number):
            yield (ids if self._whole(number) else ids[places(wanted, ids)[1]]).tobytes()

    def _whole(self, number: int) -> bool:
        return bool(self.kept[number] == self.sizes[number])

    def _ids(self, handle: int, number: int) -> Iterator[Rows]:
        behind = int(self.sizes[number]) * self.code_size
        return (np.frombuffer(piece, "<i8") for piece in self._pieces(handle, number, behind, _ID))

    def _pieces(self, handle: int, number: int, behind: int, width: int) -> Iterator[bytes]:
        size, start = int(self.sizes[number]), int(self.offsets[number]) + behind
        rows = max(1, _PIECE // self.code_size)
        for first in range(0, size, rows):
            length = min(rows, size - first) * width
            piece = os.pread(handle, length, start + first * width)
            if len(piece) < length:
                raise IndexingError(f"{self.path} became shorter while it was read: run the command again")
            yield piece


def places(wanted: Rows, ids: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """Return where `ids` would be in `wanted`, ascending, and which of them are there."""
    if not len(wanted):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    at = np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)
    return at, wanted[at] == ids


def append(write: Write, path: Path, start: int, code_size: int, lists: Iterable[tuple[bytes, bytes]]) -> Lists:
    """Pass the codes and ids of each of `lists` to `write`, which appends them to the file `path` from `start` on."""
    offsets, sizes = [], []
    for codes, ids in lists:
        offsets.append(start)
        sizes.append(len(ids) // _ID)
        write(codes)
        write(ids)
        start += len(codes) + len(ids)
    found = np.array(sizes, np.int64)
    return Lists(path, code_size, found, np.array(offsets, np.int64), found)


def empty_section(lists: int, code_size: int) -> bytes:
    """Return the last section of a FAISS file whose lists are empty."""
    return struct.pack("<4sQQ4sQ", b"ilar", lists, code_size, b"sprs", 0)


def merge(write: Write, sources: Sequence[Lists], wanted: Rows) -> None:
    """Pass the last section of a FAISS file with the rows of all `sources` to `write`.

    `wanted` are the ids, ascending, that `Lists.keep` got for some of them.
    """
    sizes: Rows = np.stack([source.kept for source in sources]).sum(axis=0)
    write(struct.pack("<4sQQ4sQ", b"ilar", len(sizes), sources[0].code_size, b"full", len(sizes)))
    write(sizes.astype("<u8").tobytes())
    with ExitStack() as files:
        handles = [files.enter_context(open_regular(source.path)).fileno() for source in sources]
        for number in np.flatnonzero(sizes).tolist():
            for source, handle in zip(sources, handles):
                for piece in source.codes(handle, number, wanted):
                    write(piece)
            for source, handle in zip(sources, handles):
                for piece in source.ids(handle, number, wanted):
                    write(piece)
