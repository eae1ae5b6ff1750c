"""Stores of drawn vectors, for tests of what needs no pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from rn50feat import FeatureStore
from rn50feat.images.provenance import Provenance
from rn50feat.searching import index_file
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.search import search_stored
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import create_store, open_store


def clusters(rows: int, seed: int = 0, width: int = 16) -> NDArray[np.float32]:
    """Return (rows, 2048) non-negative vectors: clusters of `width` dimensions, folded into 2048."""
    rng = np.random.default_rng(seed)
    fold = np.random.default_rng(99).normal(size=(width, 2048))
    centres = rng.normal(size=(max(1, rows // 25), width))
    points = centres[rng.integers(len(centres), size=rows)] + 0.5 * rng.normal(size=(rows, width))
    return np.maximum(points @ fold, 0).astype(np.float32)


def hard(rows: int, seed: int = 0, block: int = 10_000) -> Iterator[NDArray[np.float16]]:
    """Yield (n, 2048) vectors, `rows` in all, that are harder to index than `clusters`.

    60 % of the values are zeros, the others have a heavy tail; they come from 40 dimensions. Clusters have sizes by a
    power law, but three hubs hold 30 % of the rows: all of them have a cosine of about 0.989 with each other. 10 % are
    near-duplicates, with cosines of 0.984 to 0.997. Lengths differ.
    """
    rng, dimensions = np.random.default_rng(seed), 40
    fold = rng.normal(size=(dimensions, 2048)).astype(np.float32) / np.sqrt(dimensions, dtype=np.float32)
    count = max(4, round(rows**0.5))
    centres = rng.normal(size=(count, dimensions)).astype(np.float32)
    shares = 0.7 / np.arange(1, count + 1)
    shares[:3], shares[3:] = 0.1, 0.7 * shares[3:] / shares[3:].sum()
    spreads = np.where(np.arange(count) < 3, 0.03, 0.5).astype(np.float32)[:, None]
    for first in range(0, rows, block):
        size = min(block, rows - first)
        kinds = rng.choice(count, size, p=shares)
        points = centres[kinds] + spreads[kinds] * rng.standard_normal((size, dimensions), np.float32)
        copies = rng.random(size) < 0.1
        if copies.any() and not copies.all():
            points[copies] = points[rng.choice(np.flatnonzero(~copies), copies.sum())]
            noise = rng.uniform(0.09, 0.2, (size, 1)).astype(np.float32)
            points += copies[:, None] * noise * rng.standard_normal((size, dimensions), np.float32)
        points *= dimensions**0.5 / np.linalg.norm(points, axis=1, keepdims=True)
        values = np.maximum(points @ fold - 0.2533, 0) ** 1.5  # above the 60th percentile of a normal distribution
        values *= 1 + np.where(kinds < 3, 0.1, 0)[:, None] * rng.standard_normal(values.shape, np.float32)
        yield (values * rng.lognormal(0, 0.2, (size, 1))).astype(np.float16)


def references(folder: Path, first: int, count: int) -> list[Reference]:
    """Return files that need not be there, with sizes that fall."""
    return [
        Reference(str(folder / f"{i:05}.jpg"), max(1, 10**6 - i), i, i.to_bytes(16, "big"))
        for i in range(first, first + count)
    ]


def filled(path: Path, features: NDArray[np.float32], dtype: str = "float32") -> FeatureStore:
    """Make a store with a row for each of `features`."""
    with create_store(path, Provenance("random:0", "00"), np.dtype(dtype)) as writer:
        if len(features):
            writer.append(references(path.parent, 0, len(features)), features)
    return FeatureStore(path)


def append(store: FeatureStore, first: int, features: NDArray[np.float32]) -> None:
    """Add rows for the files from `first` on."""
    with open_store(store.path) as writer:
        writer.append(references(store.path.parent, first, len(features)), features)


def replace(store: FeatureStore, row: int, features: NDArray[np.float32]) -> None:
    """Give a row another picture, and with it a new id."""
    with open_store(store.path) as writer:
        (reference,) = references(store.path.parent, row, 1)
        writer.replace(row, Reference(reference.location, 5, 5, row.to_bytes(16, "little")), features)


def remove(store: FeatureStore, rows: list[int]) -> None:
    """Remove rows, given in ascending order."""
    with open_store(store.path) as writer:
        writer.remove(np.array(rows))


def tied(tmp_path: Path, dtype: str, *, apart: bool = True) -> FeatureStore:
    """Make a store in which each of 20 vectors has 15 copies, some a rounding `apart`, in rows that are not by id."""
    kinds = clusters(20)
    rows = np.tile(kinds, (16, 1))
    if apart:
        rows[100:140] *= np.float32(1 + 1e-7)
        rows[200:240] += np.float32(1e-6)
    store = filled(tmp_path / "out.h5", rows, dtype)
    remove(store, [3, 17, 40, 41, 90])  # the last rows take their places
    append(store, 320, kinds[:7])
    assert not (np.diff(store.column("ids")) > 0).all()
    return store


def held(store: FeatureStore) -> list[int]:
    """Return the ids of the FAISS file, read by FAISS alone."""
    index = faiss.read_index(str(store.path.with_suffix(".faiss")))
    assert index.ntotal == index_file.read_facts(store.path).rows
    return sorted(FaissIndex(index).ids().tolist())


def check(store: FeatureStore, metric: str = "cosine", k: int = 10) -> None:
    """Compare searches through the index with scans; of equal scores either may come first."""
    names = store.paths()[::19]
    through = search_stored(names, store, k=k, metric=metric)
    for found, truth in zip(through, search_stored(names, store, k=k, metric=metric, exact=True)):
        assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in truth.hits], abs=1e-6)
        inside = {hit.path for hit in truth.hits if hit.score - truth.hits[-1].score > 1e-6}
        assert inside <= {hit.path for hit in found.hits}


def flip(store: FeatureStore) -> None:
    path = store.path.with_suffix(".faiss")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
