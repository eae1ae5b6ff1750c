"""Stores of rows that can be read by eye, made without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from conftest import rows

from rn50feat.images.provenance import Provenance
from rn50feat.sources.sources import Reference
from rn50feat.store.writer import create_store, open_store

PROVENANCE = Provenance("random:0", "5e" * 32)


def store(path: Path, pictures: Iterable[tuple[str, int, int]], *, dtype: str = "float32", **provenance: str) -> Path:
    """Make or extend a store of pictures: location, modification time, and value, which is also their digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Provenance(**{"weights": "random:0", "weights_sha256": "5e" * 32, **provenance})
    with open_store(path) if path.exists() else create_store(path, kind, np.dtype(dtype)) as writer:
        for location, mtime, value in pictures:
            reference = Reference(str(path.parent / location), 9, mtime, value.to_bytes(16, "big"))
            writer.append([reference], np.full((1, 2048), value, np.float32))
        writer.record({"started": "", "ended": "", "device": "cpu", "precision": "fp32", "counts": {}})
    return path


def values(path: Path) -> dict[str, int]:
    """Return the value of each row by path."""
    return {name: int(row[0]) for name, row in rows(path).items()}
