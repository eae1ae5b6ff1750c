"""map_layout: images stay where they were, and a file that cannot be trusted is replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from vectors import append, clusters, filled, remove

from rn50feat import FeatureStore
from rn50feat.errors import IndexingError, QueryError
from rn50feat.searching.map_layout import lay_out, load, map_path
from rn50feat.store.writer import open_store


@pytest.fixture
def made(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", clusters(40))


def test_later_rows_leave_the_others_where_they_are(made: FeatureStore) -> None:
    before = lay_out(made)
    assert (before.built, before.added, before.removed, before.layout.method) == (True, 40, 0, "pca")
    content = map_path(made.path).read_bytes()
    assert not lay_out(made).built
    assert map_path(made.path).read_bytes() == content
    append(made, 500, clusters(10, seed=3))
    after = lay_out(made)
    assert (after.built, after.added, after.removed) == (False, 10, 0)
    assert after.layout.at(before.layout.ids).tobytes() == before.layout.xy.tobytes()
    assert np.isfinite(after.layout.xy).all()
    same = load(made)
    assert same is not None
    assert (same.ids.tobytes(), same.xy.tobytes()) == (after.layout.ids.tobytes(), after.layout.xy.tobytes())


def test_rows_that_are_gone_are_dropped(made: FeatureStore) -> None:
    before = lay_out(made).layout
    with open_store(made.path) as writer:
        writer.remove(np.array([3, 7]))
    after = lay_out(made)
    assert (after.added, after.removed, len(after.layout.ids)) == (0, 2, 38)
    assert after.layout.at(after.layout.ids).tobytes() == before.at(after.layout.ids).tobytes()
    gone = np.setdiff1d(before.ids, after.layout.ids)
    assert np.isnan(after.layout.at(gone)).all()


def test_a_layout_by_tsne_is_extended_without_openTSNE(made: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rn50feat.searching.map_layout.tsne", lambda points, on_progress: points[:, :2] * 9)
    monkeypatch.setattr("rn50feat.searching.map_layout.open_tsne", lambda: None)
    before = lay_out(made, method="tsne").layout
    assert before.projection.axes.shape == (41, 2048)
    first = made.features(0)
    append(made, 500, np.stack([first, first]))
    after = lay_out(made)
    assert (after.built, after.added, after.layout.method) == (False, 2, "tsne")
    assert after.layout.at(before.ids).tobytes() == before.xy.tobytes()
    assert after.layout.xy[-2:] == pytest.approx(np.stack([before.at(made.column("ids")[:1])[0]] * 2), abs=1e-2)
    again = lay_out(made, rebuild=True)
    assert (again.built, again.layout.method) == (True, "tsne")
    remove(made, list(range(42)))
    append(made, 900, clusters(6))
    anew = lay_out(made)  # no row has a place that others could lie beside
    assert (anew.built, anew.layout.method) == (True, "tsne")
    assert lay_out(made, method="pca").built


@pytest.mark.parametrize("damage", ["text", "cut", "nan", "shape", "version", "facts"])
def test_a_damaged_layout_is_replaced(made: FeatureStore, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    lay_out(made)
    path = map_path(made.path)
    content = path.read_bytes()
    with np.load(path) as arrays:
        parts = dict(arrays)
    if damage in ("text", "cut"):
        path.write_bytes(b"text" if damage == "text" else content[: len(content) // 2])
    else:
        parts |= {"nan": {"xy": parts["xy"] * np.float32(np.nan)}, "shape": {"xy": parts["xy"][:-1]}}.get(damage, {})
        if damage in ("version", "facts"):
            parts["facts"] = np.array("3" if damage == "facts" else json.dumps({"version": 2, "method": "pca"}))
        with path.open("wb") as file:
            np.savez(file, **parts)
    assert load(made) is None
    assert [record.message for record in caplog.records] == [f"{path} is damaged: map lays out all rows anew"]
    assert lay_out(made).built
    assert path.read_bytes() == content


def test_a_layout_of_another_store_or_history_is_replaced(
    made: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(made.path, tmp_path / "older.h5")
    append(made, 500, clusters(2, seed=5))
    lay_out(made)
    other = filled(tmp_path / "other.h5", clusters(3))
    for store in (other, FeatureStore(tmp_path / "older.h5")):
        shutil.copy(map_path(made.path), map_path(store.path))
        caplog.clear()
        assert lay_out(store).built
        assert "belongs to another store or another history of it" in caplog.records[0].message
    assert not lay_out(other).built


def test_what_cannot_be_mapped_says_so(tmp_path: Path, made: FeatureStore) -> None:
    empty = filled(tmp_path / "empty.h5", np.empty((0, 2048), np.float32))
    with pytest.raises(QueryError, match=r"empty.h5 has no rows, so there is nothing to map: extract images into it"):
        lay_out(empty)
    map_path(made.path).mkdir()
    with pytest.raises(IndexingError, match=r"out.map .*: remove it, and run map again"):
        lay_out(made)


def test_one_row_and_equal_rows_have_places(tmp_path: Path) -> None:
    one = lay_out(filled(tmp_path / "one.h5", clusters(1))).layout
    assert one.xy.tolist() == [[0, 0]]
    equal = lay_out(filled(tmp_path / "equal.h5", np.ones((5, 2048), np.float32))).layout
    assert np.abs(equal.xy).max() < 1e-5
