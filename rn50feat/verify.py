"""Check that a store is what it should be.

In: a store. Out: findings, each of which is a fault, and notes, which are
none. Reads every chunk; on demand also the pictures' files, or the network's
features of some of them once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rn50feat import sources
from rn50feat.embedding import embed_like
from rn50feat.engines import EngineOptions, StartEngine, local
from rn50feat.errors import SourceError
from rn50feat.sources import Reference
from rn50feat.store import LEDGER, ROWS, WIDTH, FeatureStore

# Relative L2 between a stored row and the same row computed again. In fp32
# the order of additions costs 1e-6; bf16 costs 2.7e-2 (float16 less).
TOLERANCE = {"exact": 1e-4, "rough": 6e-2}
BLOCK = 4096


@dataclass
class Report:
    """What `verify` found: faults, and what is worth knowing."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    store: FeatureStore | str | os.PathLike[str],
    *,
    sources: bool = False,
    recompute: int = 0,
    weights_file: str | None = None,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    progress: bool = False,
) -> Report:
    """Check the datasets of `store` against each other, and every row.

    `sources` hashes the pictures' files again and compares; `recompute`
    computes the features of so many random rows again and compares: a driver
    or library that has begun to give other vectors shows there.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    report = Report()
    with store.reading():
        if _check_shapes(store, report):
            _check_ids(store, report)
            _check_rows(store, report)
            _check_paths(store, report)
    if not report.findings and sources:
        _check_sources(store, report)
    if not report.findings and recompute:
        _check_again(store, report, recompute, weights_file, options, start, progress)
    return report


def _check_shapes(store: FeatureStore, report: Report) -> bool:
    """Check that all datasets are there, of one length each for rows and ledger."""
    with store.reading() as file:
        for table in (ROWS, LEDGER):
            missing = [name for name in table if name not in file]
            if missing:
                report.findings.append(f"{missing[0]} is missing")
                continue
            lengths = {name: file[name].shape[0] for name in table}
            if len(set(lengths.values())) > 1:
                words = ", ".join(f"{name} {length}" for name, length in lengths.items())
                report.findings.append(f"the datasets differ in length: {words}")
            for name, (_, shape, _) in table.items():
                if file[name].shape[1:] != shape:
                    report.findings.append(f"{name} has shape {file[name].shape}, not (N, {WIDTH if shape else ''})")
    return not report.findings


def _check_ids(store: FeatureStore, report: Report) -> None:
    ids = store.column("ids")
    with store.reading() as file:
        next_id = int(file.attrs["next_id"])
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        report.findings.append(f"id {values[counts > 1][0]} belongs to {counts.max()} rows")
    if len(ids) and (ids.min() < 0 or ids.max() >= next_id):
        report.findings.append(f"ids run from {ids.min()} to {ids.max()}, but the next id is {next_id}")


def _check_rows(store: FeatureStore, report: Report) -> None:
    """Read every chunk; no row may be NaN, infinite or all zero."""
    for first in range(0, len(store), BLOCK):
        try:
            block: Any = store.block(first, BLOCK).astype(np.float32)
            store.paths(first, first + BLOCK)
        except OSError as error:
            report.findings.append(f"rows {first} to {min(len(store), first + BLOCK) - 1} cannot be read: {error}")
            continue
        for fault, rows in (("not finite", ~np.isfinite(block).all(axis=1)), ("all zero", ~block.any(axis=1))):
            for row in np.flatnonzero(rows):
                report.findings.append(f"row {first + row} ({store.path_of(first + int(row))}) is {fault}")


def _check_paths(store: FeatureStore, report: Report) -> None:
    seen: set[str] = set()
    for first in range(0, len(store), BLOCK):
        for row, path in enumerate(store.paths(first, first + BLOCK), first):
            if path in seen:
                report.findings.append(f"row {row} ({path}) is there twice")
            if not _is_plain(path):
                report.findings.append(f"row {row} has a path that leads elsewhere: {path}")
            seen.add(path)


def _is_plain(path: str) -> bool:
    """Tell whether a stored path is one that `extract` writes: without ``..``, and never empty."""
    return bool(path) and os.path.normpath(path) == path and path.split("/")[0] != ".."


def _check_sources(store: FeatureStore, report: Report) -> None:
    """Hash every file again: other bytes under the same size and time are a fault, a new time is not."""
    gone = changed = 0
    digests = store.column("digest")
    for row, known in enumerate(_references(store)):
        try:
            now = sources.digest(known)
        except SourceError:
            gone += 1
            continue
        if (now.size, now.mtime_ns) != (known.size, known.mtime_ns):
            changed += 1
        elif now.digest != bytes(digests[row]):
            report.findings.append(f"row {row} ({known.location}) has other bytes, though the same size and time")
    report.notes.append(f"{len(digests)} files hashed: {gone} gone, {changed} changed since their rows were made")


def _references(store: FeatureStore) -> Iterator[Reference]:
    """Yield the files of all rows, as they were when the rows were made."""
    sizes, mtimes = store.column("size"), store.column("mtime_ns")
    for first in range(0, len(sizes), BLOCK):
        for row, path in enumerate(store.paths(first, first + BLOCK), first):
            yield Reference(store.locate(path), int(sizes[row]), int(mtimes[row]))


def _check_again(
    store: FeatureStore,
    report: Report,
    count: int,
    weights_file: str | None,
    options: EngineOptions,
    start: StartEngine,
    progress: bool,
) -> None:
    """Compute random rows again; pictures that are gone or have changed are left out."""
    rng = np.random.default_rng()
    wanted = set(rng.permutation(len(store))[:count].tolist())
    rows = {known.location: row for row, known in enumerate(_references(store)) if row in wanted and _as_known(known)}
    if not rows:
        report.notes.append("no row was computed again: the pictures that were drawn are gone or have changed")
        return
    references = [Reference(location, 0, 0) for location in rows]
    worst, exact = 0.0, _computed_exactly(store)
    if exact and options.precision == "auto":
        options = replace(options, precision="fp32")
    for batch in embed_like(store, references, weights_file, options, start, progress=progress):
        for reference, features in zip(batch.references, batch.features):
            row = rows[reference.location]
            stored = store.features(np.array([row]))[0].astype(np.float32)
            error = float(np.linalg.norm(features - stored) / np.linalg.norm(stored))
            worst = max(worst, error)
            if not error <= TOLERANCE["exact" if exact else "rough"]:
                report.findings.append(f"row {row} ({reference.location}) comes out otherwise now: {error:.1e} away")
        for failure in batch.failures:
            report.findings.append(f"{failure.reference.location} cannot be decoded any more: {failure.reason}")
    report.notes.append(f"{len(rows)} rows computed again: at most {worst:.1e} away (relative L2)")


def _computed_exactly(store: FeatureStore) -> bool:
    """Tell whether all rows were computed, and are stored, in fp32."""
    precisions = {json.loads(run)["precision"] for run in store.runs()}
    return store.dtype == np.float32 and precisions <= {None, "fp32"}


def _as_known(known: Reference) -> bool:
    try:
        status = os.stat(known.location)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns)
