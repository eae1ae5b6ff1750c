"""projection: the axes along which rows differ most, and places between neighbours."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from vectors import filled

from rn50feat.errors import IndexingError
from rn50feat.searching.projection import beside, evenly, principal, tsne


def test_the_axes_are_those_along_which_rows_differ_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = np.abs(rng.normal(size=(300, 2048))) + 3
    values[:, 5] += 90 * rng.random(300)
    values[:, 9] += 30 * rng.random(300)
    store = filled(tmp_path / "out.h5", values)
    with store.reading():
        rows = np.arange(300)
        projection = principal(store, rows, 2)
        placed = projection.apply(store, rows, lambda done: None)
    unit = values.astype(np.float32) / np.linalg.norm(values.astype(np.float32), axis=1, keepdims=True)
    centred = (unit - unit.mean(axis=0)).astype(np.float64)
    _, _, wanted = np.linalg.svd(centred, full_matrices=False)
    assert np.abs((projection.axes * wanted[:2]).sum(axis=1)) == pytest.approx([1, 1], abs=1e-4)
    assert np.abs(placed) == pytest.approx(np.abs(centred @ wanted[:2].T), abs=1e-3)
    assert np.argmax(np.abs(projection.axes), axis=1).tolist() == [5, 9]


def test_a_sample_is_even() -> None:
    assert evenly(10, 100).tolist() == list(range(10))
    assert evenly(1, 100).tolist() == [0]
    assert evenly(101, 3).tolist() == [0, 50, 100]


def test_a_new_point_is_between_its_neighbours_and_a_copy_at_its_original() -> None:
    points = np.array([[0, 0], [1, 0], [0, 1], [50, 50], [51, 50], [50, 51], [90, 90]], np.float32)
    places = points * 2 + 7
    placed = beside(points[:6], places[:6], np.array([[50, 50], [0.4, 0.4]], np.float32))
    assert placed[0] == pytest.approx([107, 107], abs=0.2)
    assert np.linalg.norm(placed[1] - [7.8, 7.8]) < 2
    assert beside(points[:1], places[:1], points).tolist() == [[7, 7]] * 7


def test_tsne_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(IndexingError, match=r"--method tsne needs openTSNE: pip install 'rn50feat\[map\]'"):
        tsne(np.zeros((9, 2), np.float32), lambda stage, done, total: None)


@pytest.mark.slow
@pytest.mark.slow
def test_tsne_places_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE")
    points = np.ones((12, 4), np.float32)
    assert np.isfinite(tsne(points, lambda stage, done, total: None)).all()


def test_tsne_keeps_neighbours_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE")
    monkeypatch.setattr("rn50feat.searching.projection._FITTED", 60)
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.normal(size=(40, 8)), rng.normal(size=(40, 8)) + 30]).astype(np.float32)
    placed = tsne(points, lambda stage, done, total: None)
    first, second = placed[:40].mean(axis=0), placed[40:].mean(axis=0)
    assert np.isfinite(placed).all()
    nearer = np.linalg.norm(placed - first, axis=1) < np.linalg.norm(placed - second, axis=1)
    assert nearer.tolist() == [True] * 40 + [False] * 40
