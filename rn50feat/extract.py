"""Bring a store up to date with its sources: the journey from files to rows.

In: sources and the path of a store. Out: the store with a row for every
picture, its ledger, and a `Summary`. A run costs what is new: unchanged files
are not read, copies reuse the features of their digest, and the engine (and
with it torch) starts only for a picture that must be computed.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat import __version__, images, lock, sources, weights
from rn50feat.catalogue import Catalogue
from rn50feat.engines import Batch, Engine, EngineOptions, StartEngine, local
from rn50feat.errors import ProvenanceError, SourceError, StoreError
from rn50feat.sources import Reference
from rn50feat.store import FeatureStore, stored_path
from rn50feat.writer import StoreWriter, create_store, open_store

COMMIT_SECONDS = 20.0  # what a kill may cost; a commit itself takes some 15 ms


@dataclass
class Summary:
    """What a run did, in files; ``seconds`` is its length."""

    new: int = 0
    changed: int = 0
    reused: int = 0  # copies and moved files, which took the features of another row
    unchanged: int = 0
    failed: int = 0
    failed_before: int = 0  # not tried again
    ignored: int = 0  # no pictures
    seconds: float = 0.0

    @property
    def found(self) -> int:
        """How many pictures there were."""
        return self.new + self.changed + self.reused + self.unchanged + self.failed + self.failed_before

    def as_dict(self) -> dict[str, int | float]:
        return {"found": self.found, **asdict(self)}


@dataclass(frozen=True)
class Progress:
    """How far a run is: what it did so far, of how many files (None while they are being counted)."""

    done: Summary
    total: int | None


def extract(
    pictures: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    weights: str | None = None,
    exif: bool | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Give every picture in `pictures`, folders or files, a row in `store`.

    What is not said (`weights`, `exif`, `dtype`) is as the store has it; for
    a new one ``imagenet-v1``, orientation applied, and float32 when computed
    in fp32, else float16. `overwrite` replaces the store by a new one;
    `retry_failed` tries pictures again that failed and have not changed.
    Raises the leaves of `RN50FeatError`; what was committed by then stays.
    """
    if isinstance(pictures, (str, os.PathLike)):
        pictures = [pictures]
    roots = sources.roots([Path(picture) for picture in pictures])
    path = Path(store).resolve()
    with lock.run_lock(path), _Run(path, overwrite) as run:
        run.agree(weights, exif, dtype)
        run.watch(roots, on_progress)
        todo = run.todo(sources.references(roots), retry_failed)
        if (first := next(todo, None)) is not None:
            with start(run.weights, run.provenance.preprocessing, options, progress=on_progress is not None) as engine:
                run.meet(engine)
                for batch in engine.embed(chain([first], todo)):
                    run.write(batch)
        return run.finish()


class _Run:
    """One run over one store: what it agreed to, what it counted, and its writer once there is something to write."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path = path
        self.summary = Summary()
        self._started = datetime.now(timezone.utc)
        old = FeatureStore(path) if path.exists() else None  # raises for a file that is not ours to overwrite
        self._old = None if overwrite else old
        self._catalogue = Catalogue(self._old)
        self._writer: StoreWriter | None = None
        self._engine: Engine | None = None
        self._copies: list[tuple[Reference, NDArray[np.floating[Any]]]] = []
        self._last_commit = time.monotonic()
        self._on_progress: Callable[[Progress], None] | None = None
        self._total: int | None = None

    def agree(self, weights_name: str | None, exif: bool | None, dtype: str | None) -> None:
        """Settle the weights, provenance and dtype, and refuse what differs from the store's."""
        old = self._old
        if weights_name is not None or old is None:
            self.weights = weights.find(weights_name or weights.DEFAULT)
        else:
            self.weights = weights.recorded(old.provenance)
        if exif is None:
            exif = old is None or old.provenance.preprocessing.exif == "applied"
        self._dtype = dtype
        self.provenance = weights.provenance(self.weights, exif=exif)
        self._check_provenance()
        if old is not None and dtype is not None and old.dtype != dtype:
            raise StoreError(f"{self.path} holds {old.dtype}, you asked for {dtype}: use another file or --overwrite")

    def _check_provenance(self) -> None:
        if self._old is not None and (difference := self._old.provenance.difference(self.provenance)):
            name, theirs, ours = difference
            raise ProvenanceError(
                f"{self.path} holds features with {name} {theirs}, you asked for {ours}:"
                " use another file or --overwrite"
            )

    def meet(self, engine: Engine) -> None:
        """Take the engine's word for the weights that it has, and open the store for writing."""
        self._engine = engine
        self.provenance = replace(self.provenance, weights_sha256=engine.weights_sha256)
        self._check_provenance()
        self._open()

    def _open(self) -> StoreWriter:
        if self._writer is None and self._old is not None:
            self._writer = open_store(self.path)
        elif self._writer is None:
            exact = self._engine is None or self._engine.precision == "fp32"
            dtype = np.dtype(self._dtype or ("float32" if exact else "float16"))
            self._writer = create_store(self.path, self.provenance, dtype)
        return self._writer

    def todo(self, references: Iterable[Reference], retry_failed: bool) -> Iterator[Reference]:
        """Yield the pictures that the network must see; deal with all other files on the way."""
        summary, catalogue = self.summary, self._catalogue
        for reference in references:
            self._tell()
            path = stored_path(self.path, reference.location)
            row = catalogue.row(path)
            if row is not None and catalogue.unchanged(row, reference):
                summary.unchanged += 1
            elif catalogue.failed_before(path, reference) and not retry_failed:
                summary.failed_before += 1
            elif row is None and path not in catalogue.failures and not _is_picture(reference):
                summary.ignored += 1
            elif not self._reuse(row, reference):
                yield reference

    def _reuse(self, row: int | None, reference: Reference) -> bool:
        """Give a copy of a known file the features that it has already; tell whether it was one."""
        if not self._catalogue.may_hold_copy(reference.size):
            return False
        try:
            reference = sources.digest(reference)
        except SourceError:  # the engine will meet the same error, and report it
            return False
        writer, twin = self._open(), self._catalogue.row_of_copy(reference.digest)
        if row is not None and writer.copied(row, reference) is not None:
            writer.touch(row, reference)
            self.summary.unchanged += 1
            return True
        features = None if twin is None else writer.copied(twin, reference)
        if features is None:
            return False
        if row is not None:
            writer.replace(row, reference, features)
        else:
            self._copies.append((reference, features))
        if len(self._copies) >= 256:
            self._write_copies()
        self.summary.reused += 1
        return True

    def _write_copies(self) -> None:
        if self._copies:
            references, features = zip(*self._copies)
            self._open().append(references, np.stack(features))
            self._copies.clear()
            self._commit_when_due()

    def write(self, batch: Batch) -> None:
        """Write what the engine gives: new rows, changed rows and failures."""
        writer, new = self._open(), []
        for i, (reference, features) in enumerate(zip(batch.references, batch.features)):
            row = self._catalogue.row(stored_path(self.path, reference.location))
            if not _storable(features, writer.dtype):
                self._fail(reference, f"has features that are not finite in {writer.dtype}")
            elif row is None:
                new.append(i)
            else:
                writer.replace(row, reference, features)
                self.summary.changed += 1
        if new:
            writer.append([batch.references[i] for i in new], batch.features[new])
            self.summary.new += len(new)
        for failure in batch.failures:
            self._fail(failure.reference, failure.reason)
        self._commit_when_due()
        self._tell()

    def _fail(self, reference: Reference, reason: str) -> None:
        self._open().fail(reference, reason)
        self.summary.failed += 1

    def _commit_when_due(self) -> None:
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self._open().record(self._record(ended=None))
            self._open().commit()
            self._last_commit = time.monotonic()

    def finish(self) -> Summary:
        """Write what is left and the record of the run, and return the summary."""
        self._write_copies()
        summary = self.summary
        if self._old is None and not summary.found:
            raise SourceError(f"there is no picture in the sources of {self.path}: name folders that hold some")
        ended = datetime.now(timezone.utc)
        summary.seconds = (ended - self._started).total_seconds()
        writer = self._open()
        if self._old is not None and self._old.provenance.weights_path != self.provenance.weights_path:
            writer.update_provenance(self.provenance)
        writer.record(self._record(ended))
        writer.commit()
        return summary

    def _record(self, ended: datetime | None) -> dict[str, Any]:
        engine = self._engine
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "ended": ended and ended.isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "backend": engine and engine.backend,
            "device": engine and engine.device,
            "precision": engine and engine.precision,
            "versions": _versions(),
            "counts": self.summary.as_dict(),
        }

    def watch(self, roots: Sequence[str], on_progress: Callable[[Progress], None] | None) -> None:
        """Report progress, and count the files in a thread meanwhile, so that it has an end."""
        self._on_progress = on_progress

        def count() -> None:
            self._total = sum(1 for _ in sources.walk(roots))

        if on_progress is not None:
            threading.Thread(target=count, daemon=True).start()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(self.summary, self._total))

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(*error)


def _is_picture(reference: Reference) -> bool:
    if images.named_as_picture(reference.location):
        return True
    try:
        return images.holds_picture(sources.head(reference))
    except SourceError:  # it cannot be read, and its name does not say picture
        return False


def _storable(features: NDArray[np.float32], dtype: np.dtype[Any]) -> bool:
    """Tell whether all values are finite in `dtype`; float16 ends at 65504."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(features.astype(dtype)).all())


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "numpy", "pillow", "h5py")
    own = {"rn50feat": __version__, "python": platform.python_version()}
    return {**own, **{name: metadata.version(name) for name in packages}}
