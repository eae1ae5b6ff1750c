"""Measure how fast a torch DataLoader gets shuffled rows out of a store in the page cache.

    python tests/benchmarks/dataset.py [--rows 100000] [--dtype float32] [--batch 1024] [--workers 2]

Compares `FeatureStore.dataset`, and the same in whole batches, with the Dataset
that most people write, which reads row after row with h5py. They take turns.
Prints the best of three rounds: bytes per second by the clock, and per second
of processor time of all processes, which depends less on other programs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from rn50feat import FeatureStore
from rn50feat.images.provenance import Provenance
from rn50feat.sources.reference import Reference
from rn50feat.store.layout import WIDTH
from rn50feat.store.writer import create_store


class PlainDataset:
    """A row for each index, from a file that each worker opens when it first needs it."""

    def __init__(self, path: Path) -> None:
        self._path, self._features = path, None
        with h5py.File(path) as file:
            self._count = len(file["features"])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Any:
        if self._features is None:
            self._features = h5py.File(self._path)["features"]
        return self._features[row]


def fill(path: Path, rows: int, dtype: str) -> None:
    block = np.random.default_rng(0).random((1000, WIDTH), np.float32)
    with create_store(path, Provenance("random:0", "00"), np.dtype(dtype)) as writer:
        for first in range(0, rows, len(block)):
            numbers = range(first, min(first + len(block), rows))
            files = [Reference(f"{path.parent}/{i}.jpg", i, i, i.to_bytes(16, "big")) for i in numbers]
            writer.append(files, block[: len(files)])


def speeds(loader: DataLoader[Any]) -> tuple[float, float]:
    """Read every row once, in a random order; return GB per second by the clock, and of processor time."""
    moved, begun, used = 0, time.perf_counter(), sum(os.times()[:4])
    for rows in loader:
        moved += rows.nbytes
    elapsed = time.perf_counter() - begun  # the workers have ended
    return moved / elapsed / 1e9, moved / (sum(os.times()[:4]) - used) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float32")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder).resolve() / "out.h5"
        fill(path, args.rows, args.dtype)
        plain, own = PlainDataset(path), FeatureStore(path).dataset()
        single: dict[str, Any] = {"batch_size": args.batch, "shuffle": True}
        whole: dict[str, Any] = {"batch_size": None, "sampler": BatchSampler(RandomSampler(own), args.batch, False)}
        kinds = {"h5py, row after row": (plain, single), "dataset()": (own, single), "whole batches": (own, whole)}
        loaders = {name: DataLoader(one, num_workers=args.workers, **how) for name, (one, how) in kinds.items()}
        rounds = [{name: speeds(loader) for name, loader in loaders.items()} for _ in range(3)]
    best = {name: [max(one[name][i] for one in rounds) for i in (0, 1)] for name in kinds}
    base = best["h5py, row after row"]
    print(f"{args.rows} rows of {args.dtype}, batches of {args.batch}, {args.workers} workers")
    for name, (clock, processor) in best.items():
        ratios = (
            f"({clock / base[0]:.1f} times), {processor:.2f} per second of processor time ({processor / base[1]:.1f})"
        )
        print(f"{name:20} {clock:.2f} GB/s {ratios}")


if __name__ == "__main__":
    main()
