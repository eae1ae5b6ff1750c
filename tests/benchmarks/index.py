"""Measure building, updating and searching an index: ``python tests/benchmarks/index.py [--rows 200000]``.

The vectors are drawn: clusters of about 100 points in 64 dimensions, folded
into 2048 non-negative ones, with noise; stored as float16. With ``--hard``
they are `vectors.hard`. Times are CPU time. Memory is what the process had at
its peak beyond what it had with everything imported.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rn50feat
from rn50feat import FeatureStore
from rn50feat.searching import exact
from rn50feat.searching.best import NO_ROWS
from rn50feat.searching.index_file import faiss_path
from rn50feat.searching.index_plan import MAX_RAM, VECTOR
from rn50feat.searching.nearest import Nearest, open_index

sys.path.insert(0, str(Path(__file__).parent.parent))
from vectors import append, filled, hard

BLOCK = 10_000
QUERIES = 200


def blocks(rows: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Yield (n, 2048) vectors, `rows` in all."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, rows // 100), 64)).astype(np.float32)
    fold = rng.normal(size=(64, 2048)).astype(np.float32) / 8
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        points = centres[rng.integers(len(centres), size=count)]
        points = points + 0.5 * rng.standard_normal((count, 64), np.float32)
        yield np.maximum(points @ fold + 0.1 * rng.standard_normal((count, 2048), np.float32), 0)


def peak() -> int:
    """Return the most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build(store: FeatureStore, max_ram: int, factory: str | None) -> None:
    before, begun = peak(), time.process_time()
    report = rn50feat.index(store, max_ram=max_ram, factory=factory, on_plan=print)
    seconds, facts, size = time.process_time() - begun, report.facts, faiss_path(store.path).stat().st_size
    lists = int(re.findall(r"\d+", facts.factory)[0]) if facts.factory.startswith("IVF") else 0
    print(f"built in {seconds:.0f} s with {(peak() - before) / 1e6:.0f} MB beyond the interpreter")
    print(f"{size / 1e6:.1f} MB, {(size - lists * VECTOR) / facts.rows:.0f} bytes a row and {lists} centroids")
    print(f"recall@10 as measured then {facts.recall}, nprobe {facts.nprobe}, candidates {facts.candidates}")


def search(store: FeatureStore) -> None:
    """Compare `QUERIES` searches through the index with scans: recall by score, and milliseconds."""
    rows = np.random.default_rng(7).choice(len(store), QUERIES, replace=False)
    own = [rows[i : i + 1] for i in range(len(rows))]
    with store.reading():
        queries = store.features(rows)
        begun = time.process_time()
        nearest = Nearest(store, "cosine", open_index(store))
        opened = time.process_time()
        found = [nearest.find(queries[i : i + 1], own[i : i + 1], 10)[0] for i in range(QUERIES)]
        done = time.process_time()
        nearest.find(queries, own, 10)
        together = time.process_time()
        truth = exact.scan(queries, own, store, 10, "cosine")
        scanned = time.process_time()
        exact.scan(queries[:1], own[:1], store, 10, "cosine")
        alone = time.process_time()
    recall = np.mean([(scores >= true[-1] - 1e-6).sum() / 10 for (_, scores), (_, true) in zip(found, truth)])
    print(f"opened in {1000 * (opened - begun):.0f} ms; recall@10 of {QUERIES} other queries {recall:.4f}")
    one, many = (done - opened) / QUERIES, (together - done) / QUERIES
    print(f"{1000 * one:.1f} ms a query one by one, {1000 * many:.1f} when they come at once")
    one, many = alone - scanned, (scanned - together) / QUERIES
    print(f"exact: {1000 * one:.0f} ms a query alone, {1000 * many:.1f} when they come at once", flush=True)


def update(store: FeatureStore) -> None:
    """Add ten rows; they must be found before the index knows them, and after."""
    count = len(store)
    new = next(blocks(10, seed=5))
    append(store, count, new)
    for moment in ("before", "after"):
        with store.reading():
            nearest = Nearest(store, "cosine", open_index(store))
            found = nearest.find(new, [NO_ROWS] * 10, 1)
        assert [int(rows[0]) for rows, _ in found] == list(range(count, count + 10)), moment
        if moment == "before":
            begun = time.process_time()
            done = rn50feat.index(store)
            assert done.added + done.behind == 10
            print(f"ten new rows: {done.behind} left for later in {time.process_time() - begun:.2f} s")
    begun = time.process_time()
    rn50feat.index(store)
    print(f"nothing new: {time.process_time() - begun:.2f} s")


def make(path: Path, rows: int, source: Callable[[int], Iterable[NDArray[Any]]]) -> FeatureStore:
    store = filled(path, np.empty((0, 2048), np.float32), "float16")
    first = 0
    for block in source(rows):
        append(store, first, block)
        first += len(block)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--max-ram", type=int, default=MAX_RAM)
    parser.add_argument("--factory", help="the kind of index to build, as a FAISS factory string")
    parser.add_argument("--hard", action="store_true", help="draw vectors that are harder to index")
    parser.add_argument("--duplicates", action="store_true", help="look for duplicates, too")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.build:
        build(FeatureStore(settings.build), settings.max_ram, settings.factory)
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = make(Path(folder).resolve() / "out.h5", settings.rows, hard if settings.hard else blocks)
        print(f"{settings.rows} rows, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        # In a process of its own: the memory is that of building alone.
        arguments = ["--build", store.path, "--max-ram", str(settings.max_ram)]
        arguments += ["--factory", settings.factory] if settings.factory else []
        subprocess.run([sys.executable, __file__, *arguments], check=True)
        search(store)
        update(store)
        for scan in (False, True) if settings.duplicates else ():
            begun = time.process_time()
            groups = rn50feat.duplicates(store, threshold=0.9, scan=scan)
            how = "without" if scan else "with"
            print(
                f"duplicates {how} the index: {len(groups)} groups in {time.process_time() - begun:.0f} s", flush=True
            )


if __name__ == "__main__":
    main()
