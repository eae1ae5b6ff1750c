"""Measure what a commit costs on an empty and on a large store, in one run.

    python tests/benchmarks/commit.py [--rows 300000]

100 rows are appended and committed, to a store that holds none and to one
that holds many; the medians of eleven commits and their ratio are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from rn50feat.images.provenance import Provenance
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import StoreWriter, create_store, open_store

BLOCK = 100


def references(folder: str, first: int, count: int) -> list[Reference]:
    return [
        Reference(f"{folder}/{i // 1000}/{i}.jpg", i, i, i.to_bytes(16, "big")) for i in range(first, first + count)
    ]


def fill(path: Path, rows: int) -> None:
    block = np.ones((10_000, 2048), np.float16)
    with create_store(path, Provenance("random:0", "00"), np.dtype("float16")) as writer:
        for first in range(0, rows, len(block)):
            writer.append(references(str(path.parent), first, len(block)), block)


def append(writer: StoreWriter, first: int) -> float:
    """Append and commit one block; return the seconds."""
    block = np.ones((BLOCK, 2048), np.float16)
    begun = time.perf_counter()
    writer.append(references(str(writer.path.parent), first, BLOCK), block)
    writer.commit()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    rows = parser.parse_args().rows
    medians = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for held in (0, rows):
            path = Path(folder).resolve() / f"{held}.h5"
            fill(path, held)
            with open_store(path) as writer:
                seconds = [append(writer, held + i * BLOCK) for i in range(11)]
            medians.append(statistics.median(seconds))
            print(f"{BLOCK} rows onto {held:7}: {1000 * medians[-1]:6.1f} ms, median of {len(seconds)}")
    print(f"ratio {medians[1] / medians[0]:.2f}")


if __name__ == "__main__":
    main()
