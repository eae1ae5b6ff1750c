"""Write and read ``.npy`` files of features, with their pictures' paths in a list beside them.

In: blocks of rows, or two files. Out: these files, which ``numpy.load`` and
any text editor read; or the rows and paths in them, a block at a time.
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
    """Return where the paths of the rows in a ``.npy`` file are listed."""
    return path.with_suffix(".paths.txt")


def write(files: Sequence[BufferedWriter], snapshot: Snapshot, blocks: Iterable[Block], *, null: bool) -> None:
    """Write the features to the first of `files`, the stored paths to the second, in lines or ended by NULs."""
    features, paths = files
    header = {"descr": snapshot.store.dtype.str, "fortran_order": False, "shape": (len(snapshot), WIDTH)}
    np.lib.format.write_array_header_1_0(features, header)
    for block in blocks:
        features.write(block.features.tobytes())
        for path in block.paths:
            if not null and not lists.fits_a_line(path):
                raise ExchangeError(f"{path} has a line break in its name: give -0, for a list of names ended by NULs")
            mark = lists.marked(path) if paths.tell() == 0 else b""
            paths.write(mark + os.fsencode(path) + (b"\0" if null else b"\n"))


class NpyFile:
    """A ``.npy`` file of features, and the list of their paths, a text or another ``.npy``.

    Raises `ExchangeError` for a file that holds no rows of 2048 floats, or no names.
    """

    def __init__(self, path: Path, listing: Path, null: bool) -> None:
        if not lists.can_be_read_again(listing):
            raise ExchangeError(f"{listing} would be read twice, and gives its names but once: put them into a file")
        if null and listing.suffix == ".npy":
            raise ExchangeError(f"{listing} is a list of names without lines: leave --null out")
        self.path, self._listing, self._null = path, listing, null
        self.about: dict[str, Any] = {}
        self._rows = _mapped(path)
        if self._rows.ndim != 2 or self._rows.shape[1] != WIDTH or self._rows.dtype.kind != "f":
            raise ExchangeError(
                f"{path} holds {self._rows.dtype} of shape {self._rows.shape}: a store takes rows of {WIDTH} floats"
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
            raise ExchangeError(f"{self._listing} holds {names.dtype} of shape {names.shape}, not a list of names")
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
        raise ExchangeError(f"{path} is no .npy file of numbers or names ({error}): save it with numpy.save") from error
    return array
