"""Use a store as an array whose rows have names.

In: the path of a store. Out: its rows by numpy's rules, the folder names of
its images as labels, tables for pandas and Arrow, and a dataset for torch's
DataLoader. Nothing is read before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rn50feat.errors import ArgumentError, ExchangeError, RN50FeatError, RowError, count
from rn50feat.sources.lists import readable
from rn50feat.sources.location import folders
from rn50feat.store import reader
from rn50feat.store.layout import WIDTH
from rn50feat.store.rows import row_numbers
from rn50feat.store.snapshot import FixedRows

_BLOCK = 4096


class FeatureStore(reader.FeatureStore):
    """A store to read from: an array of shape (N, 2048), and what is known of the image of each row.

    Every call sees the last commit, even while a run is writing. The file is
    open, and shared with other readers, only during a call; in a
    ``with store.reading():`` block, all calls see the same commit. Can be
    pickled; the copy opens the file itself. Raises `StoreError` if there is no
    store at `path` or it cannot be read.
    """

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[str]]:
        return type(self), (str(self.path),)

    def __repr__(self) -> str:
        try:
            with self.reading():
                about = f"{count(len(self), 'row')} of {WIDTH} {self.dtype}, weights {self.provenance.weights}"
        except RN50FeatError:
            about = "cannot be read now"
        return f"<FeatureStore {str(self.path)!r}: {about}>"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the features: (N, 2048)."""
        return len(self), WIDTH

    def __getitem__(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Read rows as `features` does: an integer, a slice, a list or array of integers, or a mask."""
        if isinstance(rows, tuple):
            raise RowError(f"{self.path} takes rows alone as an index: select columns of the result, store[rows][:, 0]")
        return self.features(rows)

    def __iter__(self) -> Iterator[NDArray[np.floating[Any]]]:
        """Yield each row, shape (2048,), of one commit; see `blocks`."""
        for _, block in self.blocks():
            yield from block

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all rows, shape (N, 2048); memory holds them once. Commits go first, as in `steadily`."""
        if copy is False:
            raise ArgumentError(f"{self.path} is a file, and an array of it is a copy: leave out copy=False")
        return self.steadily(lambda: self._all_rows(dtype))

    def _all_rows(self, dtype: DTypeLike | None) -> NDArray[Any]:
        rows = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for first in range(0, len(rows), _BLOCK):
            self.give_way()
            part = rows[first : first + _BLOCK]
            part[:] = self.block(first, len(part))
        return rows

    def labels(self, level: int = -1) -> NDArray[np.str_]:
        """Read the name of a folder that each image is in, shape (N,).

        -1 is the image's own folder, -2 the one that holds it, and so on; 0 is
        the first folder below the one that all images are in, 1 the next. It is
        "" for an image that has none at that level. An archive counts as a
        folder, whose name has no ``.tar`` or ``.zip``.
        """
        return self._labels(self.paths(), level)

    def _labels(self, paths: list[str], level: int = -1) -> NDArray[np.str_]:
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # one tuple for each folder, not for each image
        chains = [known.setdefault(chain, chain) for chain in (folders(self.locate(path)) for path in paths)]
        place = level if level < 0 else level + len(commonprefix(list(known)))  # noqa: RUF071, of tuples
        return np.array([chain[place] if -len(chain) <= place < len(chain) else "" for chain in chains], np.str_)

    def to_pandas(self) -> Any:
        """Return a DataFrame with id, path, label (see `labels`), size and mtime_ns of each image.

        Its index is the row: ``store[frame.index]`` reads the features of a selection.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExchangeError("to_pandas needs pandas: pip install pandas") from error
        facts = self._facts()
        return pandas.DataFrame({name: pandas.Series(facts[name], dtype=facts[name].dtype) for name in facts})

    def to_arrow(self) -> Any:
        r"""Return a table with the columns of `to_pandas` and the features, which it holds in memory.

        Names that are not UTF-8, which Arrow cannot hold, are escaped: ``\xff``.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise ExchangeError("to_arrow needs pyarrow: pip install 'rn50feat[parquet]'") from error
        facts, features = self.steadily(lambda: (self._facts(), self._all_rows(None)))
        for name in ("path", "label"):
            facts[name] = np.array([readable(text) for text in facts[name]], object)
        columns = {name: pyarrow.array(values) for name, values in facts.items()}
        columns["features"] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), WIDTH)
        return pyarrow.table(columns)

    def _facts(self) -> dict[str, NDArray[Any]]:
        with self.reading():
            paths = self.paths()
            return {
                "id": self.column("ids"),
                "path": np.array(paths, object),
                "label": self._labels(paths).astype(object),
                "size": self.column("size"),
                "mtime_ns": self.column("mtime_ns"),
            }

    def dataset(self) -> FeatureDataset:
        """Return the rows as they are numbered now, for ``torch.utils.data.DataLoader``."""
        return FeatureDataset(self.path)


class FeatureDataset:
    """A map-style dataset for torch's DataLoader, whose items are rows: arrays of shape (2048,).

    It can be pickled, and each worker opens the store itself, for one batch at
    a time. Rows that a run appends are left out; if one replaces or removes
    rows, reading raises `StoreError`, so that no row goes with another's label.
    Start workers outside of ``with store.reading():``, which they would hold.
    """

    def __init__(self, path: Path) -> None:
        self._fixed = FixedRows(FeatureStore(path))

    def __len__(self) -> int:
        return len(self._fixed.ids)

    def __getitem__(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Read one row, or several by numpy's rules."""
        store = self._fixed.store
        numbers = row_numbers(rows, len(self), store.path)
        with self._fixed.reading():
            return store.features(numbers)

    def __getitems__(self, rows: list[int]) -> list[NDArray[np.floating[Any]]]:
        """Read a batch: the DataLoader calls this."""
        return list(self[rows])
