"""Write and read ``.npy`` files of features, with a list of their images' paths next to them.

Takes blocks of rows and writes the two files, which ``numpy.load`` and any text
editor can read; or reads the rows and paths in them, a block at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ExchangeError
from rn50feat.sources import lists
from rn50feat.store.layout import WIDTH
from rn50feat.store.snapshot import Block, Snapshot


def path_list(path: Path) -> Path:
    """Name the list of paths of the rows in a ``.npy`` file."""
    return path.with_suffix(".paths.txt")


def write(files: Sequence[BufferedWriter], snapshot: Snapshot, blocks: Iterable[Block], *, null: bool) -> None:
    """Write the features to the first of `files`, and the stored paths to the second, as lines or ended by NULs."""
    features, paths = files
    header = {"descr": snapshot.store.dtype.str, "fortran_order": False, "shape": (len(snapshot), WIDTH)}
    np.lib.format.write_array_header_1_0(features, header)
    for block in blocks:
        features.write(block.features.tobytes())
        for path in block.paths:
            if not null and not lists.fits_a_line(path):
                raise ExchangeError(f"{path} has a line break in its name: use -0, which ends names with NULs")
            mark = lists.marked(path) if paths.tell() == 0 else b""
            paths.write(mark + os.fsencode(path) + (b"\0" if null else b"\n"))


class NpyFile:
    """A ``.npy`` file of features, and the list of their paths, a text file or another ``.npy``.

    Raises `ExchangeError` for files without rows of 2048 floats, or without names.
    """

    def __init__(self, path: Path, listing: Path, null: bool) -> None:
        if not lists.can_be_read_again(listing):
            raise ExchangeError(f"{listing} has to be read twice, but can be read only once: save it as a file")
        if null and listing.suffix == ".npy":
            raise ExchangeError(f"{listing} is an array of names, not lines: leave out --null")
        self.path, self._listing, self._null = path, listing, null
        self.about: dict[str, Any] = {}
        self._rows = _mapped(path)
        if self._rows.ndim != 2 or self._rows.shape[1] != WIDTH or self._rows.dtype.kind != "f":
            raise ExchangeError(
                f"{path} holds {self._rows.dtype} of shape {self._rows.shape}: name a file of rows of {WIDTH} floats"
            )
        self.dtype = self._rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def paths(self) -> Iterator[str]:
        """Yield the path of each row."""
        if self._listing.suffix != ".npy":
            yield from lists.names(self._listing, null=self._null)
            return
        names = _mapped(self._listing)
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise ExchangeError(
                f"{self._listing} holds {names.dtype} of shape {names.shape}, not a list of names: name another file"
            )
        yield from (os.fsdecode(name) for name in names)

    def blocks(self, rows: int) -> Iterator[NDArray[np.floating[Any]]]:
        """Yield the features, `rows` at a time, of shape (n, 2048)."""
        for first in range(0, len(self._rows), rows):
            yield np.asarray(self._rows[first : first + rows])


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ExchangeError(f"{path} cannot be read ({error.strerror or error}): name another file") from error
    except (ValueError, EOFError) as error:  # other bytes, or pickled objects
        raise ExchangeError(
            f"{path} is not a .npy file of numbers or names ({error}): save it with numpy.save"
        ) from error
    return array
