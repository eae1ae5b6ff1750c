"""nearest: hits are as many as asked for, from an index that is not the newest, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import append, check, clusters, filled, hard, remove, tied

import rn50feat
from rn50feat.searching import exact, nearest, recall
from rn50feat.searching.scores import METRICS, score
from rn50feat.searching.search import search_stored
from rn50feat.store.reader import FeatureStore


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", clusters(400))


def test_many_rows_gone_from_the_store_do_not_crowd_out_others(store: FeatureStore) -> None:
    rn50feat.index(store, target_recall=1.0)
    remove(store, list(range(10, 395)))
    check(store, k=12)
    remove(store, list(range(len(store))))
    append(store, 400, clusters(3, seed=1))
    check(store)


def test_hits_are_as_many_as_asked_for_though_few_lists_are_looked_into(store: FeatureStore) -> None:
    rn50feat.index(store, factory="IVF40,SQ8")
    for hits in search_stored(store.paths(0, 3), store, k=350):
        assert len(hits.hits) == 350


@pytest.mark.parametrize("rows", [0, 1, 2, 11])
def test_tiny_stores(tmp_path: Path, rows: int) -> None:
    store = filled(tmp_path / "out.h5", clusters(rows))
    for factory in (None, "Flat", "IVF1,SQ8") if rows else (None,):
        report = rn50feat.index(store, factory=factory, rebuild=True)
        assert report.facts.recall == (1.0 if rows > 1 else None)
        check(store)


@pytest.mark.parametrize("factory", [None, "IVF8,RaBitQ"])
def test_no_queries_have_no_hits(tmp_path: Path, factory: str | None) -> None:
    store = filled(tmp_path / "out.h5", clusters(400), "float16")
    rn50feat.index(store, factory=factory)
    assert search_stored([], store) == []


def test_copies_do_not_hide_how_far_off_the_estimates_of_others_are(tmp_path: Path) -> None:
    features = clusters(400)
    features[:200] = features[0]
    store = filled(tmp_path / "out.h5", features)
    rn50feat.index(store, factory="IVF1,SQ8")
    query = features[200]
    estimates = score(query, features, "cosine").astype(np.float32)
    estimates[200] = estimates[0] - 0.001  # a copy of the query: it is nearer than the copies of row 0
    estimates[201:] -= 1  # all that come first are copies of row 0
    order = np.argsort(-estimates, kind="stable")
    candidates = nearest._Candidates(order, estimates[order], all=False)
    with store.reading():
        found = nearest.Nearest(store, "cosine", nearest.open_index(store))._promising(query, candidates, 10)
    assert 200 in found


KINDS = [None, "IDMap2,Flat", "IVF8,RaBitQ", "IVF8,SQ8"]


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


@pytest.mark.parametrize(("factory", "dtype"), [*zip(KINDS, ["float16"] * 4), (None, "float32")])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_are_by_id_at_every_place(
    tmp_path: Path, metric: str, factory: str | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tied(tmp_path, dtype, apart="RaBitQ" not in (factory or ""))  # its bits part what is a rounding apart
    if factory:
        monkeypatch.setattr(recall, "CANDIDATES", (60 if "RaBitQ" in factory else 12,))  # 12 are fewer than tie
        rn50feat.index(store, factory=factory, metric=metric, target_recall=1.0)
        append(store, 400, clusters(20)[:9])
    monkeypatch.setattr(exact, "BLOCK", 64)
    names = store.paths()[::64]
    with store.reading():
        queries = store.features(np.arange(0, len(store), 64))
        expected = [by_definition(store, query, metric) for query in queries]
        for k in (1, 10, 16, 21):
            together = search_stored(names, store, k=k, metric=metric)
            alone = [search_stored([name], store, k=k, metric=metric)[0] for name in names[:1]]
            for results in (together, alone):
                found = [[hit.id for hit in result.hits] for result in results]
                assert found == [ids[:k] for ids in expected[: len(found)]]


def test_more_copies_than_an_index_has_candidates_need_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clusters(300)
    rows[50:250] = rows[7]
    store = filled(tmp_path / "out.h5", rows)
    rn50feat.index(store, factory="IVF8,SQ8", target_recall=1.0)
    best_of = exact.best_of
    monkeypatch.setattr(exact, "best_of", lambda *some: pytest.fail("scanned") if some[6] is None else best_of(*some))
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


def test_rows_that_the_index_lacks_are_read_once_for_all_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "out.h5", clusters(100))
    rn50feat.index(store, factory="IVF4,SQ8")
    append(store, 100, clusters(60, seed=1))
    read: list[int] = []
    features = FeatureStore.features
    monkeypatch.setattr(FeatureStore, "features", lambda self, rows: read.append(np.size(rows)) or features(self, rows))
    with store.reading():
        queries = features(store, np.arange(20))
        nearest.Nearest(store, "cosine", nearest.open_index(store)).among(queries, [nearest.NO_ROWS] * 20, 5, 10)
    assert read[0] == 60 and read[1] < 60 and max(read[2:]) < 30  # once, and the best of them to be scored


@pytest.mark.parametrize("metric", METRICS)
def test_only_candidates_that_can_be_hits_are_read(
    tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "out.h5", np.concatenate([*hard(4000)]), "float16")
    monkeypatch.setattr(recall, "CANDIDATES", (1500,))
    rn50feat.index(store, factory="IVF8,RaBitQ", metric=metric, target_recall=1.0)
    names = store.paths()[::40]
    rows: list[int] = []
    best_of = exact.best_of
    monkeypatch.setattr(exact, "best_of", lambda *some: rows.append(len(some[6])) or best_of(*some))
    through = search_stored(names, store, metric=metric)
    assert sum(rows) < len(names) * 1500 / 2
    monkeypatch.undo()
    truth = search_stored(names, store, metric=metric, exact=True)
    common = [len({hit.id for hit in a.hits} & {hit.id for hit in b.hits}) for a, b in zip(through, truth)]
    assert sum(common) > 0.99 * 10 * len(names)
