"""Measure many exact queries at once: ``python tests/benchmarks/many.py [--rows 100000] [--queries 4000]``.

Compares the program with the way that it used before: one float32 product per
block, and the promising rows of each query scored by themselves. Both take
turns. Times are CPU time, the least of all rounds. With ``--hard`` the vectors
are `vectors.hard`, else those of `index.py`. Then all rows are exported with
their 10 nearest, in a process of its own, whose memory is measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rn50feat import FeatureStore, export
from rn50feat.searching import exact
from rn50feat.searching.best import Best, Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from index import blocks, make, peak
from machine import processor
from vectors import hard

Queries = NDArray[np.float16]


def seconds(work: Callable[[], list[Best]]) -> tuple[float, list[Best]]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def compare(store: FeatureStore, queries: int, rounds: int) -> None:
    """Print the CPU time of both ways; they must find the same."""
    rows: Rows = np.sort(np.random.default_rng(1).choice(len(store), queries, replace=False))
    own = [rows[i : i + 1] for i in range(queries)]
    least = [float("inf")] * 2
    with store.reading():
        features, ids = store.features(rows), store.column("ids")
        ways = (exact.best_of, exact._best_of_few)
        for _ in range(rounds):
            found = []
            for i, way in enumerate(ways):
                taken, bests = seconds(lambda way=way: way(features, own, store, ids, 10, "cosine", None))
                least[i], found = min(least[i], taken), [*found, bests]
            for new, old in zip(*found):
                assert all(np.array_equal(a, b) for a, b in zip(new.ranking(), old.ranking()))
    now, before = least
    print(f"{queries} queries, {len(store)} rows: {now:.1f} s of a core, before {before:.1f}: {before / now:.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hard", action="store_true", help="draw vectors that are harder to tell apart")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.export:
        begun, before = time.process_time(), peak()
        export(settings.export, settings.export.with_suffix(".parquet"), neighbours=10)
        memory, taken = (peak() - before) / 1e6, time.process_time() - begun
        print(f"exported with 10 neighbours: {taken:.0f} s of a core, {memory:.0f} MB beyond the interpreter")
        return
    print(processor(), flush=True)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = make(Path(folder).resolve() / "out.h5", settings.rows, hard if settings.hard else blocks)
        for queries in settings.queries:
            compare(store, queries, settings.rounds)
        subprocess.run([sys.executable, __file__, "--export", store.path], check=True)


if __name__ == "__main__":
    main()
