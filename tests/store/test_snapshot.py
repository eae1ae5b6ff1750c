"""snapshot: the rows of one moment, in blocks, or an error if they have moved since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import add, hundred

from rn50feat import FeatureStore
from rn50feat.errors import StoreError
from rn50feat.store import snapshot
from rn50feat.store.snapshot import Snapshot
from rn50feat.store.writer import open_store


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    monkeypatch.setattr(snapshot, "BLOCK", 30)
    return Snapshot(FeatureStore(hundred(tmp_path / "out.h5")))


def test_all_rows_or_those_wanted_come_in_blocks(taken: Snapshot) -> None:
    assert [len(block.ids) for block in taken.blocks()] == [30, 30, 30, 10]
    blocks = list(taken.blocks(np.arange(100) % 40 == 5))
    assert [(block.paths, block.features[:, 0].tolist()) for block in blocks] == [
        (["5.jpg"], [5]), (["45.jpg"], [45]), (["85.jpg"], [85])
    ]  # fmt: skip
    assert [block.references[0].size for block in blocks] == [5, 45, 85]


def test_rows_that_are_added_are_left_out_and_rows_that_move_are_an_error(taken: Snapshot) -> None:
    with open_store(taken.store.path) as writer:
        add(writer, 100, 5)
    assert sum(len(block.ids) for block in taken.blocks()) == len(taken) == 100
    with open_store(taken.store.path) as writer:
        writer.remove(np.array([50]))
    blocks = taken.blocks()
    assert len(next(blocks).ids) == 30
    with pytest.raises(StoreError, match="out.h5 changed while it was read"):
        next(blocks)
