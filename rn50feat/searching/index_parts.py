"""Fill an index that need not fit in memory.

In: a trained index, and rows. Out: the index with these rows, as a file. What
does not fit in memory is written to a temporary file next to the store, part
by part, and at the end all parts are merged, list by list.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable.disk import DISK, close
from rn50feat.errors import IndexingError, size
from rn50feat.searching import index_file
from rn50feat.searching.best import NO_ROWS, Rows
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.inverted_lists import Lists, Write


def require_room(store: Path, needed: int) -> None:
    """Raise `IndexingError` if the disk has less than `needed` bytes for the files of an index."""
    free = shutil.disk_usage(store.parent).free
    if free < needed:
        raise IndexingError(
            f"{index_file.faiss_path(store)} takes {size(needed)} of disk while it is built, but {size(free)} are free:"
            " free some space"
        )


class Parts:
    """An index that grows by parts of at most `room` rows; use it in a ``with`` block, which removes its files.

    `before` are the lists that it has already, of which rows with ids in `wanted`, ascending, stay.
    """

    def __init__(
        self, store: Path, index: FaissIndex, room: int, before: Sequence[Lists] = (), wanted: Rows = NO_ROWS
    ) -> None:
        self._store, self._index, self._room = store, index, room
        self._lists, self._wanted = [*before], wanted
        self._handle, self._length = -1, 0

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()
        index_file.remove_leftovers(self._store)

    def __len__(self) -> int:
        return len(self._index) + sum(int(lists.kept.sum()) for lists in self._lists)

    def add(self, ids: Rows, vectors: NDArray[np.float32]) -> None:
        """Add `vectors`, (n, 2048), as `exact.prepared` returns them."""
        if len(self._index) and len(self._index) + len(ids) > self._room:
            self._spill()
        self._index.add(ids, vectors)

    def whole(self) -> FaissIndex:
        """Return the index with all rows, mapped from a temporary file unless it is in memory anyway."""
        if not self._lists:
            return self._index
        path = index_file.merged_path(self._store)
        with self._writing(path):
            handle, length = DISK.create(path), 0

            def write(piece: bytes) -> None:
                nonlocal length
                DISK.write(handle, piece, length)
                length += len(piece)

            try:
                self.save(write)
            finally:
                close(handle)
            self._close()  # the disk has room for two files, not for three
            DISK.remove(index_file.parts_path(self._store))
        self._lists, self._wanted = [], NO_ROWS
        return FaissIndex.load(path, mapped=True)

    def save(self, write: Write) -> None:
        """Pass the bytes of the FAISS file with all rows to `write`."""
        if not self._lists:
            self._index.save(write)
            return
        if len(self._index):
            self._spill()
        self._index.save_merged(write, self._lists, self._wanted)

    def _spill(self) -> None:
        path = index_file.parts_path(self._store)
        with self._writing(path):
            if self._handle < 0:
                self._handle = DISK.create(path)
            self._lists.append(self._index.spill(self._write, path, self._length))

    def _write(self, piece: bytes) -> None:
        DISK.write(self._handle, piece, self._length)
        self._length += len(piece)

    def _close(self) -> None:
        if self._handle >= 0:
            close(self._handle)
            self._handle = -1

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise index_file.unwritable(path, error) from error
