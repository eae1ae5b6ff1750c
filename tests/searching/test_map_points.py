"""map_points: what belongs together on a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vectors import clusters as drawn
from vectors import filled

from rn50feat.searching import map_points
from rn50feat.searching.map_layout import lay_out
from rn50feat.searching.map_points import clusters, near_groups, points
from rn50feat.searching.search import search_stored


def test_neighbours_are_those_that_a_search_finds(tmp_path: Path) -> None:
    store = filled(tmp_path / "out.h5", drawn(60))
    found = points(store, lay_out(store).layout)
    assert found.paths == store.paths()
    assert (found.total, found.xy.shape, found.neighbours.shape) == (60, (60, 2), (60, 8))
    for i in (0, 31):
        (result,) = search_stored([found.paths[i]], store, k=8, exclude_self=True)
        assert [found.paths[other] for other in found.neighbours[i]] == [hit.path for hit in result.hits]


def test_a_large_store_shows_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_points, "MOST", 7)
    store = filled(tmp_path / "out.h5", drawn(60))
    found = points(store, lay_out(store).layout)
    assert (len(found.paths), found.total) == (7, 60)
    assert found.neighbours.max() == 6
    assert (np.sort(found.neighbours, axis=1)[:, 1:] != -1).sum() == 7 * 6
    assert (found.neighbours[:, -2:] == -1).all()


def test_groups_are_those_of_the_largest_file_and_not_chains() -> None:
    neighbours = np.array([[1, 2], [0, 2], [1, 3], [2, -1], [3, -1]])
    near = np.array([[True, False], [True, True], [True, False], [True, True], [False, False]])
    assert near_groups(neighbours, near, np.array([9, 5, 4, 3, 2])).tolist() == [1, 1, 2, 2, 0]
    assert near_groups(neighbours, near, np.array([1, 9, 4, 3, 2])).tolist() == [1, 1, 1, 0, 0]


def test_clusters_are_apart_and_the_largest_is_first() -> None:
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.normal(size=(5, 2)), rng.normal(size=(20, 2)) + 50]).astype(np.float32)
    found = clusters(xy)
    assert not set(found[:5]) & set(found[5:])
    sizes = np.bincount(found)
    assert (np.diff(sizes) <= 0).all()
    assert clusters(xy[:1]).tolist() == [0]
    assert set(clusters(np.zeros((30, 2), np.float32))) == {0}
