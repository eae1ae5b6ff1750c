"""scores: equal rows have equal scores wherever they stand, and equal scores are in the order of the ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import filled, tied

import rn50feat
from rn50feat import FeatureStore
from rn50feat.searching import near_pairs
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.scores import METRICS, contenders, in_order, reaches, score

KINDS = [None, "IDMap2,Flat", "IVF8,RaBitQ", "IVF8,SQ8"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("metric", METRICS)
def test_a_score_depends_on_the_two_vectors_alone(metric: str, dtype: type[np.floating]) -> None:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    row, query = rng.gamma(0.5, 1, (2, 2048)).astype(dtype)
    found = set()
    for count in (1, 2, 3, 7, 64, 255, 256, 257, 300):
        rows = rng.gamma(0.5, 1, (count + 1, 2048)).astype(dtype)
        for at in {0, count // 2, count - 1}:
            some = rows.copy()
            some[at] = row
            found |= {score(query, part, metric)[at - first] for first in (0, at) for part in (some[first:],)}
            found |= {score(row, part[None], metric)[0] for part in (query, query.astype(np.float32))}
    assert len(found) == 1


def test_scores_are_equal_within_a_millionth_and_ordered_by_id() -> None:
    scores = np.array([0.4, 0.9999994, 0.9999996, 0.5 - 8e-7, 0.5, 0.5 - 1.6e-6, 0.5 - 1.7e-6])
    ids = np.array([0, 1, 2, 3, 4, 6, 5])
    places, levels = in_order(scores, ids, "cosine")
    assert ids[places].tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert levels.tolist() == [0.9999996, 0.9999996, 0.5, 0.5, 0.5 - 1.6e-6, 0.5 - 1.6e-6, 0.4]
    places, levels = in_order(scores, ids, "l2")
    assert ids[places].tolist() == [0, 3, 5, 6, 4, 1, 2]
    assert levels.tolist() == sorted(levels.tolist())
    assert in_order(np.array([3e6, 3e6 + 2, 4e6]), np.array([1, 2, 3]), "ip")[0].tolist() == [2, 0, 1]
    assert reaches(np.array([0.95, 0.95 - 1e-9, 0.95 - 1e-5]), 0.95).tolist() == [True, True, False]


def test_what_ties_with_the_last_place_is_kept_and_more_copies_than_can_be_hits_are_not() -> None:
    scores = np.array([0.3, *[0.5] * 1000, 0.9, 0.5 - 5e-7, 0.5 + 5e-7])
    ids = np.arange(len(scores))[::-1]
    kept = contenders(scores, ids, 4, "cosine")
    assert sorted(ids[kept].tolist()) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("factory", KINDS)
def test_equal_members_of_a_group_are_by_id(tmp_path: Path, factory: str | None) -> None:
    store = tied(tmp_path, "float32")
    if factory:
        rn50feat.index(store, factory=factory, target_recall=1.0)
    groups = rn50feat.duplicates(store, threshold=0.9999)
    assert len(groups) == 20
    for group in groups:
        first, *others = [member.id for member in group.members]
        assert others == sorted(others)  # sizes fall with ids
        assert first < others[0]
        assert len({member.similarity for member in group.members[1:]}) == 1


def test_groups_of_files_of_one_size_are_led_by_the_first_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tied(tmp_path, "float32")
    column = FeatureStore.column
    monkeypatch.setattr(
        FeatureStore, "column", lambda self, name, *part: column(self, name, *part) * (1 if name != "size" else 0)
    )
    for group in rn50feat.duplicates(store, threshold=0.9999):
        ids = [member.id for member in group.members]
        assert ids == sorted(ids)


def test_a_pair_that_an_index_finds_from_the_smaller_file_alone_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest, 0, is near 1 and 2, but as the index has it only for these; 1 would take 2."""
    angles = np.array([0.0, 0.1, 0.15, 1.0, 1.4])
    rows = np.zeros((5, 2048), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    store = filled(tmp_path / "out.h5", rows)
    rn50feat.index(store, factory="Flat")
    monkeypatch.setattr(FaissIndex, "compares_all", False)
    candidates = FaissIndex.candidates

    def partial(
        self: FaissIndex, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        found, nearness = candidates(self, queries, count)
        largest = queries[:, 0] == 1
        found[largest[:, None] & ((found == 1) | (found == 2))] = 3
        return found, nearness

    monkeypatch.setattr(FaissIndex, "candidates", partial)
    monkeypatch.setattr(near_pairs, "_LEADERS", 2)
    groups = rn50feat.duplicates(store, threshold=np.cos(0.2))
    assert [[member.id for member in group.members] for group in groups] == [[0, 1, 2]]
    monkeypatch.setattr(near_pairs, "_NEIGHBOURS", 1)
    groups = rn50feat.duplicates(store, threshold=np.cos(0.2))
    assert [[member.id for member in group.members] for group in groups] == [[0, 1, 2]]
