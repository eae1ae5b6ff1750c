"""rows: selections follow the rules of numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import features, hundred

from rn50feat import FeatureStore
from rn50feat.errors import RowError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return hundred(tmp_path / "out.h5")


SELECTIONS = [
    [3, 1], [-1], [0, -100, 99], [5, 5], [], slice(None), slice(-3, None), slice(None, None, -7), slice(5, 2), 7, -100,
    np.arange(10, 30), np.array([1, 2], np.uint8), np.zeros(100, bool), np.arange(100) % 3 == 0, np.eye(2, dtype=int),
]  # fmt: skip


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_features_follows_the_rules_of_numpy(path: Path, selection: object) -> None:
    index = np.array(selection, int) if isinstance(selection, list) else selection
    assert np.array_equal(FeatureStore(path).features(selection), features(0, 100)[index])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([3, 100], "out.h5 has no row 100: it has 100 rows, 0 to 99"),
        (-101, "out.h5 has no row -101"),
        (np.array([2**63], np.uint64), "out.h5 has no row 9223372036854775808"),
        (np.zeros(99, bool), r"out.h5 has 100 rows, the mask has shape \(99,\): use one value per row"),
        ([1.0], r"\[1.0\] cannot select rows: use integers, a slice or a mask"),
        ([[1], [2, 3]], "cannot select rows"),
        (None, "None cannot select rows"),
    ],
)
def test_rows_that_are_not_there_are_an_index_error(path: Path, selection: object, message: str) -> None:
    with pytest.raises(IndexError, match=message) as found:
        FeatureStore(path).features(selection)
    assert isinstance(found.value, RowError)
