"""Check that a store is intact.

In: a store. Out: findings, which are faults, and notes, which are not. Reads
every chunk; on demand, hashes the image files again, or computes some rows
again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.engines import local
from rn50feat.engines.contract import EngineOptions, StartEngine
from rn50feat.errors import IndexingError, OutOfMemoryError, SourceError, StoreError, WeightsError
from rn50feat.errors import count as counted
from rn50feat.model.download import OnDownload
from rn50feat.searching import index_file
from rn50feat.searching.embed import embed_like
from rn50feat.sources import contents
from rn50feat.sources.location import is_plain
from rn50feat.sources.presence import state
from rn50feat.sources.reference import Reference
from rn50feat.store.layout import OPTIONAL, TABLES, fault
from rn50feat.store.reader import FeatureStore

# Relative L2 between a stored row and the same row computed again. In fp32
# the order of additions costs 1e-6; bf16 costs 2.7e-2 (float16 less). In int8, an
# image at the edge of a range may be computed in bf16 on another machine.
TOLERANCE = {"exact": 1e-4, "rough": 6e-2, "int8": 0.25}
BLOCK = 4096


@dataclass
class Findings:
    """What `verify` found: faults, and notes. If the index has a fault, it is the last one.

    ``differing`` rows and tables, which differ from their checksums, and
    second rows of images are repaired by `extract`. What is ``unreadable`` is left out by `compact`.
    """

    findings: list[str] = field(default_factory=list)
    index_fault: bool = False
    differing: int = 0
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)


def verify(
    store: FeatureStore | str | os.PathLike[str],
    *,
    sources: bool = False,
    recompute: int = 0,
    weights_file: str | None = None,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    on_download: OnDownload = lambda done, total: None,
) -> Findings:
    """Check the datasets of `store` against each other, and every row.

    `sources` hashes the image files again and compares; `recompute` computes
    that many random rows again and compares, which reveals a driver or
    library that has begun to give other vectors.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    if recompute and store.provenance.unstated:
        raise WeightsError(
            f"the features of {store.path} were imported, made by {store.provenance.network}, which cannot be"
            " repeated here: leave --recompute out"
        )
    report = Findings()
    if _check_shapes(store, report):
        with store.reading():
            with _reading("a chunk", report):
                store.require_chunks()
            _check_numbers(store, report)
            _check_paths(store, report)
            _check_records(store, report)
        _check_rows(store, report)
    if not report.findings and sources:
        _check_sources(store, report)
    if not report.findings and recompute:
        _check_again(store, report, recompute, weights_file, options, start, on_download)
    _check_index(store, report)
    return report


def _check_index(store: FeatureStore, report: Findings) -> None:
    """Hash the index, if there is one, and check that it belongs to the store."""
    try:
        facts = index_file.read_facts(store.path, thorough=True)
        if facts is not None:
            index_file.require_same(store, facts)
            report.notes.append(f"{index_file.faiss_path(store.path)} is whole: {counted(facts.rows, 'row')}")
    except IndexingError as error:
        report.findings.append(str(error))
        report.index_fault = True


def _check_shapes(store: FeatureStore, report: Findings) -> bool:
    """Check that all datasets exist, and that those of a table have the same length."""
    layout = store.layout()
    for table in TABLES:
        if any(table is other for other in OPTIONAL.values()) and not any(name in layout for name in table):
            continue
        missing = [name for name in table if name not in layout]
        if missing:
            report.findings.append(f"{missing[0]} is missing")
            report.unreadable += 1
            continue
        lengths = {name: (*layout[name].shape, 0)[0] for name in table}
        if len(set(lengths.values())) > 1:
            words = ", ".join(f"{name} {length}" for name, length in lengths.items())
            report.findings.append(f"the datasets differ in length: {words}")
        report.findings += filter(None, (fault(name, layout[name]) for name in table))
    return not report.findings


@contextmanager
def _reading(what: str, report: Findings) -> Iterator[None]:
    """Report what cannot be read as a finding; too little memory says nothing about the store."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except StoreError as error:
        report.findings.append(f"{what} cannot be read: {error}")
        report.unreadable += 1


def _check_numbers(store: FeatureStore, report: Findings) -> None:
    """Check the columns of numbers: ids are unique, files have sizes."""
    with _reading("ids, size, mtime_ns or digest", report):
        ids, sizes = store.column("ids"), store.column("size")
        store.column("mtime_ns"), store.column("digest")
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            report.findings.append(f"id {values[counts > 1][0]} belongs to {counts.max()} rows")
        if len(ids) and (ids.min() < 0 or ids.max() >= store.next_id):
            report.findings.append(f"ids run from {ids.min()} to {ids.max()}, but the next id is {store.next_id}")
        if (sizes < 0).any():
            report.findings.append(f"row {int(np.argmax(sizes < 0))} has a file of {counted(int(sizes.min()), 'byte')}")


def _check_records(store: FeatureStore, report: Findings) -> None:
    """Check the small tables: the ledger, the records of the runs and so on."""
    wrong: list[str] = []
    with _reading("checksums", report):
        wrong = store.wrong_tables()
    report.findings += [f"what it holds in {name} differs from its checksum" for name in wrong]
    report.differing += len(wrong)
    for name, what, read in (
        ("failures", "the ledger of failures", store.failures),
        ("damaged", "the notes of damaged images", store.damage),
        ("archives", "the archives", store.archives),
        ("runs", "the records of the runs", store.runs),
        ("history", "the marks of the commits", store.history),
    ):
        with _reading(what, report) if name not in wrong else suppress(StoreError):
            read()


def _check_rows(store: FeatureStore, report: Findings) -> None:
    """Read every chunk; no row may be NaN, infinite or all zero. A run may commit between two blocks."""
    if (count := len(store)) and not store.has_checksums:
        report.notes.append(f"{counted(count, 'row')} without a checksum: the next run that writes adds them")
    for first in range(0, count, BLOCK):
        rows_read = _reading(f"rows {first} to {min(count, first + BLOCK) - 1}", report)
        with store.reading(), rows_read, np.errstate(invalid="ignore"):
            block: Any = store.block(first, BLOCK).astype(np.float32)
            differing = set(store.wrong_rows(first, BLOCK))
            report.differing += len(differing)
            for wrong, rows in (("not finite", ~np.isfinite(block).all(axis=1)), ("all zero", ~block.any(axis=1))):
                for row in np.flatnonzero(rows):
                    report.findings.append(f"row {first + row} ({store.path_of(first + int(row))}) is {wrong}")
                    differing.discard(first + int(row))
            for damaged in sorted(differing):
                report.findings.append(f"row {damaged} ({store.path_of(damaged)}) differs from its checksum")


def _check_paths(store: FeatureStore, report: Findings) -> None:
    seen: set[str] = set()
    with _reading("paths", report):
        for first in range(0, len(store), BLOCK):
            for row, path in enumerate(store.paths(first, first + BLOCK), first):
                if path in seen:
                    report.findings.append(f"row {row} ({path}) is there twice")
                    report.differing += 1
                if not is_plain(path):
                    report.findings.append(f"row {row} has a path that leads elsewhere: {path}")
                seen.add(path)


def _check_sources(store: FeatureStore, report: Findings) -> None:
    """Hash every file again: other bytes with the same size and time are a fault, a new time is not."""
    gone = changed = hashed = 0
    for row, known in enumerate(_references(store)):
        hashed += 1
        try:
            now = contents.digest(known)
        except SourceError:
            gone += 1
            continue
        if (now.size, now.mtime_ns) != (known.size, known.mtime_ns):
            changed += 1
        elif now.digest != known.digest:
            report.findings.append(f"row {row} ({known.location}) has other bytes, though the same size and time")
    report.notes.append(f"{counted(hashed, 'file')} hashed: {gone} gone, {changed} changed since their rows were made")


def _references(store: FeatureStore) -> Iterator[Reference]:
    """Yield the files of all rows, as they were when the rows were made."""
    for first in range(0, len(store), BLOCK):
        yield from store.references(first, BLOCK)


def _check_again(
    store: FeatureStore,
    report: Findings,
    count: int,
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    on_download: OnDownload,
) -> None:
    """Compute random rows again, except those whose images are gone or have changed."""
    rows = _drawn(store, count)
    if not rows:
        report.notes.append("no row was computed again: the images that were drawn are gone or have changed")
        return
    references = [Reference(location, 0, 0) for location in rows]
    worst, exact = 0.0, _computed_exactly(store)
    kind = "int8" if store.provenance.quantization else "exact" if exact else "rough"
    if exact and options.precision == "auto":
        options = replace(options, precision="fp32")
    for batch in embed_like(store, references, weights_file, options, start, on_download=on_download):
        for reference, features in zip(batch.references, batch.features):
            stored = rows[reference.location]
            error = float(np.linalg.norm(features - stored) / np.linalg.norm(stored))
            worst = max(worst, error)
            if not error <= TOLERANCE[kind]:
                report.findings.append(f"{reference.location} comes out otherwise now: {error:.1e} away")
        for failure in batch.failures:
            report.findings.append(f"{failure.reference.location} cannot be decoded any more: {failure.reason}")
    report.notes.append(f"{counted(len(rows), 'row')} computed again: at most {worst:.1e} away (relative L2)")


def _drawn(store: FeatureStore, count: int) -> dict[str, NDArray[np.float32]]:
    """Return the stored features of random rows, float32 of shape (2048,), by the location of their images."""
    with store.reading():
        rows = np.sort(np.random.default_rng().permutation(len(store))[:count])
        known = [store.references(int(row), 1)[0] for row in rows]
        features = store.features(rows).astype(np.float32)
    return {reference.location: row for reference, row in zip(known, features) if state(reference) == "present"}


def _computed_exactly(store: FeatureStore) -> bool:
    """Check whether all rows were computed, and are stored, in fp32."""
    precisions = {run["precision"] for run in store.runs()}
    return store.dtype == np.float32 and precisions <= {None, "fp32"}
