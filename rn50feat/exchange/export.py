"""Write a store's rows to a file that other programs can read.

Takes a store and a file name, whose suffix chooses the format: ``.npy`` with a
list of paths next to it, ``.csv``, or ``.parquet``. One block of rows at a time
is in memory, and the file appears when it is complete.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from io import BufferedWriter
from pathlib import Path

from rn50feat.durable import atomic
from rn50feat.errors import ExchangeError
from rn50feat.exchange import npy, parquet
from rn50feat.searching import map_layout
from rn50feat.searching.exact import prepared
from rn50feat.searching.neighbours import MOST, NeighbourSearch
from rn50feat.store.layout import WIDTH
from rn50feat.store.reader import FeatureStore
from rn50feat.store.snapshot import Block, Snapshot

DIGITS = {"float16": "%.5g", "float32": "%.9g"}  # enough to restore every number


def export(
    store: FeatureStore | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    normalize: bool = False,
    null: bool = False,
    neighbours: int | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> int:
    """Write the rows of `store` to `out`, in the format of its suffix, and return their number.

    - ``.npy``: the features, (N, 2048) in the store's dtype, and next to them
      ``<name>.paths.txt`` with the stored path of each row, followed by a
      newline or, with `null`, a NUL.
    - ``.csv``: id, path, location, digest, f0 to f2047, with a header.
    - ``.parquet``: id, path, location, size, mtime_ns, digest and features,
      float32 lists of 2048. With `neighbours`, also the most similar other
      rows, so many for each, best first: neighbour_ids and neighbour_scores
      (cosines), lists that end with nulls where there are fewer rows. And x
      and y, if there is a map of the store.

    `normalize` scales each row to length 1. Raises `ExchangeError` if `out`
    exists, unless `overwrite` is set, or cannot be written, and `StoreError` if
    rows of the store move meanwhile.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    path = Path(out)
    layout = map_layout.load(store) if path.suffix == ".parquet" else None
    writers: dict[str, Callable[[Sequence[BufferedWriter], Snapshot, Iterable[Block]], None]] = {
        ".npy": partial(npy.write, null=null),
        ".csv": _write_csv,
        ".parquet": partial(parquet.write, normalized=normalize, layout=layout),
    }
    if path.suffix not in writers:
        name = os.fspath(out)  # a path has lost a slash of a URL
        database = ", or use --to qdrant" if "://" in name else ""
        raise ExchangeError(f"{name} has no known suffix: name a file that ends in .npy, .csv or .parquet{database}")
    if null and path.suffix != ".npy":
        raise ExchangeError(f"--null requires a .npy file, which has a list of paths: {path} has none")
    places = [path, npy.path_list(path)] if path.suffix == ".npy" else [path]
    if neighbours is not None and path.suffix != ".parquet":
        raise ExchangeError(f"--neighbours requires a .parquet file, which has columns for them: {path} has none")
    if neighbours is not None and not 1 <= neighbours <= MOST:
        raise ExchangeError(f"{neighbours} neighbours cannot be exported: use 1 to {MOST}")
    if not overwrite:
        atomic.refuse_existing(places)
    snapshot = Snapshot(store)
    blocks = map(_of_unit_length, snapshot.blocks()) if normalize else snapshot.blocks()
    if neighbours is not None:
        on_stage = _never_back(on_stage)
        search = NeighbourSearch(snapshot, neighbours, lambda done: on_stage("export", done, len(snapshot)))
        writers[".parquet"] = partial(parquet.write, normalized=normalize, layout=layout, search=search)
    with atomic.written(places) as files:
        writers[path.suffix](files, snapshot, watched(blocks, len(snapshot), on_stage))
    return len(snapshot)


def _never_back(on_stage: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """Report the furthest of the rows whose neighbours are found, thousands at a time, and of those written."""
    furthest = 0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal furthest
        furthest = max(furthest, done)
        on_stage(stage, furthest, total)

    return report


def watched(blocks: Iterable[Block], total: int, on_stage: Callable[[str, int, int], None]) -> Iterator[Block]:
    """Yield `blocks`, and report progress."""
    done = 0
    for block in blocks:
        yield block
        done += len(block.ids)
        on_stage("export", done, total)


def _of_unit_length(block: Block) -> Block:
    return replace(block, features=prepared(block.features, "cosine").astype(block.features.dtype))


def _write_csv(files: Sequence[BufferedWriter], snapshot: Snapshot, blocks: Iterable[Block]) -> None:
    numbers = ",".join([DIGITS[snapshot.store.dtype.name]] * WIDTH)
    header = ["id", "path", "location", "digest", *(f"f{i}" for i in range(WIDTH))]
    files[0].write((",".join(header) + "\n").encode())
    for block in blocks:
        for number, path, reference, row in zip(block.ids, block.paths, block.references, block.features):
            line = io.StringIO()
            facts = [number, path, reference.location, reference.known_digest.hex()]
            csv.writer(line).writerow(facts)  # ends with \r\n, so that names with either character are quoted
            files[0].write(os.fsencode(line.getvalue()[:-2] + "," + numbers % tuple(row.tolist()) + "\n"))
