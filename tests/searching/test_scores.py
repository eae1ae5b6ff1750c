"""scores: equal rows have equal scores wherever they stand, and equal scores are in the order of the ids."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import append, clusters, filled, remove

import rn50feat
from rn50feat import FeatureStore
from rn50feat.searching import exact, nearest
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.scores import METRICS, contenders, in_order, reaches, score
from rn50feat.searching.search import search_stored

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


def tied(tmp_path: Path, dtype: str, *, apart: bool = True) -> FeatureStore:
    """Make a store in which each of 20 vectors has 15 copies, some a rounding `apart`, in rows that are not by id."""
    kinds = clusters(20)
    rows = np.tile(kinds, (16, 1))
    if apart:
        rows[100:140] *= np.float32(1 + 1e-7)
        rows[200:240] += np.float32(1e-6)
    store = filled(tmp_path / "out.h5", rows, dtype)
    remove(store, [3, 17, 40, 41, 90])  # the last rows take their places
    append(store, 320, kinds[:7])
    assert not (np.diff(store.column("ids")) > 0).all()
    return store


def by_definition(store: FeatureStore, query: NDArray[np.floating], metric: str) -> list[int]:  # type: ignore[type-arg]
    """Return the ids of the hits, by a plain loop: each score takes the next ones that are equal to it."""
    rows, vector = store.features(np.arange(len(store))).astype(np.float64), query.astype(np.float64)
    costs = np.linalg.norm(rows - vector, axis=1) if metric == "l2" else -(rows @ vector)
    if metric == "cosine":
        costs /= np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    found, tie, lead = [], [], -1e300
    for cost, number in sorted(zip(costs.tolist(), store.column("ids").tolist())):
        if cost > lead + 1e-6 * max(1, abs(lead)):
            found, tie, lead = found + sorted(tie), [], cost
        tie.append(number)
    return found + sorted(tie)


@pytest.mark.parametrize(("factory", "dtype"), [*zip(KINDS, ["float16"] * 4), (None, "float32"), (KINDS[1], "float32")])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_are_by_id_at_every_place(
    tmp_path: Path, metric: str, factory: str | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tied(tmp_path, dtype, apart="RaBitQ" not in (factory or ""))  # its bits part what is a rounding apart
    if factory:
        rn50feat.index(store, factory=factory, metric=metric, target_recall=1.0)
        append(store, 400, clusters(20)[:9])
        monkeypatch.setattr(nearest, "CANDIDATES", 12)  # fewer than tie
    monkeypatch.setattr(exact, "BLOCK", 64)
    names = store.paths()[::64]
    with store.reading():
        queries = store.features(np.arange(0, len(store), 64))
        expected = [by_definition(store, query, metric) for query in queries]
        for k in (1, 10, 16, 21):
            together = search_stored(names, store, k=k, metric=metric)
            alone = [search_stored([name], store, k=k, metric=metric)[0] for name in names[:3]]
            for results in (together, alone):
                found = [[hit.id for hit in result.hits] for result in results]
                assert found == [ids[:k] for ids in expected[: len(found)]]


def test_more_copies_than_an_index_has_candidates_need_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clusters(300)
    rows[50:250] = rows[7]
    store = filled(tmp_path / "out.h5", rows)
    rn50feat.index(store, factory="IVF8,SQ8", target_recall=1.0)
    monkeypatch.setattr(exact, "best_of", lambda *_: pytest.fail("scanned"))
    (result,) = search_stored(["00200.jpg"], store, k=12)
    assert [hit.id for hit in result.hits] == [7, *range(50, 61)]
    (result,) = search_stored(["00200.jpg"], store, k=3, exclude_self=True)
    assert [hit.id for hit in result.hits] == [7, 50, 51]
    monkeypatch.undo()
    monkeypatch.setattr(nearest, "BLOCK", 100)
    assert search_stored(["00200.jpg"], store, k=12)[0].hits[-1].id == 60


def test_a_score_that_equals_the_least_one_is_a_hit(tmp_path: Path) -> None:
    store = filled(tmp_path / "out.h5", clusters(50))
    for name in store.paths():
        assert len(search_stored([name], store, min_score=1)[0].hits) == 1


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
    candidates = FaissIndex.candidates

    def partial(self: FaissIndex, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        found = candidates(self, queries, count)
        largest = queries[:, 0] == 1
        found[largest[:, None] & ((found == 1) | (found == 2))] = 3
        return found

    monkeypatch.setattr(FaissIndex, "candidates", partial)
    monkeypatch.setattr(sys.modules[rn50feat.duplicates.__module__], "_LEADERS", 2)
    groups = rn50feat.duplicates(store, threshold=np.cos(0.2))
    assert [[member.id for member in group.members] for group in groups] == [[0, 1, 2]]
    monkeypatch.setattr(sys.modules[rn50feat.duplicates.__module__], "_NEIGHBOURS", 1)
    groups = rn50feat.duplicates(store, threshold=np.cos(0.2))
    assert [[member.id for member in group.members] for group in groups] == [[0, 1, 2]]
