"""repair: damaged tables are found out again, or kept as far as they can be understood."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from stores import store, values

from rn50feat import FeatureStore, merge, verify
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of a row of a damaged image, a failure and two runs."""
    path = store(tmp_path / "out.h5", [("1.png", 1, 1)])
    with open_store(path) as writer:
        writer.fail(Reference(str(tmp_path / "bad.png"), 9, 9), "is broken")
        writer.append([Reference(str(tmp_path / "2.png"), 9, 9, b"o" * 16, damage="ends early")], np.ones((1, 2048)))
        writer.record({"started": "2", "ended": None, "device": None, "precision": None, "counts": {}})
    return path


def test_a_merge_does_not_pass_damaged_tables_off_as_sound(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with h5py.File(path, "r+") as file:
        file["failures/reason"][0] = "is fine"
        file["runs"][1] = "{"
        file["damaged/reason"][0] = "ends late"
    assert verify(path).differing == 3
    merge([store(tmp_path / "more.h5", [("3.png", 1, 3)])], path)
    for name, what in (("failures", "found out again by extract"), ("runs", "kept where"), ("damaged", "kept where")):
        assert f"holds in {name} is damaged: {what}" in caplog.text
    opened = FeatureStore(path)
    assert verify(path).findings == [] and opened.failures() == []
    assert opened.damage() == {1: "ends late"}
    assert [run.get("command", "") for run in opened.runs()] == ["", "merge"]
    assert values(path) == {"1.png": 1, "2.png": 1, "3.png": 3}
