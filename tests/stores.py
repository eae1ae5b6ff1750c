"""Stores of rows that can be read by eye, made without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from conftest import rows

from rn50feat import FeatureStore
from rn50feat.images.provenance import Provenance
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import StoreWriter, create_store, open_store

PROVENANCE = Provenance("random:0", "5e" * 32)


def store(path: Path, pictures: Iterable[tuple[str, int, int]], *, dtype: str = "float32", **provenance: str) -> Path:
    """Make or extend a store of pictures: location, modification time, and value, which is also their digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Provenance(**{"weights": "random:0", "weights_sha256": "5e" * 32, **provenance})
    with open_store(path) if path.exists() else create_store(path, kind, np.dtype(dtype)) as writer:
        if listed := list(pictures):
            writer.append(
                [Reference(str(path.parent / name), 9, mtime, n.to_bytes(16, "big")) for name, mtime, n in listed],
                np.repeat(np.array([[n] for _, _, n in listed], np.float32), 2048, axis=1),
            )
        writer.record({"started": "", "ended": "", "device": "cpu", "precision": "fp32", "counts": {}})
    return path


def values(path: Path) -> dict[str, int]:
    """Return the value of each row by path."""
    return {name: int(row[0]) for name, row in rows(path).items()}


def references(folder: Path, first: int, count: int) -> list[Reference]:
    return [Reference(str(folder / f"{i}.jpg"), i, i, i.to_bytes(16, "big")) for i in range(first, first + count)]


def features(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones((1, 2048), np.float32)


def add(writer: StoreWriter, first: int, count: int) -> None:
    writer.append(references(writer.path.parent, first, count), features(first, count))


def first_values(path: Path) -> list[float]:
    return [float(row[0]) for _, block in FeatureStore(path).blocks() for row in block]


def hundred(path: Path) -> Path:
    """Make a store of 100 rows; the value of each is its number."""
    with create_store(path, PROVENANCE, np.dtype("float32")) as writer:
        add(writer, 0, 100)
    return path


def stored(folder: Path) -> dict[str, int]:
    """Return the value of each row of `out.h5` by the name of its file."""
    return {Path(path).name: int(row[0]) for path, row in rows(folder / "out.h5").items()}
