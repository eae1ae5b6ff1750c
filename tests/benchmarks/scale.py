"""Compare what commands cost on a store of 10,000 images and on one of a million.

    python tests/benchmarks/scale.py [--rows 1000000] [--years 0]

Each command runs in a process of its own, a second time after one that fills
the page cache: processor time, elapsed time and peak memory. The features of
most rows are a hole in the file, so a million rows take 1 GB of disk; the
images are links to a thousand files. `--years` gives both stores as old a
history: 27 commits and 3 runs a day.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rn50feat import FeatureStore
from rn50feat.images.provenance import Provenance
from rn50feat.searching import index_file, path_file
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.index_file import IndexFacts
from rn50feat.store import layout
from rn50feat.store.writer import VERSION, create_store, open_store

sys.path.insert(0, str(Path(__file__).parent.parent))
from machine import processor

MTIME = 10**18
BLOCK = 10_000
NEAR = range(5000, 5200)  # rows that have features: the query and its neighbours
FACTORY = "IVF256,RaBitQ"
PROGRAM = (sys.executable, "-m", "rn50feat")
OPEN = "import sys; from rn50feat import FeatureStore; FeatureStore(sys.argv[1])"
PATHS = (
    OPEN
    + """
store = FeatureStore(sys.argv[1])
with store.reading():
    print(*[store.path_of(len(store) // 11 * i) for i in range(10)])"""
)
COMMIT = """
import sys, numpy as np
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import open_store
from pathlib import Path
path = Path(sys.argv[1])
with open_store(path) as writer:
    writer.append([Reference(f"/new/{i}.jpg", 1, 1, bytes(16)) for i in range(100)], np.ones((100, 2048), np.float16))
    writer.record({"started": "", "ended": "", "device": "", "precision": "", "counts": {}})"""


WATCH = """
import os, sys, time
begun = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, used = os.wait4(process, 0)
print(used.ru_utime + used.ru_stime, time.perf_counter() - begun, used.ru_maxrss * 1024)
sys.exit(status != 0)"""


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds of processor and by the clock, and bytes of memory at its peak."""

    processor: float
    elapsed: float
    memory: float


def name(i: int) -> str:
    return f"photos/{i // 1000:04}/DSC_{i:08}.jpg"


def draw(folder: Path, rows: int) -> None:
    """Make `rows` files, of which a thousand at a time are links to one."""
    for first in range(0, rows, 1000):
        original = folder / name(first)
        original.parent.mkdir(parents=True)
        original.write_bytes(b"x")
        os.utime(original, ns=(MTIME, MTIME))
        for i in range(first + 1, first + 1000):
            os.link(original, folder / name(i))


def fill(path: Path, rows: int, years: int) -> None:
    """Make a store of `rows` rows; only those in `NEAR` have features other than 0."""
    create_store(path, Provenance("random:0", "00"), np.dtype("float16")).__enter__().__exit__(None, None, None)
    with h5py.File(path, "r+", libver=VERSION) as file:
        del file["features"]
        hole = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        hole.set_chunk((layout.ROWS["features"][2], layout.WIDTH))
        hole.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        hole.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((rows, layout.WIDTH), (h5py.h5s.UNLIMITED, layout.WIDTH))
        h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, hole)
        file["features"][NEAR.start : NEAR.stop] = vectors()[NEAR.start : NEAR.stop]
        numbers = np.arange(rows)
        digests = np.stack([numbers + 1, numbers], 1).view(np.uint8)
        columns = {"ids": numbers, "size": np.ones(rows), "mtime_ns": np.full(rows, MTIME), "digest": digests}
        for column, values in columns.items():
            file[column].resize(rows, axis=0)
            file[column][:] = values
        file["paths"].resize(rows, axis=0)
        for first in range(0, rows, BLOCK):
            file["paths"][first : first + BLOCK] = [name(i) for i in range(first, min(first + BLOCK, rows))]
        file.attrs["next_id"] = rows
        file["history"].resize(10_000 * years, axis=0)
        file["history"][:] = np.random.default_rng(0).integers(0, 256, (10_000 * years, 16), np.uint8)
        file["runs"].resize(1000 * years, axis=0)
        run = '{"started": "", "ended": "", "device": "", "precision": "", "counts": {}, "versions": "%s"}' % (
            "x" * 800
        )
        file["runs"][:] = [run] * (1000 * years)
    with open_store(path):  # which computes the checksums
        pass


def vectors(turn: int = 0) -> NDArray[np.float32]:
    """Return `BLOCK` vectors in 256 clusters, of which those in `NEAR` are near each other; others with each `turn`."""
    rng = np.random.default_rng(0)
    centres, fold = rng.normal(size=(256, 64)), rng.normal(size=(64, layout.WIDTH))
    rng = np.random.default_rng(turn)
    points = centres[rng.integers(256, size=BLOCK)] + 0.5 * rng.normal(size=(BLOCK, 64))
    if not turn:
        points[NEAR.start : NEAR.stop] = points[NEAR.start] + 0.1 * points[NEAR.start : NEAR.stop]
    return np.maximum(points.astype(np.float32) @ fold.astype(np.float32), 0)


def index(path: Path, rows: int) -> None:
    """Write an index of as many rows: an IVF as for a real store, with fewer lists."""
    made = FaissIndex.make(FACTORY, "cosine")
    made.train(vectors())
    made.probe(8)
    for first in range(0, rows, BLOCK):
        made.add(np.arange(first, first + BLOCK), vectors(first // BLOCK))
    store = FeatureStore(path)
    facts = IndexFacts(store.id, store.provenance, "cosine", FACTORY, rows, rows, rows, BLOCK, 8, 1.0)
    index_file.save(path, made.save, facts, None)
    path_file.save(store)


def cost(*command: str | Path) -> Cost:
    """Run a command to its end, as a child of a small process: a child's peak begins with what its parent has."""
    done = subprocess.run([sys.executable, "-c", WATCH, *command], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return Cost(*map(float, done.stdout.split()))


def commands(store: Path) -> dict[str, tuple[str | Path, ...]]:
    """Return what is measured, by name."""
    query = name(NEAR.start)
    return {
        "python alone": (sys.executable, "-c", "import rn50feat.store.writer"),
        "open": (sys.executable, "-c", OPEN, store),
        "info": (*PROGRAM, "info", store),
        "search --stored": (*PROGRAM, "search", "--stored", query, store),
        "paths of ten rows": (sys.executable, "-c", PATHS, store),
        "commit of 100 rows": (sys.executable, "-c", COMMIT, store),
        "run without changes": (*PROGRAM, "extract", store.parent / "photos", store),
    }


@contextmanager
def stores(sizes: tuple[int, int], years: int) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder).resolve() / str(rows) / "out.h5" for rows in sizes]
        for path, rows in zip(paths, sizes):
            draw(path.parent, rows)
            fill(path, rows, years)
            index(path, rows)
        yield paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--years", type=int, default=0)
    settings = parser.parse_args()
    sizes = (10_000, settings.rows)
    print(f"{processor()}, {os.cpu_count()} cores, {date.today()}, load {os.getloadavg()[0]:.1f}")
    print(f"| | {sizes[0]:,} rows | {sizes[1]:,} rows | ratio of processor time |\n| --- | --- | --- | --- |")
    with stores(sizes, settings.years) as paths:
        for what in commands(paths[0]):
            costs = [[cost(*commands(path)[what]) for _ in range(2)][1] for path in paths]
            cells = [f"{one.processor:.2f} s, {one.elapsed:.2f} s, {one.memory / 1e6:.0f} MB" for one in costs]
            print(f"| {what} | {' | '.join(cells)} | {costs[1].processor / costs[0].processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
