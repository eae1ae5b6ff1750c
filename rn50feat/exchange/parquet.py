"""Write and read Parquet files of features; the only module that imports pyarrow.

Takes blocks of rows and writes a file that pandas, Spark and vector databases
can read, whose ``features`` are lists of 2048 float32; or reads the blocks of
rows in one. A file written here records the store and provenance of its rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedWriter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ExchangeError, count
from rn50feat.searching.map_layout import Layout
from rn50feat.searching.neighbours import NeighbourSearch
from rn50feat.sources import lists
from rn50feat.store.layout import WIDTH
from rn50feat.store.snapshot import Block, Snapshot

logger = logging.getLogger(__name__)

MARK = b"rn50feat"  # the key of our record in the file's metadata


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExchangeError("Parquet needs pyarrow: pip install 'rn50feat[parquet]'") from error
    return pyarrow, pyarrow.parquet


def write(
    files: Sequence[BufferedWriter],
    snapshot: Snapshot,
    blocks: Iterable[Block],
    *,
    normalized: bool,
    search: NeighbourSearch | None = None,
    layout: Layout | None = None,
) -> None:
    """Write `blocks` as row groups of one file, with what `search` finds for them, and their places in a `layout`.

    Names that are not UTF-8, which Parquet cannot hold, are escaped, with a warning.
    """
    arrow, parquet = _pyarrow()
    store = snapshot.store
    about: dict[str, Any] = {"store": store.id, "provenance": store.provenance.to_json()}
    about |= {"normalized": normalized, "dtype": store.dtype.name}
    columns = {
        "id": arrow.int64(),
        "path": arrow.string(),
        "location": arrow.string(),
        "size": arrow.int64(),
        "mtime_ns": arrow.int64(),
        "digest": arrow.binary(16),
        "features": arrow.list_(arrow.float32(), WIDTH),
    }
    if search:
        columns["neighbour_ids"] = arrow.list_(arrow.int64(), search.k)
        columns["neighbour_scores"] = arrow.list_(arrow.float64(), search.k)
    if layout is not None:
        columns |= {"x": arrow.float32(), "y": arrow.float32()}
    schema = arrow.schema(columns.items(), {MARK: json.dumps(about)})
    spelled_out = 0
    with parquet.ParquetWriter(files[0], schema, use_dictionary=False) as writer:
        for block in blocks:
            paths = [lists.readable(path) for path in block.paths]
            spelled_out += sum(path != readable for path, readable in zip(block.paths, paths))
            values = arrow.array(block.features.astype(np.float32).reshape(-1))
            facts = [
                block.ids,
                paths,
                [lists.readable(reference.location) for reference in block.references],
                [reference.size for reference in block.references],
                [reference.mtime_ns for reference in block.references],
                [reference.known_digest or None for reference in block.references],
            ]
            arrays = [arrow.array(values, kind) for values, kind in zip(facts, columns.values())]
            arrays.append(arrow.FixedSizeListArray.from_arrays(values, WIDTH))
            if search:
                near = search.take(len(block.ids))
                for found in (near.ids, near.scores):
                    values = arrow.array(found.reshape(-1), mask=near.ids.reshape(-1) < 0)
                    arrays.append(arrow.FixedSizeListArray.from_arrays(values, search.k))
            if layout is not None:
                arrays += [arrow.array(axis, mask=np.isnan(axis)) for axis in layout.at(block.ids).T.copy()]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
    if spelled_out:
        names = count(spelled_out, "name is", "names are")
        logger.warning("%s not UTF-8, and written with escapes such as \\xff", names)


class ParquetFile:
    """A Parquet file with a column ``path`` and a column of features, lists of 2048 numbers.

    Raises `ExchangeError` for a file without them.
    """

    def __init__(self, path: Path, column: str) -> None:
        arrow, parquet = _pyarrow()
        self.path, self._column = path, column
        self._errors = (OSError, arrow.ArrowException)
        try:
            self._file: Any = parquet.ParquetFile(path)
        except self._errors as error:
            raise ExchangeError(
                f"{path} cannot be read as Parquet ({_first_line(error)}): name another file"
            ) from error
        for name in ("path", column):
            if name not in self._file.schema_arrow.names:
                names = ", ".join(self._file.schema_arrow.names)
                raise ExchangeError(f"{path} has no column {name}, but {names}: name the features' with --column")
        if (kind := self._file.schema_arrow.field("path").type) not in (arrow.string(), arrow.large_string()):
            raise ExchangeError(f"{path} has {kind} in its column path: write the paths as strings")
        metadata = self._file.schema_arrow.metadata or {}
        self.about: dict[str, Any] = json.loads(metadata.get(MARK, b"{}"))

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The features' dtype, or that of the store they come from; raises `ExchangeError` unless they are floats."""
        kind = self._file.schema_arrow.field(self._column).type
        widths = {"halffloat": "float16", "float": "float32", "double": "float64"}
        if (width := widths.get(str(getattr(kind, "value_type", kind)))) is None or not hasattr(kind, "value_type"):
            raise ExchangeError(
                f"{self.path} has {kind} in its column {self._column}, not lists of {WIDTH} floats: name another with"
                " --column"
            )
        return np.dtype(self.about.get("dtype", width) if self._column == "features" else width)

    def paths(self) -> Iterator[str]:
        """Yield the path of each row."""
        for batch in self._batches(8192, "path"):
            if batch.column(0).null_count:
                raise ExchangeError(f"{self.path} has rows without a path: remove them")
            yield from batch.column(0).to_pylist()

    def blocks(self, rows: int) -> Iterator[NDArray[np.floating[Any]]]:
        """Yield the features, `rows` at a time, of shape (n, 2048)."""
        for batch in self._batches(rows, self._column):
            values = batch.column(0)
            flat = values.flatten().to_numpy(zero_copy_only=False)
            if len(flat) != WIDTH * len(values):
                raise ExchangeError(
                    f"{self.path} has lists in its column {self._column} that are not of {WIDTH} floats: remove them"
                )
            yield flat.reshape(-1, WIDTH)

    def _batches(self, rows: int, column: str) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(rows, columns=[column])
        except self._errors as error:
            raise ExchangeError(f"{self.path} is damaged ({_first_line(error)}): write it again") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
