"""Import features that another program computed into a store.

Takes a ``.npy`` or ``.parquet`` file of rows of 2048, the paths of their images,
and a statement of what made them. Adds a row for each image that the store
lacks, and a record of the import. Rows of existing files get the file's size,
time and digest, as if extracted; other rows are kept with size and time 0 and
an unknown digest, all zeros: if the file turns up one day, `extract` computes
it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rn50feat import errors
from rn50feat.errors import ExchangeError, SourceError
from rn50feat.exchange.npy import NpyFile, path_list
from rn50feat.exchange.parquet import ParquetFile
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.images.provenance import Provenance
from rn50feat.model.compatibility import agree, require
from rn50feat.model.weights import Choices
from rn50feat.sources import lists
from rn50feat.sources.contents import digest
from rn50feat.sources.location import at, locate
from rn50feat.sources.reference import UNKNOWN, Reference
from rn50feat.store.paths import stored_path
from rn50feat.store.reader import FeatureStore, locate_output
from rn50feat.store.session import WriteSession
from rn50feat.store.snapshot import BLOCK
from rn50feat.store.storable import settle_dtype, text_for_ledger
from rn50feat.store.summary import Progress, Summary

logger = logging.getLogger(__name__)

_ANOTHER = "import into another store"


class FeatureFile(Protocol):
    """A file of features: their number, dtype, paths and, in blocks, themselves."""

    path: Path
    about: dict[str, Any]  # what the file says about its rows, if rn50feat wrote it

    @property
    def dtype(self) -> np.dtype[Any]:
        """The features' dtype."""

    def __len__(self) -> int: ...

    def paths(self) -> Iterator[str]:
        """Yield the path of each row."""

    def blocks(self, rows: int) -> Iterator[NDArray[np.floating[Any]]]:
        """Yield the features, `rows` at a time, of shape (n, 2048)."""


def import_features(
    features: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    paths: str | os.PathLike[str] | None = None,
    null: bool = False,
    column: str | None = None,
    root: str | os.PathLike[str] = "",
    weights: str | None = None,
    variant: str | None = None,
    preprocess: str | None = None,
    exif: bool | None = None,
    exact_decode: bool | None = None,
    color: str | None = None,
    value_range: str | None = None,
    made_by: str | None = None,
    dtype: str | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Add a row for every image in `features` that `store` lacks; existing images keep their rows.

    `paths` lists the images of a ``.npy`` file, ``<name>.paths.txt`` by default,
    as lines, ended by NULs (`null`), or in another ``.npy``. A ``.parquet`` file
    has them in its column ``path``, and the features in `column`, ``features``
    by default. Relative paths start at `root`, the working folder by default.
    `weights` to `value_range` say what made the features, as for `extract`, or
    `made_by` says it in words: then rn50feat cannot compute matching features,
    and the store can only be searched by stored path. Parquet files from
    `export` record it themselves. Raises `ExchangeError` for files that do not
    fit, and the errors of `extract`; what was committed by then stays.
    """
    file = _open(Path(features), None if paths is None else Path(paths), null, column)
    path = locate_output(store)
    with WriteSession(path, "import", should_stop=should_stop, on_progress=on_progress) as session:
        session.repair()
        provenance = _provenance(
            file, session.old, Choices(weights, variant, preprocess, exif, exact_decode, color, value_range), made_by
        )
        width = settle_dtype(session.old, dtype, {str(file.path): file.dtype})
        session.prepare(provenance, width, source=str(file.path.absolute()), precision="unstated")
        session.total = len(file)
        absent = _take(session, file, _locations(file, Path(root)), checked=made_by is None)
        session.commit(ended=True)
    if absent:
        logger.warning("cannot read %s at the path given; the rows are kept", errors.count(absent, "image"))
    return session.summary


def _open(path: Path, listing: Path | None, null: bool, column: str | None) -> FeatureFile:
    if path.suffix == ".npy":
        if column is not None:
            raise ExchangeError(f"{path} has no columns: leave out --column")
        return NpyFile(path, listing or path_list(path), null)
    if path.suffix != ".parquet":
        raise ExchangeError(f"{path} is neither a .npy nor a .parquet file: name a file with one of these suffixes")
    if listing is not None or null:
        raise ExchangeError(f"{path} has its paths in its column path: leave out --paths and --null")
    return ParquetFile(path, column or "features")


def _provenance(file: FeatureFile, old: FeatureStore | None, choices: Choices, made_by: str | None) -> Provenance:
    """Determine the provenance of the features; raise if it is not stated, or `old` has another."""
    if choices.weights is not None and made_by is not None:
        raise ExchangeError("--weights and --made-by cannot be combined: choose one to say what made the features")
    if choices.weights is not None:
        if old is not None and old.provenance.unstated:
            made = old.provenance.network
            raise ExchangeError(f"{old.path} holds features made by {made}, and no others: {_ANOTHER}")
        return agree(old, choices, None, remedy=_ANOTHER)[1]
    if choices != Choices():
        raise ExchangeError("the options for variant and preprocessing require --weights: add it")
    if made_by is not None:
        provenance = Provenance.unstated_but_for(made_by)
    elif file.about:
        provenance = Provenance.from_json(file.about["provenance"])
    else:
        raise ExchangeError(
            f"{file.path} does not say what made its features: use --weights as for extract, or --made-by in words"
        )
    require(old, provenance, remedy=_ANOTHER)
    return provenance


def _locations(file: FeatureFile, root: Path) -> Callable[[], Iterator[str]]:
    """Return a function that yields the absolute location of each row's image; raise `ExchangeError` for a misfit."""
    real = lru_cache(1024)(os.path.realpath)

    def locations() -> Iterator[str]:
        return (locate(root / path, real).path for path in file.paths())

    met, count = lists.Names(), 0
    for location in locations():
        if not met.add(location):
            raise ExchangeError(f"{file.path} has two rows for {location}: remove one of them")
        count += 1
    if count != len(file):
        rows, names = errors.count(len(file), "row"), errors.count(count, "path")
        raise ExchangeError(f"{file.path} has {rows}, but {names}: use the list that belongs to it")
    return locations


def _take(session: WriteSession, file: FeatureFile, locations: Callable[[], Iterator[str]], *, checked: bool) -> int:
    """Take the rows that the store lacks, and return how many of their files are not there."""
    catalogue, absent, rest = Catalogue(session.old), 0, locations()
    for rows in file.blocks(BLOCK):
        here = list(islice(rest, len(rows)))
        if session.stop():
            break
        if checked:
            _check(rows, file.path)
        paths = [text_for_ledger(stored_path(session.path, location)) for location in here]  # a row has no other
        new = [i for i, path in enumerate(paths) if catalogue.row(path) is None]
        session.summary.unchanged += len(here) - len(new)
        if new:
            references = [_reference(here[i]) for i in new]
            absent += sum(reference.digest == UNKNOWN for reference in references)
            with np.errstate(over="ignore"):  # float64 values that become infinite go into the ledger
                narrow = rows[new].astype(np.float32)
            session.take(references, narrow, [None] * len(new), reject_zeros=True)
        session.tell()
    return absent


def _reference(location: str) -> Reference:
    """Describe an image's file; all is unknown if it cannot be read."""
    try:
        return digest(at(location).stat())
    except SourceError:
        return Reference(location, 0, 0, UNKNOWN)


def _check(rows: NDArray[np.floating[Any]], path: Path) -> None:
    """Raise `ExchangeError` for rows that cannot come from a ResNet50's average pool, whatever the user states."""
    remedy = "use --made-by, in words, instead of --weights"
    rows = rows[np.isfinite(rows).all(axis=1)]  # the others go into the ledger
    if (rows < 0).any():
        raise ExchangeError(f"{path} has negative values, which an average pool after a ReLU never has: {remedy}")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if (np.abs(lengths[lengths > 0] - 1) < 1e-2).all() and lengths.any():
        raise ExchangeError(f"{path} has rows normalised to length 1, unlike those of the network: {remedy}")
