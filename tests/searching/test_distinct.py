"""Distinct files: the largest first, copies known, and no mistake while a run writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vectors import append, clusters, filled, references, remove, replace

from rn50feat import FeatureStore
from rn50feat.errors import StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.searching.distinct import DistinctFiles
from rn50feat.sources.reference import UNKNOWN
from rn50feat.store.writer import create_store


def test_copies_follow_the_first_of_them_and_unknown_digests_have_none(tmp_path: Path) -> None:
    digests = [b"a" * 16, b"b" * 16, b"a" * 16, UNKNOWN, UNKNOWN]
    with create_store(tmp_path / "out.h5", Provenance("random:0", "00"), np.dtype("float32")) as writer:
        files = zip(references(tmp_path, 0, 5), [3, 9, 3, 4, 5], digests)
        made = [type(file)(file.location, size, file.mtime_ns, digest) for file, size, digest in files]
        writer.append(made, clusters(5))
    files = DistinctFiles(FeatureStore(tmp_path / "out.h5"))
    assert files.order.tolist() == [1, 4, 3, 0]
    assert files.copies(0).tolist() == [0, 2]
    assert files.with_copies() == [0]
    assert {row: (file.path, file.reference.size) for row, file in files.known([4, 0, 4]).items()} == {
        0: ("00000.jpg", 3),
        4: ("00004.jpg", 5),
    }


def test_only_a_commit_makes_the_ids_be_compared_and_only_moved_rows_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "out.h5", clusters(20))
    files, read = DistinctFiles(store), []
    column = FeatureStore.column
    monkeypatch.setattr(
        FeatureStore, "column", lambda self, name, *part: read.append(name) or column(self, name, *part)
    )
    for compared in (0, 1):
        for _ in range(3):
            with files.reading():
                pass
        assert read == ["ids"] * compared
        append(store, 20, clusters(2, seed=1))
    replace(store, 3, clusters(1, seed=2)[0])
    with pytest.raises(StoreError, match="another run replaced or removed rows"), files.reading():
        pass
    remove(store, [0])
    with pytest.raises(StoreError, match="another run replaced or removed rows"), files.reading():
        pass
