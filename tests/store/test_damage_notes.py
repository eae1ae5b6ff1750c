"""marks: notes on damaged images, by id, that go with their rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from stores import features, hundred, references

from rn50feat import FeatureStore
from rn50feat.store.damage_notes import DamageRecord, damaged, refusal
from rn50feat.store.writer import open_store


def test_notes_come_in_the_order_of_the_rows_and_go_with_them(tmp_path: Path) -> None:
    path = hundred(tmp_path / "out.h5")
    assert damaged(FeatureStore(path)) == []
    broken = [replace(reference, damage=f"is cut off\0{i}") for i, reference in enumerate(references(tmp_path, 100, 3))]
    with open_store(path) as writer:
        writer.append(broken, features(100, 3))
    assert [record.path for record in damaged(FeatureStore(path))] == ["100.jpg", "101.jpg", "102.jpg"]
    with open_store(path) as writer:
        writer.remove(np.array([100]))
    assert sorted(damaged(FeatureStore(path)), key=lambda record: record.path) == [
        DamageRecord("101.jpg", r"is cut off\x001"), DamageRecord("102.jpg", r"is cut off\x002")
    ]  # fmt: skip


def test_damaged_images_get_rows_unless_they_are_skipped(tmp_path: Path) -> None:
    (whole,) = references(tmp_path, 0, 1)
    broken = replace(whole, damage="is cut off")
    assert refusal(whole, "skip") == refusal(broken, "keep") == ""
    assert refusal(broken, "skip") == "is damaged: is cut off: --damaged keep gives it a row"
