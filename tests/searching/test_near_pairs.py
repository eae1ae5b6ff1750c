"""Near pairs: all of them, the larger file first, however the blocks fall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vectors import clusters, filled

import rn50feat
from rn50feat.searching import near_pairs
from rn50feat.searching.distinct import DistinctFiles
from rn50feat.searching.nearest import open_index


@pytest.mark.parametrize("block", [64, 4096])
def test_a_scan_finds_every_pair_once(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_pairs, "BLOCK", block)
    features = clusters(150)
    files, done = DistinctFiles(filled(tmp_path / "out.h5", features)), list[tuple[int, int]]()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = [
        (int(one.firsts[i]), int(one.rows[j]))
        for one in near_pairs.by_scan(files, 0.9, lambda *now: done.append(now))
        for i, j in np.argwhere(one.near)
    ]
    assert sorted(found) == [tuple(pair) for pair in np.argwhere(np.triu(unit @ unit.T >= 0.9 - 1e-5, 1)).tolist()]
    assert done[-1] == (150, 150)


def test_the_index_finds_pairs_from_either_side(tmp_path: Path) -> None:
    features = clusters(150)
    store = filled(tmp_path / "out.h5", features)
    rn50feat.index(store, factory="Flat")
    files, free = DistinctFiles(store), np.ones(150, bool)
    blocks = list(near_pairs.by_index(files, free, 0.9, open_index(store), lambda *_: None))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = {(int(block.firsts[0]), row) for block in blocks for row in block.rows.tolist()}
    assert {pair for pair in found if pair[0] < pair[1]} == set(
        map(tuple, np.argwhere(np.triu(unit @ unit.T >= 0.9 - 1e-6, 1)).tolist())
    )
